package snapshottest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers/snapshot"
)

// testRandom does random things in several layers on top of each other; commit
// compares what is there with what the layers make.
func testRandom(t *testing.T, d snapshot.Driver) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 0))
			lower := makeLower(t, base)
			for range 4 {
				dir := commit(t, d, lower, func(root string) error {
					for range 40 {
						randomStep(r, root)
					}
					return nil
				})
				if err := age(dir); err != nil {
					t.Fatal(err)
				}
				lower = append(lower, dir)
				if t.Failed() {
					return
				}
			}
		})
	}
}

// randomStep does something, if it can be done.
func randomStep(r *rand.Rand, root string) {
	names := []string{"a", "b", "etc", "usr", "bin", "passwd"}
	pick := func() string {
		var p []string
		for range 1 + r.IntN(3) {
			p = append(p, names[r.IntN(len(names))])
		}
		return path.Join(p...)
	}
	p := pick()
	// A symlink on the way would lead out of the root.
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if info, err := os.Lstat(filepath.Join(root, dir)); err != nil || !info.IsDir() {
			return
		}
	}
	host := filepath.Join(root, p)
	switch r.IntN(10) {
	case 0, 1:
		if info, err := os.Lstat(host); err == nil && !info.Mode().IsRegular() {
			return
		}
		_ = os.WriteFile(host, []byte(strings.Repeat("x", r.IntN(4))), 0o644)
	case 2, 3:
		_ = os.Mkdir(host, 0o755)
	case 4:
		_ = os.Remove(host)
	case 5:
		_ = os.RemoveAll(host)
	case 6:
		_ = os.Symlink("target", host)
	case 7:
		if info, err := os.Lstat(host); err == nil && info.Mode()&os.ModeSymlink == 0 {
			_ = unix.Chmod(host, []uint32{0o755, 0o700, 0o777}[r.IntN(3)])
		}
	case 8:
		q := filepath.Join(root, names[r.IntN(len(names))])
		_ = os.Rename(host, q)
	case 9:
		_ = os.RemoveAll(host)
		_ = os.Mkdir(host, 0o755)
		_ = os.WriteFile(filepath.Join(host, "f"), []byte("f"), 0o600)
	}
}
