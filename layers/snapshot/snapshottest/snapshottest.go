// Package snapshottest is what every snapshot.Driver must pass: for ordinary
// operations on a file system, the layer that Commit makes is the one that is
// written here, whatever the driver.
package snapshottest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
)

// Run runs the suite.
func Run(t *testing.T, d snapshot.Driver) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if s.owners && !canChown(t) {
				t.Skip("files can't be given to other users here")
			}
			lower := makeLower(t, s.lower)
			dir := commit(t, d, lower, func(root string) error { return all(s.run, root) })
			got := Listing(t, dir)
			if diff := cmp.Diff(lines(s.want), lines(got)); diff != "" {
				t.Errorf("layer (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("random", func(t *testing.T) { testRandom(t, d) })
	t.Run("many layers", func(t *testing.T) { testMany(t, d) })
	t.Run("work is left to the caller", func(t *testing.T) { testRemovable(t, d) })
	t.Run("cancel", func(t *testing.T) { testCancel(t, d) })
}

// canChown reports whether this process may give files away.
func canChown(t testing.TB) bool {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return os.Lchown(path, 1, 2) == nil
}

// makeLower makes layer directories of plain files.
func makeLower(t testing.TB, list [][]step) []string {
	t.Helper()
	var dirs []string
	for i, steps := range list {
		dir := filepath.Join(t.TempDir(), fmt.Sprint("lower", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := all(steps, dir); err != nil {
			t.Fatal(err)
		}
		if err := age(dir); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// commit runs fn in a file system on top of lower and returns the layer
// directory. The tree that fn left is the one that the layers make.
func commit(t testing.TB, d snapshot.Driver, lower []string, fn func(root string) error) string {
	t.Helper()
	tmp := t.TempDir()
	work := filepath.Join(tmp, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	below := merge.Dirs(lower)
	m, err := d.Prepare(t.Context(), below, work)
	if err != nil {
		t.Fatal(err)
	}
	var seen string
	Mounted(t, m, func(root string) error {
		if err := fn(root); err != nil {
			return err
		}
		seen, err = plain(root)
		return err
	})
	dir := filepath.Join(tmp, "layer")
	if err := d.Commit(t.Context(), m, below, work, dir); err != nil {
		t.Fatal(err)
	}
	merged, err := mergedListing(append(append([]string{}, lower...), dir))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lines(seen), lines(merged)); diff != "" {
		t.Errorf("the layers make another tree than there was (-was +is):\n%s\nlayer:\n%s", diff, Listing(t, dir))
	}
	return dir
}

// Listing describes the entries of a layer directory, a line for each.
func Listing(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	for e, err := range layers.Walk(dir) {
		if err != nil {
			t.Fatal(err)
		}
		content := ""
		if e.Type == layers.Regular {
			data, err := os.ReadFile(filepath.Join(dir, e.Path))
			if err != nil {
				t.Fatal(err)
			}
			content = string(data)
		}
		b.WriteString(line(e, content))
	}
	return b.String()
}

// line describes an entry. Times that are not given by a test are left out.
func line(e layers.Entry, content string) string {
	var b strings.Builder
	switch e.Type {
	case layers.Whiteout:
		return "whiteout " + e.Path + "\n"
	case layers.Hardlink:
		return "hardlink " + e.Path + " " + e.Link + "\n"
	case layers.Symlink:
		fmt.Fprintf(&b, "symlink %s %s", e.Path, e.Link)
	case layers.Dir:
		fmt.Fprintf(&b, "dir %s %04o", e.Path, e.Mode)
	case layers.Regular:
		fmt.Fprintf(&b, "file %s %04o %q", e.Path, e.Mode, content)
	case layers.Fifo:
		fmt.Fprintf(&b, "fifo %s %04o", e.Path, e.Mode)
	default:
		fmt.Fprintf(&b, "%c %s %04o %d:%d", e.Type, e.Path, e.Mode, e.Major, e.Minor)
	}
	if e.UID != os.Geteuid() || e.GID != os.Getegid() {
		fmt.Fprintf(&b, " owner=%d:%d", e.UID, e.GID)
	}
	names := make([]string, 0, len(e.Xattrs))
	for name := range e.Xattrs {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(&b, " %s=%s", name, e.Xattrs[name])
	}
	if e.Opaque {
		b.WriteString(" opaque")
	}
	if e.ModTime.Equal(touched) {
		b.WriteString(" touched")
	}
	b.WriteByte('\n')
	return b.String()
}

// plain lists a directory tree, whatever is in it, without marks and links.
func plain(dir string) (string, error) {
	return list(merge.New([]merge.Layer{merge.NewDir(dir, nil)}), []string{dir})
}

// mergedListing lists the tree that layer directories make.
func mergedListing(dirs []string) (string, error) { return list(merge.Dirs(dirs), dirs) }

func list(s *merge.Stack, dirs []string) (string, error) {
	var b strings.Builder
	var walk func(path string) error
	walk = func(path string) error {
		found, err := s.ReadDir(path)
		if err != nil {
			return err
		}
		for _, f := range found {
			content := ""
			if f.Type == layers.Regular {
				data, err := os.ReadFile(filepath.Join(dirs[f.Layer], f.Path))
				if err != nil {
					return err
				}
				content = string(data)
			}
			f.Opaque = false
			b.WriteString(line(f.Entry, content))
			if f.Type == layers.Dir {
				if err := walk(f.Path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	root, err := s.Lookup(".")
	if err != nil {
		return "", err
	}
	root.Opaque = false
	b.WriteString(line(root.Entry, ""))
	return b.String(), walk(".")
}

func lines(s string) []string {
	var list []string
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			list = append(list, l)
		}
	}
	return list
}

// testMany: overlayfs's own limit.
func testMany(t *testing.T, d snapshot.Driver) {
	t.Parallel()
	var list [][]step
	for i := range 500 {
		list = append(list, []step{write("shared", fmt.Sprint(i)), write(fmt.Sprint("f", i), "")})
	}
	dir := commit(t, d, makeLower(t, list), func(root string) error {
		return all([]step{appendTo("shared", "!"), remove("f250")}, root)
	})
	want := "whiteout f250\nfile shared 0644 \"499!\"\n"
	if diff := cmp.Diff(lines(want), lines(Listing(t, dir))); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

// testRemovable: what Commit leaves in the work directory can be removed.
func testRemovable(t *testing.T, d snapshot.Driver) {
	t.Parallel()
	lower := merge.Dirs(makeLower(t, [][]step{{mkdir("d", 0o755), write("d/f", "1")}}))
	work := filepath.Join(t.TempDir(), "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := d.Prepare(t.Context(), lower, work)
	if err != nil {
		t.Fatal(err)
	}
	Mounted(t, m, func(root string) error { return all([]step{removeAll("d"), mkdir("d", 0o500)}, root) })
	if err := d.Commit(t.Context(), m, lower, work, work+"-layer"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(work); err != nil {
		t.Error(err)
	}
	if got := Listing(t, work+"-layer"); got != "dir d 0500 opaque\n" {
		t.Errorf("layer: %s", got)
	}
}

// testCancel: a Commit whose context has ended makes no layer.
func testCancel(t *testing.T, d snapshot.Driver) {
	t.Parallel()
	lower := merge.Dirs(makeLower(t, [][]step{{write("f", "1")}}))
	work := filepath.Join(t.TempDir(), "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := d.Prepare(t.Context(), lower, work)
	if err != nil {
		t.Fatal(err)
	}
	cause := fmt.Errorf("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := d.Commit(ctx, m, lower, work, work+"-layer"); err != cause {
		t.Errorf("error %v, want the cause", err)
	}
	if _, err := os.Lstat(work + "-layer"); err == nil {
		t.Error("there is a layer")
	}
}
