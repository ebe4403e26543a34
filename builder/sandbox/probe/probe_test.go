package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func find(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, checks)
	return Check{}
}

func TestRun(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "not", "yet")
	checks := Run(root)
	seen := map[string]bool{}
	for _, c := range checks {
		t.Logf("%-30s %-5v %s [%s]", c.Name, c.OK, c.Detail, c.Fix)
		if c.Name == "" || c.Detail == "" || seen[c.Name] {
			t.Errorf("incomplete or twice: %+v", c)
		}
		seen[c.Name] = true
		if strings.Contains(c.Detail, "\n") {
			t.Errorf("%s: more than a line: %q", c.Name, c.Detail)
		}
	}
	// Go itself needs a kernel that is good enough to say these.
	if c := find(t, checks, "kernel"); !strings.HasPrefix(c.Detail, "Linux ") {
		t.Errorf("kernel: %q", c.Detail)
	}
	if c := find(t, checks, "seccomp"); !c.OK {
		t.Errorf("seccomp: %q", c.Detail)
	}
	if c := find(t, checks, "disk"); !strings.Contains(c.Detail, "GiB free in") {
		t.Errorf("disk: %q", c.Detail)
	}
	// The root was not made, and nothing is left beside it.
	left, err := os.ReadDir(filepath.Dir(filepath.Dir(root)))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

func TestExisting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{dir, filepath.Join(dir, "a"), filepath.Join(dir, "a/b/c")} {
		if got := existing(name); got != dir {
			t.Errorf("existing(%s) = %s, want %s", name, got, dir)
		}
	}
}
