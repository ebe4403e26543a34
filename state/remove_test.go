package state_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-build/strake/state"
)

// TestRemoveLater: what is to be removed is gone when Close returns, however
// much it is.
func TestRemoveLater(t *testing.T) {
	t.Parallel()
	r, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 * 64 {
		dir, err := r.TempDir("x")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
			t.Fatal(err)
		}
		r.RemoveLater(dir)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(r.Path("tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// After Close, it is removed at once.
	dir := filepath.Join(t.TempDir(), "x")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.RemoveLater(dir)
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
}
