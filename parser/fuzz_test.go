package parser

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/strake-build/strake/plan"
)

// FuzzPlan: whatever a build file says, planning ends with a sound plan, the
// same one each time, or an error that has a place.
func FuzzPlan(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*.txtar")
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range ar.Files {
			if part.Name == "Dockerfile" {
				f.Add(string(part.Data))
			}
		}
	}
	stderr := os.Stderr
	f.Cleanup(func() { os.Stderr = stderr })
	os.Stderr, _ = os.Open(os.DevNull) // the shell package writes about odd runes
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Parse("Dockerfile", []byte(text))
		if err != nil {
			checkFault(t, err)
			return
		}
		o := Options{
			BuildPlatform: amd64, Resolve: resolver(nil), Exclude: []string{"*.o"},
			Platforms: []ocispec.Platform{amd64, {OS: "linux", Architecture: "arm64"}},
			Args:      map[string]string{"TAG": "3.18", "http_proxy": "p"},
		}
		b, err := file.Plan(t.Context(), o)
		if err != nil {
			checkFault(t, err)
			return
		}
		checkBuild(t, b)
		again, err := file.Plan(t.Context(), o)
		if err != nil {
			t.Fatalf("planned once, then: %v", err)
		}
		if d := cmp.Diff(b.Text(), again.Text()); d != "" {
			t.Fatalf("planned twice:\n%s", d)
		}
	})
}

func checkFault(t *testing.T, err error) {
	t.Helper()
	var fault *plan.Error
	if !errors.As(err, &fault) {
		if strings.HasPrefix(err.Error(), epochArg) {
			return // may come of a build arg
		}
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
