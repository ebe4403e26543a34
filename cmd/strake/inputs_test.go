package main

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/source"
)

// Only the paths asked for are read ahead, and nothing is after it was stopped.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a/x", "b/y", "c/z"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var seen []string
	read := map[string]chan struct{}{"a/x": make(chan struct{}), "b/y": make(chan struct{})}
	d, err := source.OpenDir(dir, source.DirOptions{Ignored: func(p string, _ bool) (bool, bool) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
		if c := read[p]; c != nil {
			close(c)
		}
		return false, false
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	in := &inputs{locals: map[string]builder.Local{"context": {Dir: d}}}

	ahead, stop := in.readAhead(t.Context())
	ahead([]string{"./a/", "missing"})
	<-read["a/x"]
	stop()
	ahead([]string{"b"})
	stop()
	if want := []string{"a", "a/x", "b", "c"}; !slices.Equal(slices.Sorted(slices.Values(seen)), want) {
		t.Errorf("read %q, want %q", seen, want)
	}

	ahead, stop = in.readAhead(t.Context())
	defer stop()
	ahead([]string{"/"})
	<-read["b/y"]
}
