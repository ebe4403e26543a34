package ignore

import (
	"fmt"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/patternmatcher"
)

func TestRead(t *testing.T) {
	t.Parallel()
	in := "\ufeff# not a pattern\ntest1\n/test2\n  a//b/../c/ \n\n # is a pattern\n! /kept\n!\nno-newline"
	want := []string{"test1", "test2", "a/c", "# is a pattern", "!kept", "!", "no-newline"}
	got, err := Read(strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	// A byte order mark hides the comment no more than it hides a pattern.
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestReadBounds(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]string{
		"long line": strings.Repeat("x", 70<<10),
		"many":      strings.Repeat(strings.Repeat("x", 1023)+"\n", 17<<10),
	} {
		if got, err := Read(strings.NewReader(in)); err == nil {
			t.Errorf("%s: read %d patterns, want an error", name, len(got))
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"!", "[", "a[", `a\`, "![x"} {
		_, err := New([]string{"ok", bad})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", bad)) {
			t.Errorf("New(%q): %v, want an error that names the pattern", bad, err)
		}
	}
}

func TestIgnored(t *testing.T) {
	t.Parallel()
	type verdict struct {
		ignored, skip bool
		rule          string
	}
	kept := verdict{}
	cases := map[string]struct {
		patterns []string
		want     map[string]verdict // a final slash is a directory
	}{
		"none": {nil, map[string]verdict{"a": kept, "a/": kept}},
		"plain": {[]string{"node_modules", "*.log"}, map[string]verdict{
			"node_modules/":      {true, true, "node_modules"},
			"node_modules/a/b.c": {true, false, "node_modules"},
			"x/node_modules/":    kept,
			"a.log":              {true, false, "*.log"},
			"x/a.log":            kept,
			"node_modules2":      kept,
		}},
		"order": {[]string{"*.md", "!README.md", "README*"}, map[string]verdict{
			"README.md": {true, false, "README*"}, "a.md": {true, false, "*.md"},
		}},
		"exception last": {[]string{"*.md", "!README.md"}, map[string]verdict{"README.md": kept, "x.md": {true, false, "*.md"}}},
		"exception below": {[]string{"a", "!a/b/c"}, map[string]verdict{
			"a/": {true, false, "a"}, "a/b/": {true, false, "a"}, "a/b/c": kept, "a/b/c/d": kept,
			"a/x/": {true, true, "a"}, "a/b/cc/": {true, true, "a"},
		}},
		"exception before": {[]string{"!a/b", "a"}, map[string]verdict{"a/": {true, true, "a"}, "a/b": {true, false, "a"}}},
		"exception with wildcard": {[]string{"*", "!src/*.go"}, map[string]verdict{
			"src/": {true, false, "*"}, "doc/": {true, true, "*"}, "src/a.go": kept, "src/a.c": {true, false, "*"},
		}},
		"exception anywhere": {[]string{"*", "!**/keep"}, map[string]verdict{
			"a/": {true, false, "*"}, "a/b/keep": kept, "keep": kept, "a/x": {true, false, "*"},
		}},
		"everything": {[]string{"**"}, map[string]verdict{"a": {true, false, "**"}, "a/": {true, true, "**"}, ".": kept}},
		"below only": {[]string{"a/**"}, map[string]verdict{"a/": kept, "a/b": {true, false, "a/**"}, "a/b/": {true, true, "a/**"}}},
		"any depth":  {[]string{"**/x"}, map[string]verdict{"x": {true, false, "**/x"}, "a/b/x": {true, false, "**/x"}, "ax": kept}},
		"middle":     {[]string{"a/**/z"}, map[string]verdict{"a/z": {true, false, "a/**/z"}, "a/b/c/z": {true, false, "a/**/z"}, "z": kept}},
		"question":   {[]string{"a?c"}, map[string]verdict{"abc": {true, false, "a?c"}, "ac": kept, "a/c": kept}},
		"class":      {[]string{"[ab]c"}, map[string]verdict{"bc": {true, false, "[ab]c"}, "cc": kept}},
		"escape":     {[]string{`a\*`}, map[string]verdict{"a*": {true, false, `a\*`}, "ab": kept}},
		"unclean":    {[]string{" ./a//b/ "}, map[string]verdict{"a/b": {true, false, " ./a//b/ "}, "./a/b": {true, false, " ./a//b/ "}}},
		"unicode":    {[]string{"é*"}, map[string]verdict{"éa": {true, false, "é*"}, "e": kept}},
		"empty":      {[]string{"", " "}, map[string]verdict{"a": kept}},
	}
	for name, c := range cases {
		m, err := New(c.patterns)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := map[string]verdict{}
		for p := range c.want {
			ignored, skip := m.Ignored(strings.TrimSuffix(p, "/"), strings.HasSuffix(p, "/"))
			got[p] = verdict{ignored, skip, m.Rule(strings.TrimSuffix(p, "/"))}
		}
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(verdict{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	m, err := New([]string{"**/*.o", "[a-c]*", "!b/**", "d"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 500 {
				p := fmt.Sprintf("b/%d/%d.o", i%7, i)
				if ignored, _ := m.Ignored(p, false); ignored {
					t.Errorf("%s is ignored", p)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzIgnored compares with the library's own walk, and checks the promise
// that nothing below a skipped directory is kept.
func FuzzIgnored(f *testing.F) {
	for _, seed := range []string{
		"a\n!a/b", "*\n!src/**/*.go", "**/x\n!y", "a/**\n!a/b/**", "!a\na*\n!a/b", "[a-b]\n!**", `\a` + "\n!a?", "a^b\n^a",
		"b*\n!b", "*/b\n!a", "**a\n!a/b/ba", "a \n! b", ".\n..", "/a\n!/a/b", "a**/b",
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Add("\xef\xbb\xbfa\n# b\n !c \n/d/", true)
	var paths []string
	names := []string{"a", "b", "ab", "x", "src", "a.go", "a b", "^a"}
	for _, x := range names {
		paths = append(paths, x)
		for _, y := range names {
			paths = append(paths, x+"/"+y)
			for _, z := range names[:4] {
				paths = append(paths, x+"/"+y+"/"+z)
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string, file bool) {
		if strings.ContainsRune(text, 0) || len(text) > 200 {
			t.Skip("the library's scanner complains to stderr")
		}
		patterns := strings.Split(text, "\n") // as flags give them
		if file {
			var err error
			if patterns, err = Read(strings.NewReader(text)); err != nil {
				return
			}
		}
		m, err := New(patterns)
		if err != nil {
			return
		}
		ref, err := patternmatcher.New(patterns)
		if err != nil {
			t.Fatalf("New accepts %q, the library: %v", patterns, err)
		}
		infos := map[string]patternmatcher.MatchInfo{}
		skipped := map[string]bool{}
		for _, p := range paths { // parents first
			want, info, err := ref.MatchesUsingParentResults(p, infos[path.Dir(p)])
			if err != nil {
				t.Fatal(err)
			}
			infos[p] = info
			got, skip := m.Ignored(p, true)
			if got != want {
				t.Fatalf("%q: Ignored(%q) = %v, the library says %v", patterns, p, got, want)
			}
			if (m.Rule(p) != "") != got {
				t.Fatalf("%q: Rule(%q) = %q, ignored %v", patterns, p, m.Rule(p), got)
			}
			if skipped[path.Dir(p)] && !got {
				t.Fatalf("%q: %q is kept below a skipped directory", patterns, p)
			}
			skipped[p] = skip || skipped[path.Dir(p)]
		}
	})
}

func BenchmarkIgnored(b *testing.B) {
	m, err := New([]string{".git", "**/node_modules", "**/*.log", "dist", "*.md", "!README.md", "tmp/**", "**/.DS_Store", ".env*", "Dockerfile*"})
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		m.Ignored(fmt.Sprintf("packages/p%d/src/f%d.go", i%100, i%10000), false)
	}
}
