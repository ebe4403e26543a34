package merge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/layers"
)

// newDirTree makes a directory with a few files, and a large one.
func newDirTree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	err := errors.Join(
		os.MkdirAll(filepath.Join(root, "etc", "conf.d"), 0o755),
		os.Mkdir(filepath.Join(root, "empty"), 0o711),
		os.Mkdir(filepath.Join(root, "large"), 0o755),
		os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte("root"), 0o640),
		os.Symlink("passwd", filepath.Join(root, "etc", "link")),
	)
	for i := range 1000 {
		err = errors.Join(err, os.WriteFile(filepath.Join(root, "large", fmt.Sprint("file-", i)), nil, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// TestDirRemembers: what a Dir says does not depend on how often it is asked,
// nor on the room it has.
func TestDirRemembers(t *testing.T) {
	t.Parallel()
	root := newDirTree(t)
	present := []string{".", "etc", "etc/passwd", "etc/link", "etc/conf.d", "empty", "large", "large/file-0", "large/file-999"}
	missing := []string{"nothing", "etc/nothing", "etc/passwd2", "empty/nothing", "large/file-1000", "etc/conf.d/x"}
	for _, room := range []*Room{nil, NewRoom(0), NewRoom(3), NewRoom(8), NewRoom(100_000)} {
		d, plain := NewDir(root, room), NewDir(root, nil)
		for range 3 {
			for _, p := range present {
				want, err := plain.Stat(p)
				if err != nil {
					t.Fatal(err)
				}
				got, err := d.Stat(p)
				if err != nil {
					t.Fatalf("%s: %v", p, err)
				}
				if diff := cmp.Diff(want, got); diff != "" || got.Path != p {
					t.Errorf("%s (-want +got):\n%s", p, diff)
				}
			}
			for _, p := range missing {
				if e, err := d.Stat(p); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %+v, %v; want nothing", p, e, err)
				}
			}
			for _, p := range []string{".", "etc", "empty", "large"} {
				got, err := d.Names(p)
				if err != nil {
					t.Fatal(err)
				}
				want, err := plain.Names(p)
				if err != nil {
					t.Fatal(err)
				}
				got = slices.Clone(got)
				slices.Sort(got)
				slices.Sort(want)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", p, diff)
				}
			}
		}
	}
}

// TestDirAsksOnce: what is remembered is not looked for again. The directory is
// moved away to show that.
func TestDirAsksOnce(t *testing.T) {
	t.Parallel()
	root := newDirTree(t)
	d := NewDir(root, NewRoom(1000))
	for range 2 {
		if e, err := d.Stat("etc/passwd"); err != nil || e.Size != 4 {
			t.Fatalf("%+v, %v", e, err)
		}
		if _, err := d.Stat("etc/nothing"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.Rename(root, root+"-away"); err != nil {
		t.Fatal(err)
	}
	if e, err := d.Stat("etc/passwd"); err != nil || e.Type != layers.Regular || e.Size != 4 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := d.Stat("etc/conf.d"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is listed, but was not asked for: %v", err)
	}
	if names, err := d.Names("etc"); err != nil || len(names) != 3 {
		t.Errorf("%v, %v", names, err)
	}
}

// TestRoom: all that share it stop remembering when it is full.
func TestRoom(t *testing.T) {
	t.Parallel()
	room := NewRoom(20)
	for i := range 10 {
		root := newDirTree(t)
		d := NewDir(root, room)
		for range 2 {
			for _, p := range []string{"etc/passwd", "empty", "large/file-1", "large/nothing"} {
				_, _ = d.Stat(p)
			}
		}
		if i == 0 && room.Full() {
			t.Fatal("room for 20 is full at once")
		}
		if n := len(d.entries) + len(d.dirs); room.Full() && i > 5 && n > 0 {
			t.Errorf("%d things remembered without room", n)
		}
	}
	if !room.Full() {
		t.Error("there is still room")
	}
}

func BenchmarkLookup100Layers(b *testing.B) {
	var dirs []string
	for i := range 100 {
		dir := filepath.Join(b.TempDir(), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			b.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	room := NewRoom(10_000)
	list := make([]Layer, len(dirs))
	for i, d := range dirs {
		list[i] = NewDir(d, room)
	}
	for b.Loop() {
		if _, err := New(list).Lookup("etc/passwd"); !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
	}
}
