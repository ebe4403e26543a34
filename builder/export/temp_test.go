package export

import (
	"os"
	"path/filepath"
	"testing"
)

// What a killed export left is removed by the next one there; what a living one
// is writing to is not, and files of others neither.
func TestTempIsSwept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(tempPrefix + "dead")
	write(tempPrefix + "deaddir/sub/file")
	write("other")
	write("sub/" + tempPrefix + "x")
	if err := os.Symlink(filepath.Join(dir, "other"), filepath.Join(dir, tempPrefix+"link")); err != nil {
		t.Fatal(err)
	}
	living, err := temp(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	livingDir, err := temp(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer livingDir.Close()
	for name, want := range map[string]bool{
		tempPrefix + "dead": false, tempPrefix + "deaddir": false, "other": true, "sub/" + tempPrefix + "x": true,
		tempPrefix + "link": true, filepath.Base(living.Name()): true, filepath.Base(livingDir.Name()): true,
	} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: there is %v, want %v", name, err == nil, want)
		}
	}
}
