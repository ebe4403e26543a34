package snapshot_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
)

// fuzzInput takes numbers out of a fuzzer's bytes; 0 when there are no more.
type fuzzInput []byte

func (in *fuzzInput) next(n int) int {
	if len(*in) == 0 {
		return 0
	}
	b := (*in)[0]
	*in = (*in)[1:]
	return int(b) % n
}

// path is one of few, so that operations meet.
func (in *fuzzInput) path() string {
	names := []string{"a", "b", "c"}
	var parts []string
	for range 1 + in.next(3) {
		parts = append(parts, names[in.next(len(names))])
	}
	return path.Join(parts...)
}

// mutate does in a file system what in says. Nothing that it does goes through
// a symbolic link.
func (in *fuzzInput) mutate(root string) {
	for range 40 {
		if len(*in) == 0 {
			return
		}
		what, p := in.next(9), in.path()
		plain := true
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			info, err := os.Lstat(filepath.Join(root, dir))
			plain = plain && err == nil && info.IsDir()
		}
		if !plain {
			continue
		}
		host := filepath.Join(root, p)
		info, err := os.Lstat(host)
		switch {
		case what <= 1 && (err != nil || info.Mode().IsRegular()):
			_ = os.WriteFile(host, bytes.Repeat([]byte("x"), in.next(5)), 0o644)
		case what == 2:
			_ = os.Mkdir(host, 0o755)
		case what == 3:
			_ = os.RemoveAll(host)
		case what == 4:
			_ = os.Symlink([]string{"a", "/b/c", "../..", "../../../etc"}[in.next(4)], host)
		case what == 5 && err == nil && info.Mode()&os.ModeSymlink == 0:
			_ = os.Chmod(host, []os.FileMode{0o755, 0o700, 0o1777, 0o711 | os.ModeSetuid}[in.next(4)])
		case what == 6:
			_ = os.Link(host, filepath.Join(root, in.path()))
		case what == 7:
			_ = os.Rename(host, filepath.Join(root, []string{"a", "b", "c"}[in.next(3)]))
		case what == 8:
			_ = os.RemoveAll(host)
			_ = os.Mkdir(host, 0o750)
			_ = os.WriteFile(filepath.Join(host, "a"), []byte("new"), 0o600)
		}
	}
}

// treeOf lists what a tree of layers shows, with contents.
func (s store) treeOf(t testing.TB, tree layers.Tree, src snapshot.Sources) string {
	t.Helper()
	v, err := s.View(t.Context(), tree, src)
	if err != nil {
		t.Fatal(err)
	}
	return listing(t, v.ReadDir, func(p string) string { return content(t, v, p) })
}

// plain lists a directory in the same way.
func plain(t testing.TB, root string) string {
	t.Helper()
	dir := merge.Dirs([]string{root})
	return listing(t, func(p string) ([]layers.Entry, error) {
		var entries []layers.Entry
		list, err := dir.ReadDir(p)
		for _, f := range list {
			entries = append(entries, f.Entry)
		}
		return entries, err
	}, func(p string) string {
		data, err := os.ReadFile(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	})
}

// listing lists a tree, a line for each entry. Links are told as the files that
// they are.
func listing(t testing.TB, readDir func(string) ([]layers.Entry, error), content func(string) string) string {
	t.Helper()
	var b strings.Builder
	var walk func(dir string)
	walk = func(dir string) {
		list, err := readDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			fmt.Fprintf(&b, "%c %s %04o %d:%d %s", e.Type, e.Path, e.Mode, e.UID, e.GID, e.Link)
			if e.Type == layers.Regular {
				fmt.Fprintf(&b, "%q", content(e.Path))
			}
			b.WriteByte('\n')
			if e.Type == layers.Dir {
				walk(e.Path)
			}
		}
	}
	walk(".")
	return b.String()
}

// FuzzDiff: whatever was done in a tree, the layer of it, as a tar stream and
// unpacked again on the same layers elsewhere, makes the tree that was there;
// and what is packed of the unpacked layer is the same stream.
func FuzzDiff(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x01\x00\x00\x03\x02\x00\x01"), []byte("\x03\x00\x00"))
	f.Add([]byte("\x02\x00\x00\x00\x01\x00\x00\x03\x02\x00\x01"), []byte("\x08\x00\x00\x06\x00\x00\x00\x02"))
	f.Add([]byte("\x02\x00\x00\x08\x01\x00\x00"), []byte("\x07\x00\x00\x02\x04\x00\x00\x01"))
	f.Add([]byte("\x00\x00\x00\x03\x06\x00\x00\x00\x01"), []byte("\x05\x00\x00\x01\x03\x00\x01"))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		s := newStore(t)
		var tree layers.Tree
		contents := &contents{blobs: map[digest.Digest][]byte{}}
		other := newStore(t)
		var unpacked layers.Tree
		for _, script := range [][]byte{before, after} {
			a, err := s.Prepare(t.Context(), tree, snapshot.Sources{})
			if err != nil {
				t.Fatal(err)
			}
			in := fuzzInput(script)
			in.mutate(a.Mount.Bind)
			was := plain(t, a.Mount.Bind)
			id, err := a.Commit(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			tree = append(tree, id)
			if got := s.treeOf(t, tree, snapshot.Sources{}); got != was {
				t.Fatalf("the layers make another tree (-was +is):\n%s", cmp.Diff(was, got))
			}
			p := s.packDir(t, id)
			contents.blobs[p.desc.Digest] = p.data
			copied, err := other.AddBlob(p.diffID, p.desc)
			if err != nil {
				t.Fatal(err)
			}
			unpacked = append(unpacked, copied)
			if got := other.treeOf(t, unpacked, contents.sources()); got != was {
				t.Fatalf("unpacked elsewhere, the layers make another tree (-was +is):\n%s", cmp.Diff(was, got))
			}
			if again := other.packDir(t, copied); again.diffID != p.diffID {
				t.Fatalf("unpacked and packed again, the layer has other bytes")
			}
		}
	})
}

