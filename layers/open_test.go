package layers

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

func TestOpenFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	content := strings.Repeat("content", 10_000)
	must(t,
		os.WriteFile(in("file"), []byte(content), 0o644),
		os.Symlink("file", in("link")),
		unix.Mkfifo(in("fifo"), 0o644),
	)
	f, err := OpenFile(in("file"))
	must(t, err)
	must(t, iotest.TestReader(f, []byte(content)))
	for range 2 {
		must(t, f.Close())
	}
	if _, err := f.Read(make([]byte, 1)); err == nil {
		t.Error("Read after Close succeeds")
	}
	if _, err := OpenFile(in("missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: got %v", err)
	}
	if _, err := OpenFile(in("link")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("link: got %v", err)
	}
	fifo, err := OpenFile(in("fifo")) // and does not wait for a writer
	must(t, err)
	must(t, fifo.Close())
}
