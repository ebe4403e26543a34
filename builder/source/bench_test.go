package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkUnchanged is the walk of a context of which nothing changed: what
// every cached build pays.
func BenchmarkUnchanged(b *testing.B) {
	const dirs, perDir = 1000, 100
	dir := b.TempDir()
	var paths []string
	for i := range dirs {
		sub := filepath.Join(dir, fmt.Sprint(i%10), fmt.Sprint(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range perDir {
			name := filepath.Join(sub, fmt.Sprint(j))
			if err := os.WriteFile(name, fmt.Appendf(nil, "%d", j), 0o644); err != nil {
				b.Fatal(err)
			}
			rel, _ := filepath.Rel(dir, name)
			paths = append(paths, rel)
		}
	}
	ctx := context.Background()
	store := b.TempDir()
	run := func() int64 {
		x, err := OpenIndex(store)
		if err != nil {
			b.Fatal(err)
		}
		defer x.Close()
		d, err := OpenDir(dir, DirOptions{Index: x})
		if err != nil {
			b.Fatal(err)
		}
		defer d.Close()
		if err := d.Preload(ctx, "."); err != nil {
			b.Fatal(err)
		}
		if _, err := d.Digests(ctx, paths); err != nil {
			b.Fatal(err)
		}
		if err := x.Save(); err != nil {
			b.Fatal(err)
		}
		return d.FilesRead()
	}
	time.Sleep(30 * time.Millisecond) // lets the last files settle
	run()
	for b.Loop() {
		if n := run(); n != 0 {
			b.Fatalf("%d files were read", n)
		}
	}
	b.ReportMetric(float64(len(paths)), "files")
}
