package explain

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/state"
	"github.com/strake-build/strake/state/builds"
)

// chain is a stage: steps that are each built on the one before.
func chain(outcome builds.Outcome, texts ...string) []builds.Step {
	steps := []builds.Step{{Name: "FROM base", Kind: "image", Platform: "linux/amd64", Parts: []builds.Part{{Kind: "base", Value: "base:1"}, {Kind: "digest", Value: "sha256:1"}}}}
	key := ""
	for i, text := range texts {
		input := builds.Input{Step: i, ID: "key:" + key}
		key += "/" + text
		steps = append(steps, builds.Step{
			Name: fmt.Sprintf("[build %d/%d] RUN %s", i+1, len(texts), text), Kind: "exec", Platform: "linux/amd64", Outcome: outcome,
			Key: key, Parts: []builds.Part{{Kind: "command", Value: text}}, Inputs: []builds.Input{input},
		})
	}
	return steps
}

func lines(findings []Finding) (out []string) {
	for _, f := range findings {
		out = append(out, f.Line())
	}
	return out
}

func TestFirstOfABranch(t *testing.T) {
	t.Parallel()
	now, old := chain(builds.Ran, "a", "B", "c"), chain(builds.Ran, "a", "b", "c")
	now[1].Outcome = builds.Cached
	want := []string{"[build 2/3] RUN B: command: b → B"}
	if diff := cmp.Diff(want, lines(Explain(Build{Steps: now}, []Build{{Steps: old}}))); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	f, ok := One(Build{Steps: now}, []Build{{Steps: old}}, 3)
	if want := "it follows [build 2/3] RUN B"; !ok || f.Text() != want {
		t.Errorf("the step after it: %v %q, want %q", ok, f.Text(), want)
	}
	if _, ok := One(Build{Steps: now}, nil, 1); ok {
		t.Error("a cached step is explained")
	}
}

// A step whose result was pruned would not have been missed by itself.
func TestPrunedIsNoCauseOfWhatChanged(t *testing.T) {
	t.Parallel()
	now, old := chain(builds.Ran, "a", "B"), chain(builds.Ran, "a", "b")
	want := []string{"[build 2/2] RUN B: command: b → B"}
	if diff := cmp.Diff(want, lines(Explain(Build{Steps: now}, []Build{{Steps: old}}))); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	same := chain(builds.Ran, "a", "b")
	want = []string{"[build 1/2] RUN a: nothing changed, but its result is no longer in the cache"}
	if diff := cmp.Diff(want, lines(Explain(Build{Steps: same}, []Build{{Steps: old}}))); diff != "" {
		t.Errorf("findings when all was pruned (-want +got):\n%s", diff)
	}
}

func TestInsertedStep(t *testing.T) {
	t.Parallel()
	now, old := chain(builds.Ran, "a", "new", "b", "c"), chain(builds.Ran, "a", "b", "c")
	now[1].Outcome = builds.Cached
	want := []string{"[build 2/4] RUN new: the step is new"}
	if diff := cmp.Diff(want, lines(Explain(Build{Steps: now}, []Build{{Steps: old}}))); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// Of several builds, the one counts that a step can be compared with.
func TestSeveralPasts(t *testing.T) {
	t.Parallel()
	now, old := chain(builds.Ran, "a", "B"), chain(builds.Ran, "a", "b")
	now[1].Outcome = builds.Cached
	failed := chain(builds.Ran, "a", "b")
	failed[2].Key = "" // it got no further
	got := Explain(Build{Steps: now}, []Build{{Ref: "empty"}, {Ref: "failed", Steps: failed}, {Ref: "old", Steps: old}})
	if len(got) != 1 || got[0].Against != "old" {
		t.Errorf("findings are %+v, want one against old", got)
	}
	if got := Explain(Build{Steps: now}, nil); len(got) != 1 || got[0].Causes[0].Kind != New {
		t.Errorf("findings without a past are %+v", got)
	}
}

func TestBuildArgIsBlamed(t *testing.T) {
	t.Parallel()
	c := Cause{Kind: Base, Old: "alpine:3.18", New: "alpine:3.19"}
	e := &explainer{now: Build{Attrs: map[string]string{"build-arg:TAG": "3.19", "build-arg:OTHER": "3"}}}
	e.blame(&past{Build: Build{Attrs: map[string]string{"build-arg:TAG": "3.18", "build-arg:OTHER": "3"}}}, &c)
	if want := "base: alpine:3.18 → alpine:3.19 (build arg TAG)"; c.Text() != want {
		t.Errorf("got %q, want %q", c.Text(), want)
	}
}

func TestSplitName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][2]string{
		"[build 2/4] RUN make":                   {"build", "RUN make"},
		"[ 2/14] RUN make":                       {"", "RUN make"},
		"[linux/arm64->amd64 build  2/14] RUN x": {"build", "RUN x"},
		"[linux/arm64 2/4] ONBUILD RUN x\ny":     {"", "RUN x\ny"},
		"[internal] load build context":          {"", "[internal] load build context"},
	} {
		stage, text := splitName(builds.Step{Name: name})
		if stage != want[0] || text != want[1] {
			t.Errorf("%q is %q and %q, want %q", name, stage, text, want)
		}
	}
}

