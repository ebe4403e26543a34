package parser

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/strake-build/strake/plan"
)

// buildFiles are the build files of the goldens.
func buildFiles(f *testing.F) (texts []string) {
	files, _ := filepath.Glob("testdata/*/*.txtar")
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range ar.Files {
			if part.Name == "Dockerfile" {
				texts = append(texts, string(part.Data))
			}
		}
	}
	return texts
}

// silence returns what has nothing written to stderr until the target ends: the
// shell package does about odd runes. It is called for an input, since the
// process that has others try inputs reports to stderr.
func silence(f *testing.F) func() {
	stderr := os.Stderr
	f.Cleanup(func() { os.Stderr = stderr })
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	return func() { os.Stderr = null }
}

var fuzzOptions = Options{
	BuildPlatform: amd64, Resolve: resolver(nil), Exclude: []string{"*.o"},
	Platforms: []ocispec.Platform{amd64, {OS: "linux", Architecture: "arm64"}},
	Args:      map[string]string{"TAG": "3.18", "http_proxy": "p"},
}

// FuzzPlan: whatever a build file says, planning ends with a sound plan, the
// same one each time, or an error that has a place. The memory that it takes on
// its way is bounded.
func FuzzPlan(f *testing.F) {
	for _, text := range buildFiles(f) {
		f.Add(text)
	}
	quiet := silence(f)
	f.Fuzz(func(t *testing.T, text string) {
		quiet()
		before := allocated()
		file, err := Parse("Dockerfile", []byte(text))
		if err != nil {
			checkFault(t, err)
			return
		}
		b, err := file.Plan(t.Context(), fuzzOptions)
		if used := allocated() - before; used > 1<<30+uint64(len(text))<<14 {
			t.Errorf("%d bytes were allocated for a file of %d", used, len(text))
		}
		if err != nil {
			checkFault(t, err)
			return
		}
		checkBuild(t, b)
		again, err := file.Plan(t.Context(), fuzzOptions)
		if err != nil {
			t.Fatalf("planned once, then: %v", err)
		}
		if d := cmp.Diff(b.Text(), again.Text()); d != "" {
			t.Fatalf("planned twice:\n%s", d)
		}
	})
}

// FuzzBuildFile: what a file means does not depend on a comment at its end, nor
// on how lines end if it has neither here-documents nor continued lines, and
// what lists the parts of a file agrees with what plans it.
func FuzzBuildFile(f *testing.F) {
	for _, text := range buildFiles(f) {
		f.Add(text)
	}
	quiet := silence(f)
	f.Fuzz(func(t *testing.T, text string) {
		quiet()
		file, err := Parse("Dockerfile", []byte(text))
		if err != nil {
			return
		}
		stages, err := file.List()
		if err != nil || len(stages) != len(file.Stages()) {
			t.Fatalf("%d stages are listed, there are %d: %v", len(stages), len(file.Stages()), err)
		}
		for i, name := range file.Stages() {
			if stages[i].Name != name || stages[i].Source == nil {
				t.Errorf("stage %d is %q, listed as %+v", i, name, stages[i])
			}
		}
		b, err := file.Plan(t.Context(), fuzzOptions)
		if err != nil {
			return
		}
		if _, err := file.Outline(t.Context(), fuzzOptions); err != nil {
			t.Errorf("it can be planned, but has no outline: %v", err)
		}
		same := map[string]string{"a comment at the end": text + "\n\n  # comment\n\n"}
		if !strings.Contains(text, "<<") && !strings.ContainsAny(text, "\\`\r") {
			same["CR LF"] = strings.ReplaceAll(text, "\n", "\r\n")
		}
		for what, variant := range same {
			other, err := Parse("Dockerfile", []byte(variant))
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			again, err := other.Plan(t.Context(), fuzzOptions)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if d := cmp.Diff(withoutWarnings(b), withoutWarnings(again)); d != "" {
				t.Errorf("%s (-without +with):\n%s", what, d)
			}
		}
	})
}

func withoutWarnings(b *plan.Build) string { return (&plan.Build{Targets: b.Targets}).Text() }

