package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	tree := newTree(t, `
		f 644 0:0 a/f x
		l 0:0 abs -> /a/f
		l 0:0 rel -> a
		l 0:0 a/up -> ../../..
		l 0:0 dangling -> a/none/x
		l 0:0 loop -> loop
		l 0:0 root -> /
		l 0:0 chain -> rel/../abs
	`)
	for _, tt := range []struct {
		path   string
		follow bool
		want   string
		err    error
	}{
		{"/", true, ".", nil},
		{"", true, ".", nil},
		{"/a/f", true, "a/f", nil},
		{"a//./f/", true, "a/f", nil},
		{"/abs", true, "a/f", nil},
		{"/abs", false, "abs", nil},
		{"/rel/f", false, "a/f", nil},
		{"/a/up", true, ".", nil},
		{"/a/up/a/up/rel/f", true, "a/f", nil},
		{"/../../a/f", true, "a/f", nil},
		{"/root", true, ".", nil},
		{"/root/a", true, "a", nil},
		{"/rel/..", true, ".", nil},
		{"/chain", true, "a/f", nil},
		{"/none", true, "none", fs.ErrNotExist},
		{"/none/x/../y", true, "none/y", fs.ErrNotExist},
		{"/none/../a/f", true, "a/f", nil},
		{"/a/f/x", true, "a/f/x", fs.ErrNotExist},
		{"/dangling", true, "a/none/x", fs.ErrNotExist},
		{"/dangling", false, "dangling", nil},
	} {
		got, e, err := Resolve(tree, tt.path, tt.follow)
		if got != tt.want || !errors.Is(err, tt.err) || (err == nil) != (e.Type != 0) {
			t.Errorf("%q, follow %v: got %q, %v, %v", tt.path, tt.follow, got, e.Type, err)
		}
	}
	if _, _, err := Resolve(tree, strings.Repeat("a/", 3000), true); err == nil || !strings.Contains(err.Error(), "longer than 4096") {
		t.Errorf("long path: %v", err)
	}
	if _, _, err := Resolve(tree, "/loop/x", true); err == nil || !strings.Contains(err.Error(), "too many symbolic links") {
		t.Errorf("loop: %v", err)
	}
}

// randomTree makes a tree of what a fuzzer says: names and links of few letters,
// so that they meet.
func randomTree(data []byte) memory {
	names := []string{"a", "b", "c"}
	m := memory{".": {Path: ".", Type: layers.Dir, Mode: 0o755}}
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	random := func() string {
		var parts []string
		for range 1 + next()%3 {
			parts = append(parts, names[next()%len(names)])
		}
		return strings.Join(parts, "/")
	}
	for len(data) > 0 {
		p := random()
		free := m[p].Type == 0
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			free = free && (m[dir].Type == 0 || m[dir].Type == layers.Dir)
		}
		if !free {
			continue
		}
		switch next() % 4 {
		case 0:
			m.add(p, layers.Entry{Type: layers.Dir, Mode: uint32(next()) & 0o777})
		case 1:
			m.add(p, layers.Entry{Type: layers.Symlink, Mode: 0o777, Link: []string{"", "/", "../", "../../../"}[next()%4] + random()})
		default:
			m.add(p, layers.Entry{Type: layers.Regular, Mode: 0o644, Data: []byte(p), Size: int64(len(p))})
		}
	}
	return m
}

