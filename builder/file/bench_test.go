package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/plan"
)

// BenchmarkCopy is COPY . /src of 100k small files: the digest that a cached
// build needs, and the entries that one that is not needs besides. Files are
// hashed before.
func BenchmarkCopy(b *testing.B) {
	const dirs, perDir = 1000, 100
	dir := b.TempDir()
	for i := range dirs {
		sub := filepath.Join(dir, fmt.Sprint(i%10), fmt.Sprint(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range perDir {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), fmt.Appendf(nil, "%d", j), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	d, err := source.OpenDir(dir, source.DirOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	op := &plan.File{Actions: []plan.Action{dockerfile("/", "/src")}}
	in := Input{Tree: d}
	if _, err := Select(ctx, op, 1, in); err != nil {
		b.Fatal(err)
	}
	b.Run("Select", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Select(ctx, op, 1, in); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Apply", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Apply(ctx, op, nil, inputsOf(in), noStage); err != nil {
				b.Fatal(err)
			}
		}
	})
}
