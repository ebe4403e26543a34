package builds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state"
)

func root(t *testing.T, dir string) *state.Root {
	t.Helper()
	r, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func begin(t *testing.T, s *Store, r Record) *Build {
	t.Helper()
	b, err := s.Begin(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func end(t *testing.T, b *Build, err error) {
	t.Helper()
	if err := b.End(err, nil); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *Store, ref string) Record {
	t.Helper()
	r, err := s.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRecord(t *testing.T) {
	t.Parallel()
	s := Open(root(t, t.TempDir()), Limits{})
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Fatalf("a new store has builds %v, %v", list, err)
	}
	b := begin(t, s, Record{Frontend: "dockerfile.v0", Attrs: map[string]string{"target": "x"}})
	if got := get(t, s, b.Record().Ref); got.Status != Running {
		t.Errorf("status is %s, want running", got.Status)
	}
	if err := s.Remove(get(t, s, "^")); err == nil {
		t.Error("a build under way was removed")
	}
	b.Logs.Event(progress.Event{Kind: progress.Cached, Vertex: "v", Name: "RUN x"})
	steps := []Step{{Vertex: "v", Name: "RUN x", Kind: "exec", Outcome: Cached, Parts: []Part{{"env", "A", "1"}}, Inputs: []Input{{-1, "scratch"}}}}
	b.SetSteps("plan", nil)
	b.SetSteps("plan", steps)
	if err := b.End(nil, map[string]string{"containerimage.digest": "sha256:1"}); err != nil {
		t.Fatal(err)
	}
	got := get(t, s, b.Record().Ref[:5])
	if got.Status != Completed || got.Response["containerimage.digest"] != "sha256:1" || got.Counts != (Counts{Total: 1, Cached: 1, Completed: 1}) || got.Attrs["target"] != "x" {
		t.Errorf("record is %+v", got)
	}
	read, err := got.Steps()
	if diff := cmp.Diff(steps, read); err != nil || diff != "" {
		t.Errorf("steps: %v (-want +got):\n%s", err, diff)
	}
	end(t, begin(t, s, Record{Ref: "second", Created: time.Now().Add(time.Second)}), fmt.Errorf("x: %w", errors.New("boom")))
	end(t, begin(t, s, Record{Ref: "third", Created: time.Now().Add(2 * time.Second)}), fmt.Errorf("x: %w", context.Canceled))
	if r := get(t, s, "^1"); r.Ref != "second" || r.Status != Failed || r.Error != "x: boom" {
		t.Errorf("^1 is %+v", r)
	}
	if r := get(t, s, "^"); r.Ref != "third" || r.Status != Canceled {
		t.Errorf("^ is %+v", r)
	}
	for _, ref := range []string{"^3", "none", ""} {
		if _, err := s.Get(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%q): %v, want ErrNotFound", ref, err)
		}
	}
	if err := s.Remove(get(t, s, "second")); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(); err != nil || len(list) != 2 {
		t.Errorf("%d builds are left (%v), want 2", len(list), err)
	}
}

// A build whose process was killed is not under way.
func TestKilled(t *testing.T) {
	t.Parallel()
	s := Open(root(t, t.TempDir()), Limits{})
	b := begin(t, s, Record{})
	if err := b.Logs.Close(); err != nil { // as the kernel does
		t.Fatal(err)
	}
	if r := get(t, s, "^"); r.Status != Canceled || r.Error == "" {
		t.Errorf("record is %+v", r)
	}
}

// Refs of clients are no paths.
func TestHostileRef(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := Open(root(t, dir), Limits{})
	for _, ref := range []string{"../../x", "..", strings.Repeat("a", 300), "a/b", "ü\x00"} {
		end(t, begin(t, s, Record{Ref: ref}), nil)
		if r := get(t, s, ref); r.Ref != ref {
			t.Errorf("ref is %q, want %q", r.Ref, ref)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"builds", "leases", "tmp", "version"}, e.Name()) {
			t.Errorf("%s was made outside of builds", e.Name())
		}
	}
}

func TestSecretsAreLeftOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := Open(root(t, dir), Limits{})
	end(t, begin(t, s, Record{Context: "https://me:pass1word@host/r.git", Attrs: map[string]string{
		"build-arg:HTTP_PROXY":   "http://joe:pass2word@proxy:80",
		"build-arg:NPM_TOKEN":    "pass3word",
		"build-arg:PUBLIC_KEY":   "for all",
		"context:x":              "https://ghp_pass4word@host/r.git",
		"context:ssh":            "ssh://git@host/r.git",
		"build-arg:NOT_KEYBOARD": "qwerty",
	}}), nil)
	r := get(t, s, "^")
	data, err := os.ReadFile(filepath.Join(r.Dir, recordFile))
	if err != nil || strings.Contains(string(data), "word") {
		t.Errorf("%v: a secret is in %s", err, data)
	}
	for k, want := range map[string]string{"build-arg:PUBLIC_KEY": "for all", "context:ssh": "ssh://git@host/r.git", "build-arg:NOT_KEYBOARD": "qwerty", "build-arg:HTTP_PROXY": "http://joe:xxxxx@proxy:80"} {
		if r.Attrs[k] != want {
			t.Errorf("%s is %q, want %q", k, r.Attrs[k], want)
		}
	}
	if Hide("A_TOKEN", "1") == Hide("A_TOKEN", "2") {
		t.Error("that a secret argument changed can't be seen")
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	names := func(s *Store) (out []string) {
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list {
			out = append(out, r.Ref)
		}
		return out
	}
	made := time.Now().Add(-time.Hour)
	add := func(s *Store, ref string, output int) *Build {
		made = made.Add(time.Second)
		b := begin(t, s, Record{Ref: ref, Created: made})
		b.Logs.Event(progress.Event{Kind: progress.Log, Vertex: "v", Data: make([]byte, output)})
		return b
	}
	s := Open(root(t, t.TempDir()), Limits{Builds: 4, Bytes: 40 << 10})
	end(t, add(s, "pinned", 1), nil)
	if err := s.Pin(get(t, s, "pinned"), true); err != nil {
		t.Fatal(err)
	}
	running := add(s, "running", 1)
	for i := range 4 {
		end(t, add(s, fmt.Sprint("b", i), 1), nil)
	}
	if diff := cmp.Diff([]string{"b3", "b2", "b1", "b0", "running", "pinned"}, names(s)); diff != "" {
		t.Errorf("builds left of too many (-want +got):\n%s", diff)
	}
	end(t, running, nil)
	end(t, add(s, "large", 39<<10), nil) // too large for the others
	if diff := cmp.Diff([]string{"large", "b3", "b2", "b1", "pinned"}, names(s)); diff != "" {
		t.Errorf("builds left (-want +got):\n%s", diff)
	}
	end(t, add(s, "larger", 39<<10), nil)
	if diff := cmp.Diff([]string{"larger", "pinned"}, names(s)); diff != "" {
		t.Errorf("builds left (-want +got):\n%s", diff)
	}
	if err := s.Pin(get(t, s, "pinned"), false); err != nil {
		t.Fatal(err)
	}
	s = Open(s.root, Limits{Age: time.Minute})
	end(t, begin(t, s, Record{Ref: "new"}), nil)
	if diff := cmp.Diff([]string{"new"}, names(s)); diff != "" {
		t.Errorf("builds left of old ones (-want +got):\n%s", diff)
	}
}

// Lists of files are shared by the builds that have the same.
func TestFiles(t *testing.T) {
	t.Parallel()
	s := Open(root(t, t.TempDir()), Limits{})
	d := digest.FromString("x")
	want := []File{{"a b\n", "0", 0o4755, -1, -1, "0123456789abcdef"}, {"d", "5", 0o755, 0, 7, ""}, {"ü", "2", 0o777, 0, 0, "12"}}
	b := begin(t, s, Record{})
	if b.HasFiles(d) {
		t.Fatal("a list that nobody wrote is there")
	}
	if err := b.KeepFiles(d, func(w *FileWriter) error {
		for _, f := range want {
			if err := w.Add(f); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	end(t, b, nil)
	if err := b.KeepFiles(digest.FromString("bad"), func(*FileWriter) error { return errors.New("boom") }); err == nil {
		t.Error("a failure is not told")
	}
	next := begin(t, s, Record{Created: time.Now().Add(time.Second)})
	next.SetSteps("plan", []Step{{Inputs: []Input{{-1, "content:" + d.String()}}}})
	end(t, next, nil)
	if err := s.Remove(b.Record()); err != nil {
		t.Fatal(err)
	}
	var got []File
	list, err := next.Record().Files(d)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	err = ReadFiles(list, func(f File) error { got = append(got, f); return nil })
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("files: %v (-want +got):\n%s", err, diff)
	}
	if entries, err := os.ReadDir(next.Record().Dir); err != nil || len(entries) != 4 {
		t.Errorf("%v, %v: want no more than record, steps, events and files", entries, err)
	}
}

// Of two lists the lines that differ are found, wherever they are.
func TestCompareFiles(t *testing.T) {
	t.Parallel()
	s := Open(root(t, t.TempDir()), Limits{})
	b := begin(t, s, Record{})
	defer end(t, b, nil)
	list := func(paths string) io.ReadCloser {
		d := digest.FromString(paths)
		if err := b.KeepFiles(d, func(w *FileWriter) error {
			for _, p := range strings.Fields(paths) {
				name, sum, _ := strings.Cut(p, "=")
				if err := w.Add(File{Path: name, Type: "0", Sum: sum}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		r, err := b.Record().Files(d)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	show := func(files []File) string {
		var out []string
		for _, f := range files {
			out = append(out, f.Path+"="+f.Sum)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, c := range []struct{ a, b, onlyA, onlyB string }{
		{"", "", "", ""},
		{"a=1 b=2", "a=1 b=2", "", ""},
		{"a=1 b=2 c=3", "a=1 b=9 c=3", "b=2", "b=9"},
		{"new=1 a=1 b=2 c=3", "a=1 b=2 c=3", "new=1", ""},
		{"a=1 b=2 c=3", "b=2 c=3 d=4", "a=1", "d=4"},
		{"a=1 b=2", "", "a=1 b=2", ""},
		{"a=1 b=2 c=3", "c=3 b=2 a=1", "", ""},
	} {
		x, y := list(c.a), list(c.b)
		onlyA, onlyB, err := CompareFiles(x, y)
		if err != nil || show(onlyA) != c.onlyA || show(onlyB) != c.onlyB {
			t.Errorf("%q and %q: only %q and %q, %v; want %q and %q", c.a, c.b, show(onlyA), show(onlyB), err, c.onlyA, c.onlyB)
		}
		if err := errors.Join(x.Close(), y.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := CompareFiles(strings.NewReader("damaged"), list("a=1")); err == nil {
		t.Error("a damaged list is no error")
	}
}
