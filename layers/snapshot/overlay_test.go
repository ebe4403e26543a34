package snapshot_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/overlay"
	"github.com/strake-build/strake/layers/snapshot/snapshottest"
)

// TestOverlay: the layers that a Store makes of blobs, entries and mounts, in
// whatever order, make the tree that its View sees.
func TestOverlay(t *testing.T) {
	t.Parallel()
	if !snapshottest.CanMount() {
		t.Skip("overlays can't be mounted here: it needs root, or a user namespace")
	}
	s := newStore(t)
	var err error
	if s.Store, err = snapshot.Open(s.root, snapshot.Options{Driver: &overlay.Driver{}}); err != nil {
		t.Fatal(err)
	}
	root := dir(".")
	root.Mode = 0o711
	pulled, src := s.add(t, pack(t, compress.Gzip, root, dir("etc"), file("etc/passwd", "root"), file("etc/shadow", "x"), dir("old"), file("old/f", "")))
	copied := s.addEntries(t, root, dir("app"), file("app/run", "#!"), whiteout("etc/shadow"), opaque("old"), file("old/new", ""))
	tree := layers.Tree{pulled, copied}
	for _, step := range []func(root string) error{
		func(root string) error {
			if _, err := os.Lstat(filepath.Join(root, "etc/shadow")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a whiteout is none: %v", err)
			}
			if names, err := os.ReadDir(filepath.Join(root, "old")); err != nil || len(names) != 1 {
				t.Errorf("an opaque directory has %v, %v", names, err)
			}
			if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o711 {
				t.Errorf("root is %v, %v", info, err)
			}
			return errors.Join(os.RemoveAll(filepath.Join(root, "old")), os.WriteFile(filepath.Join(root, "etc/new"), []byte("1"), 0o644))
		},
		func(root string) error {
			return errors.Join(os.Mkdir(filepath.Join(root, "old"), 0o755), os.Remove(filepath.Join(root, "etc/passwd")))
		},
	} {
		a, err := s.Prepare(t.Context(), tree, src)
		if err != nil {
			t.Fatal(err)
		}
		snapshottest.Mounted(t, a.Mount, step)
		id, err := a.Commit(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		tree = append(tree, id)
	}
	v, err := s.View(t.Context(), tree, src)
	if err != nil {
		t.Fatal(err)
	}
	got, err := listView(t, v, ".")
	if err != nil {
		t.Fatal(err)
	}
	want := "5 app 0755\n0 app/run 0644 2 = #!\n5 etc 0755\n0 etc/new 0644 1 = 1\n5 old 0755\n"
	if got != want {
		t.Errorf("tree is\n%swant\n%s", got, want)
	}
	if e, err := v.Lookup("."); err != nil || e.Mode != 0o711 {
		t.Errorf("root is %+v, %v", e, err)
	}
	// What overlayfs leaves in "active-…" is removed later.
	if left, err := filepath.Glob(s.root.Path("tmp", "*", "layer-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestOverlayOfRepeatedLayers: a tree may have a layer several times, as
// images have the empty one.
func TestOverlayOfRepeatedLayers(t *testing.T) {
	t.Parallel()
	if !snapshottest.CanMount() {
		t.Skip("overlays can't be mounted here: it needs root, or a user namespace")
	}
	s := newStore(t)
	var err error
	if s.Store, err = snapshot.Open(s.root, snapshot.Options{Driver: &overlay.Driver{}}); err != nil {
		t.Fatal(err)
	}
	again := s.addEntries(t, dir("."), file("f", "upper"), whiteout("gone"))
	other := s.addEntries(t, dir("."), file("f", "lower"), file("gone", ""), file("stays", ""))
	a, err := s.Prepare(t.Context(), layers.Tree{again, other, again, again}, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	snapshottest.Mounted(t, a.Mount, func(root string) error {
		if data, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(data) != "upper" {
			t.Errorf("f is %q, %v", data, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "gone")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("gone: %v", err)
		}
		_, err := os.Lstat(filepath.Join(root, "stays"))
		return err
	})
	if err := a.Discard(); err != nil {
		t.Fatal(err)
	}
	dirs, err := s.Ensure(t.Context(), layers.Tree{again, other, again}, snapshot.Sources{})
	if err != nil || len(dirs) != 2 {
		t.Errorf("Ensure returns %v, %v", dirs, err)
	}
}
