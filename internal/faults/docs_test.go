package faults

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: docs/store.md ties its sentences to tests, as `TestName` or, for
// faults, as `fault: name`. They exist.
func TestDocs(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "docs", "store.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, f := range faults() {
		there["fault: "+f.name] = true
	}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, "_test.go") {
			return err
		}
		data, err := os.ReadFile(p)
		for _, m := range declared.FindAllSubmatch(data, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cited := regexp.MustCompile("`(Test\\w+|fault: [^`]+)`").FindAllSubmatch(text, -1)
	if len(cited) == 0 {
		t.Error("no test is named")
	}
	for _, m := range cited {
		if !there[string(m[1])] {
			t.Errorf("docs/store.md names %q, and there is no such test", m[1])
		}
	}
	for section := range strings.SplitSeq(string(text), "\n## ") {
		title, body, _ := strings.Cut(section, "\n")
		if !strings.HasPrefix(title, "#") && !strings.Contains(body, "\nTests: ") {
			t.Errorf("docs/store.md: %q ends without the tests of what it says", title)
		}
	}
}