// A build that was shared is the same one elsewhere, its lists of files too.
func TestShare(t *testing.T) {
	t.Parallel()
	root, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s := builds.Open(root, builds.Limits{})
	b, err := s.Begin(builds.Record{Attrs: map[string]string{"target": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("list")
	if err := b.KeepFiles(d, func(w *builds.FileWriter) error { return w.Add(builds.File{Path: "a", Type: "0", UID: -1, GID: -1}) }); err != nil {
		t.Fatal(err)
	}
	steps := chain(builds.Ran, "a")
	steps[1].Inputs = append(steps[1].Inputs, builds.Input{Step: 0, ID: "content:" + d.String()})
	b.SetSteps("plan", steps)
	if err := b.End(nil, nil); err != nil {
		t.Fatal(err)
	}
	var plain []byte
	data, err := Share(b.Record(), func(p []byte) error { plain = p; return nil })
	if !json.Valid(plain) {
		t.Errorf("what is checked is %q", plain)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !utf8.Valid(data) {
		t.Error("not text: a registry would change it")
	}
	got, err := Received(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(steps, got.Steps); diff != "" || got.Attrs["target"] != "x" {
		t.Errorf("received %v (-want +got):\n%s", got.Attrs, diff)
	}
	var paths []string
	list, err := got.Files(d)
	if err != nil {
		t.Fatal(err)
	}
	err = builds.ReadFiles(list, func(f builds.File) error { paths = append(paths, f.Path); return nil })
	if err != nil || strings.Join(paths, " ") != "a" {
		t.Errorf("files are %q, %v", paths, err)
	}
}

// FuzzReceived reads what a cache claims to be the record of a build.
func FuzzReceived(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00{}x"))
	now := Build{Steps: chain(builds.Ran, "a", "b")}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Received(data)
		if err != nil {
			return
		}
		for _, finding := range Explain(now, []Build{b}) {
			if finding.Text() == "" {
				t.Error("a finding without a text")
			}
		}
		if _, err := b.Files(digest.FromString("x")); err == nil {
			t.Error(errors.New("there is a list of files that nobody sent"))
		}
	})
}

// A record of another machine may say anything.
func TestHostileSteps(t *testing.T) {
	t.Parallel()
	now := Build{Steps: chain(builds.Ran, "a", "b")}
	bad := chain(builds.Ran, "x", "y")
	bad[1].Inputs = []builds.Input{{Step: 2, ID: "key:1"}, {Step: -7}} // it needs itself
	bad[2].Inputs = []builds.Input{{Step: 1, ID: "key:2"}}
	if got := Explain(now, []Build{{Steps: bad}}); len(got) == 0 {
		t.Error("nothing is explained")
	}
}