// FuzzBaseConfig: whatever the configuration of a base image says, the image on
// top of it is sound: one entry of history for each layer, and a configuration
// that is the same when it is written and read.
func FuzzBaseConfig(f *testing.F) {
	for _, config := range []string{
		`{"config":{"Env":["PATH=/bin","A","=x","A=b=c",""],"WorkingDir":"..","User":"a:b","Shell":["/x"]},"rootfs":{"diff_ids":["sha256:0"]},"history":[{"empty_layer":true},{},{}]}`,
		`{"config":{"OnBuild":["RUN x","COPY --from=b /a /b","ENV A=$A$A$A","ARG X","ONBUILD RUN y"]},"rootfs":{"diff_ids":["sha256:0"]}}`,
		`{"config":{"OnBuild":["FROM x"],"Labels":{"a":""},"ExposedPorts":{"80":{}},"Volumes":{"":{}}}}`,
		`{"os":"windows","architecture":"x","config":{"Healthcheck":{"Test":["NONE"],"Interval":-1},"StopSignal":"9"},"created":"x"}`,
		`null`, `{"history":null,"config":null}`, `{"rootfs":{"diff_ids":["","",""]},"history":[{}]}`,
	} {
		f.Add(config)
	}
	quiet := silence(f)
	file, err := Parse("Dockerfile", []byte("FROM base AS b\nARG X=${A:-1}\nENV B=$A$PATH C=$X\nWORKDIR w/$A\nLABEL a=$B\nEXPOSE 1\nVOLUME v\nRUN $A\nFROM b\nCOPY --from=b x .\nUSER u\nHEALTHCHECK CMD x\nCMD x\n"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, config string) {
		quiet()
		var image ocispec.Image
		_ = json.Unmarshal([]byte(config), &image)
		o := fuzzOptions
		o.Platforms = nil
		o.Resolve = func(_ context.Context, ref string, _ ocispec.Platform) (Resolved, error) {
			return Resolved{Ref: ref, Digest: digest.FromString(config), Config: []byte(config)}, nil
		}
		before := allocated()
		b, err := file.Plan(t.Context(), o)
		if used := allocated() - before; used > 1<<30+uint64(len(config))<<14 {
			t.Errorf("%d bytes were allocated for a configuration of %d", used, len(config))
		}
		if err != nil {
			checkFault(t, err)
			return
		}
		checkBuildOn(t, b, len(image.RootFS.DiffIDs))
		written, err := json.Marshal(b.Targets[0].Image)
		if err != nil {
			t.Fatalf("a configuration that can't be written: %v", err)
		}
		var again dockerspec.DockerOCIImage
		if err := json.Unmarshal(written, &again); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(b.Targets[0].Image, again, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("read again (-was +is):\n%s", d)
		}
	})
}

func checkFault(t *testing.T, err error) {
	t.Helper()
	var fault *plan.Error
	if !errors.As(err, &fault) {
		t.Fatalf("an error without a place: %v", err)
	}
	if fault.Source == nil || fault.Source.File == nil {
		t.Fatalf("an error without a source: %v", err)
	}
	if text := err.Error(); strings.ContainsAny(text, "\n\x00") || len(text) > 5000 {
		t.Fatalf("an error of more than a line: %q", text)
	}
	fault.Source.Excerpt()
}

// FuzzNesting: what a word expands to is never larger than the bound that is
// worked out before.
func FuzzNesting(f *testing.F) {
	for _, s := range []string{`${a//x/${a}}`, `"${a:-'}'}"`, `${a/\}/y}`, `$a${b#x}`, `'${a'`, "${a//x/`}", `${a//x/"${b//x/$a}"}`} {
		f.Add(s)
	}
	e := newEnv()
	e.set("a", strings.Repeat("x", 100))
	e.set("b", strings.Repeat("yx", 50))
	f.Fuzz(func(t *testing.T, word string) {
		if strings.ContainsRune(word, 0) {
			t.Skip("refused before")
		}
		for _, escape := range []rune{'\\', '`'} {
			x := newExpander(escape, &budget{})
			res, err := x.word(word, e)
			if err != nil {
				continue
			}
			if len(res.Result) > maxValue+len(word) {
				t.Fatalf("%q: %d bytes", word, len(res.Result))
			}
			depth, substitutions := nesting(word, escape, false)
			if substitutions == 0 && depth == 0 && len(res.Result) > len(word)*101 {
				t.Fatalf("%q: %d bytes without nesting", word, len(res.Result))
			}
		}
	})
}