// FuzzResolve: no path leads out of the tree, what is resolved has no links
// left, and it is where the kernel finds it that has the tree as its root.
func FuzzResolve(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 0, 0, 1}, "a/b/../c")
	f.Add([]byte{0, 0, 1, 3, 0, 0, 0, 1, 1, 1, 0, 0}, "/a/../../b")
	f.Add([]byte{0, 0, 1, 0, 1, 1, 1, 1, 3, 0, 0, 0, 2, 1, 0, 0, 0}, "b/b/../../a/.")
	f.Fuzz(func(t *testing.T, data []byte, p string) {
		tree := randomTree(data)
		root := tree.make(t)
		for _, follow := range []bool{false, true} {
			got, e, err := Resolve(tree, p, follow)
			there, kernelErr := kernelResolve(root, p, follow)
			if err != nil {
				if kernelErr == nil {
					t.Fatalf("%q is %q for the kernel, but: %v", p, there, err)
				}
				continue
			}
			if got != "." && (!fs.ValidPath(got) || strings.HasPrefix(got, "/")) {
				t.Fatalf("%q led to %q", p, got)
			}
			if tree[got].Type != e.Type || follow && e.Type == layers.Symlink {
				t.Fatalf("%q led to %q, which is %c and not %c", p, got, tree[got].Type, e.Type)
			}
			for dir := path.Dir(got); dir != "."; dir = path.Dir(dir) {
				if tree[dir].Type != layers.Dir {
					t.Fatalf("%q led to %q, through %q", p, got, dir)
				}
			}
			if kernelErr == nil && there != got {
				t.Fatalf("%q led to %q, the kernel finds %q", p, got, there)
			}
		}
	})
}