// packDir packs the layer directory that s has of id.
func (s store) packDir(t testing.TB, id layers.ID) packed {
	t.Helper()
	dir := s.ensure(t, id, snapshot.Sources{})
	var tar bytes.Buffer
	open := func(e layers.Entry) (io.ReadCloser, error) { return layers.OpenFile(filepath.Join(dir, e.Path)) }
	if err := layers.WriteTar(t.Context(), &tar, layers.Walk(dir), open, layers.TarOptions{}); err != nil {
		t.Fatal(err)
	}
	return packTar(t, compress.Gzip, tar.Bytes())
}

// FuzzWhiteouts: layers with whiteouts and opaque marks, in each form that a
// layer can have, show what the image specification says (layer.md): a whiteout
// hides what lower layers have at its path and below, an opaque mark what they
// have below it, and what a layer adds replaces what is not a directory in both.
func FuzzWhiteouts(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x01\x02\x01\x00\x00\xff\x03\x00\x00"))
	f.Add([]byte("\x02\x00\x00\x01\x01\x00\x00\x01\xff\x04\x00\x00\xff\x02\x00\x01"))
	f.Add([]byte("\x02\x01\x00\x01\xff\x03\x00\x00\xff\x01\x00\x00\xff\x04\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newStore(t)
		model := map[string]layers.Entry{}
		trees := map[string]layers.Tree{}
		contents := &contents{blobs: map[digest.Digest][]byte{}}
		for n, part := range bytes.SplitN(data, []byte{0xff}, 4) {
			in := fuzzInput(part)
			entries := in.layer(n)
			applyModel(model, entries)
			recipe, err := s.AddRecipe(entries)
			if err != nil {
				t.Fatal(err)
			}
			p := pack(t, compress.Gzip, entries...)
			contents.blobs[p.desc.Digest] = p.data
			blob, err := s.AddBlob(p.diffID, p.desc)
			if err != nil {
				t.Fatal(err)
			}
			forms := map[string]layers.ID{"recipe": recipe, "directory": s.addEntries(t, entries...), "blob": blob}
			names := slices.Sorted(maps.Keys(forms))
			for form, id := range forms {
				trees[form] = append(trees[form], id)
			}
			trees["mixed"] = append(trees["mixed"], forms[names[len(part)%len(names)]])
		}
		want := listing(t, func(dir string) ([]layers.Entry, error) {
			var list []layers.Entry
			for _, p := range slices.Sorted(maps.Keys(model)) {
				if path.Dir(p) == dir {
					list = append(list, model[p])
				}
			}
			return list, nil
		}, func(p string) string { return string(model[p].Data) })
		for form, tree := range trees {
			if got := s.treeOf(t, tree, contents.sources()); got != want {
				t.Errorf("%s (-want +got):\n%s", form, cmp.Diff(want, got))
			}
		}
	})
}

// layer makes the entries of a layer: no two have the same path, and parents
// are directories of the layer.
func (in *fuzzInput) layer(n int) []layers.Entry {
	have := map[string]layers.Entry{}
	for len(*in) > 0 && len(have) < 30 {
		what, p := in.next(5), in.path()
		if _, ok := have[p]; ok {
			continue
		}
		free := true
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			e, ok := have[d]
			free = free && (!ok || e.Type == layers.Dir)
		}
		if !free {
			continue
		}
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			if have[d].Type == 0 {
				have[d] = dir(d)
			}
		}
		switch what {
		case 0:
			have[p] = symlink(p, "a")
		case 1:
			have[p] = file(p, fmt.Sprint(p, n))
		case 2:
			have[p] = dir(p)
		case 3:
			have[p] = whiteout(p)
		case 4:
			have[p] = opaque(p)
		}
	}
	return slices.SortedFunc(maps.Values(have), func(a, b layers.Entry) int { return layers.ComparePaths(a.Path, b.Path) })
}

// applyModel puts a layer on a tree, as the specification says.
func applyModel(tree map[string]layers.Entry, entries []layers.Entry) {
	below := func(dir string) {
		maps.DeleteFunc(tree, func(p string, _ layers.Entry) bool { return strings.HasPrefix(p, dir+"/") })
	}
	for _, e := range entries { // what is removed is what was there before
		if e.Type == layers.Whiteout || e.Opaque || e.Type != layers.Dir || tree[e.Path].Type != layers.Dir {
			below(e.Path)
			delete(tree, e.Path)
		}
	}
	for _, e := range entries {
		if e.Type == layers.Whiteout {
			continue
		}
		e.Opaque = false
		tree[e.Path] = e
	}
}