// make makes the tree in a directory.
func (m memory) make(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, p := range slices.Sorted(maps.Keys(m)) { // parents first
		if p == "." {
			continue
		}
		host, err := filepath.Join(root, p), error(nil)
		switch e := m[p]; e.Type {
		case layers.Dir:
			err = os.Mkdir(host, 0o755)
		case layers.Symlink:
			err = os.Symlink(e.Link, host)
		default:
			err = os.WriteFile(host, e.Data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// kernelResolve is Resolve by the kernel.
func kernelResolve(root, p string, follow bool) (string, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if !follow {
		how.Flags |= unix.O_NOFOLLOW
	}
	// What is after the last name would have the kernel follow a link there.
	for strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") {
		p = strings.TrimSuffix(strings.TrimSuffix(p, "."), "/")
	}
	if p == "" {
		p = "."
	}
	fd, err := unix.Openat2(dir, p, &how)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	real, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
	if err != nil {
		return "", err
	}
	return filepath.Rel(root, real)
}

// FuzzApply: whatever the trees and paths are, the result is a layer, it is the
// same each time, and nothing panics.
func FuzzApply(f *testing.F) {
	f.Add([]byte{0, 0, 1, 1, 0, 0, 1}, []byte{0, 0, 0}, "/a", "/b/", byte(0))
	f.Add([]byte{0, 0, 1, 3, 0, 0, 0, 1, 1, 1, 0, 0}, []byte{1, 0, 1, 1, 2, 0}, "/*", "/a/../c/.", byte(7))
	f.Add([]byte{2, 0, 1, 3, 0, 0, 0, 1, 1, 1, 0, 0}, []byte{1, 0, 1, 1, 2, 0}, "/a*/b", "/", byte(15))
	f.Fuzz(func(t *testing.T, src, base []byte, from, to string, flags byte) {
		c := dockerfile(from, "/"+to)
		c.ContentsOnly, c.FollowLinks, c.Wildcard = flags&1 == 0, flags&2 == 0, flags&4 == 0
		if flags&8 != 0 {
			c.Exclude = []string{"a", "!a/b"}
		}
		if flags&16 != 0 {
			c.Include = []string{"*/b", "c"}
		}
		as := []plan.Action{c}
		if flags&32 != 0 {
			as = append(as, &plan.Remove{Path: "/a", AllowMissing: true}, c)
		}
		op := &plan.File{Actions: as}
		in := Input{Tree: randomTree(src), Owned: flags&64 != 0}
		got, err := Apply(context.Background(), op, randomTree(base), inputsOf(in), noStage)
		if err != nil {
			return
		}
		checkEntries(t, got)
		if _, err := Select(context.Background(), op, 1, in); err != nil {
			t.Errorf("what can be copied has no digest: %v", err)
		}
		again, err := Apply(context.Background(), op, randomTree(base), inputsOf(in), noStage)
		if err != nil || format(again) != format(got) {
			t.Errorf("again: %v\n%s\n%s", err, format(got), format(again))
		}
	})
}

// TestFromDirectory copies out of a directory of the user, hostile links in it.
func TestFromDirectory(t *testing.T) {
	t.Parallel()
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"abs": outside, "rel": "../" + filepath.Base(outside), "sys": "/etc"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("f"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "f"), filepath.Join(dir, "g")); err != nil {
		t.Fatal(err)
	}
	d, err := source.OpenDir(dir, source.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, src := range []string{"/abs/secret", "/rel/secret", "/abs", "/sys/passwd"} {
		if _, err := apply(t, &plan.File{Actions: actions(dockerfile(src, "/to/"))}, nil, Input{Tree: d}); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", src, err)
		}
	}
	got, err := apply(t, &plan.File{Actions: actions(dockerfile("/", "/to/", exclude("abs", "rel", "sys")))}, nil, Input{Tree: d})
	want := "d 755 0:0 to\nf 640 0:0 to/f < 1:f\nf 640 0:0 to/g < 1:g\n"
	if err != nil || format(got) != want {
		t.Errorf("got\n%s%v", format(got), err)
	}
}

// hosted is a tree that knows the files of the host.
type hosted struct {
	memory
	dirs []string // layers; the first that has a path shows
}

func (h hosted) HostPath(p string) (string, error) {
	i := slices.IndexFunc(h.dirs, func(d string) bool { _, err := os.Lstat(filepath.Join(d, p)); return err == nil })
	if i < 0 {
		return "", nil
	}
	return filepath.Join(h.dirs[i], p), nil
}

func TestHardlinks(t *testing.T) {
	t.Parallel()
	one, two := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(one, "a"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{filepath.Join(one, "b"), filepath.Join(one, "z"), filepath.Join(two, "other-layer")} {
		if err := os.Link(filepath.Join(one, "a"), to); err != nil {
			t.Fatal(err)
		}
	}
	src := hosted{newTree(t, "f 644 0:0 a x\nf 644 0:0 b x\nf 644 0:0 z x\nf 644 0:0 other-layer x"), []string{one, two}}
	got, err := apply(t, &plan.File{Actions: actions(dockerfile("/", "/to/"))}, nil, Input{Tree: src, Owned: true})
	want := lines(`
		d 755 0:0 to
		f 644 0:0 to/a < 1:a
		h to/b -> to/a
		f 644 0:0 to/other-layer < 1:other-layer
		h to/z -> to/a`)
	if err != nil || format(got) != want {
		t.Errorf("got\n%s%v", format(got), err)
	}
	// One that is replaced later is no link any more, and what it was the
	// first name of stays whole.
	got, err = apply(t, &plan.File{Actions: actions(dockerfile("/", "/to/", exclude("other-layer", "z")), dockerfile("/z", "/to/a"))}, nil, Input{Tree: src, Owned: true})
	want = lines(`
		d 755 0:0 to
		f 644 0:0 to/a < 1:z
		f 644 0:0 to/b < 1:b`)
	if err != nil || format(got) != want {
		t.Errorf("got\n%s%v", format(got), err)
	}
	// A name that is not taken does not count.
	linked, err := Select(context.Background(), &plan.File{Actions: actions(dockerfile("/a", "/"))}, 1, Input{Tree: src, Owned: true})
	if err != nil {
		t.Fatal(err)
	}
	alone, err := Select(context.Background(), &plan.File{Actions: actions(dockerfile("/a", "/"))}, 1, Input{Tree: src.memory, Owned: true})
	if err != nil || linked.Digest != alone.Digest {
		t.Errorf("digests %s and %s, %v", linked.Digest, alone.Digest, err)
	}
}
