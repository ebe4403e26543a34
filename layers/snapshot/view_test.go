package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
)

func content(t testing.TB, v *snapshot.View, path string) string {
	t.Helper()
	r, err := v.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// lowViewLayers and so on are the layers of the tree that TestView sees.
var (
	viewLow = []layers.Entry{
		dir("etc"), file("etc/group", "low"), file("etc/passwd", "low"), file("etc/shadow", "low"),
		dir("hidden"), file("hidden/f", "low"),
		dir("made"), file("made/old", "low"),
		dir("to-file"), file("to-file/f", "low"),
		file("to-dir", "low"),
		dir("deep"), dir("deep/er"), file("deep/er/low", "low"),
	}
	viewMiddle = []layers.Entry{
		dir("etc"), file("etc/passwd", "middle"), whiteout("etc/shadow"),
		whiteout("hidden"),
		opaque("made"), file("made/new", "middle"),
		file("to-file", "middle"),
		dir("to-dir"), file("to-dir/f", "middle"),
		dir("deep"), dir("deep/er"), file("deep/er/middle", "middle"),
	}
	viewHigh = []layers.Entry{
		dir("etc"), from("etc/from", "high"), file("etc/group", "high"), symlink("etc/self", "."), symlink("link", "etc"),
		dir("hidden"), file("hidden/again", "high"),
		dir("deep"), dir("deep/er"), file("deep/er/high", "high"), hardlink("deep/er/linked", "deep/er/high"),
	}
)

const viewListing = `5 deep 0755
5 deep/er 0755
0 deep/er/high 0644 4 = high
0 deep/er/linked 0644 4 = high
0 deep/er/low 0644 3 = low
0 deep/er/middle 0644 6 = middle
5 etc 0755
0 etc/from 0644 4 = high
0 etc/group 0644 4 = high
0 etc/passwd 0644 6 = middle
2 etc/self .
5 hidden 0755
0 hidden/again 0644 4 = high
2 link etc
5 made 0755
0 made/new 0644 6 = middle
5 to-dir 0755
0 to-dir/f 0644 6 = middle
0 to-file 0644 6 = middle
`

// viewTree makes the tree in one of the forms that layers have.
func viewTree(t *testing.T, s store, form string) (layers.Tree, snapshot.Sources) {
	t.Helper()
	c := &contents{files: map[string]string{"src/etc/from": "high"}, blobs: map[digest.Digest][]byte{}}
	var tree layers.Tree
	for i, entries := range [][]layers.Entry{viewLow, viewMiddle, viewHigh} {
		var id layers.ID
		var err error
		kind := form
		if form == "mixed" {
			kind = []string{"blobs", "directories", "recipes"}[i]
		}
		switch kind {
		case "recipes":
			id, err = s.AddRecipe(entries)
		case "made recipes":
			if id, err = s.AddRecipe(entries); err == nil {
				s.ensure(t, id, c.sources())
			}
		case "directories":
			id, err = s.AddEntries(t.Context(), entries, func(e layers.Entry) (string, error) {
				path := filepath.Join(t.TempDir(), "f")
				return path, os.WriteFile(path, []byte(c.files[e.Origin.Path]), 0o600)
			})
		case "blobs":
			inline := append([]layers.Entry{}, entries...)
			for i, e := range inline {
				if content, ok := c.files[e.Origin.Path]; ok {
					inline[i] = file(e.Path, content)
				}
			}
			p := pack(t, compress.Gzip, inline...)
			c.blobs[p.desc.Digest] = p.data
			id, err = s.AddBlob(p.diffID, p.desc)
		}
		if err != nil {
			t.Fatal(err)
		}
		tree = append(tree, id)
	}
	return tree, c.sources()
}

func TestView(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"recipes", "made recipes", "directories", "blobs", "mixed"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			tree, src := viewTree(t, s, form)
			v, err := s.View(t.Context(), tree, src)
			if err != nil {
				t.Fatal(err)
			}
			got, err := listView(t, v, ".")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(viewListing, got); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
			// Looked up one by one by a view that has listed nothing.
			v, err = s.View(t.Context(), tree, src)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(viewListing) {
				path := strings.Fields(line)[1]
				e, err := v.Lookup(path)
				if err != nil || e.Path != path || byte(e.Type) != line[0] || e.Opaque {
					t.Errorf("%s is %+v, %v", path, e, err)
				}
			}
			for _, path := range []string{
				"etc/shadow", "hidden/f", "made/old", "to-file/f", "nothing", "nothing/f",
				"link/passwd", "etc/self/passwd", "etc/passwd/f", "etc/self/.",
			} {
				if e, err := v.Lookup(path); err == nil {
					t.Errorf("%s is %+v", path, e)
				} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("%s: %v", path, err)
				}
				if _, err := v.ReadDir(path); err == nil {
					t.Errorf("%s was listed", path)
				}
				if _, err := v.Open(t.Context(), path); err == nil {
					t.Errorf("%s was opened", path)
				}
			}
			for _, path := range []string{"", "/", "/etc", "../etc", "etc/", "etc//passwd", "etc/../etc"} {
				if _, err := v.Lookup(path); !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("%q: error %v, want ErrInvalid", path, err)
				}
			}
			for _, path := range []string{"link", "etc"} {
				if _, err := v.Open(t.Context(), path); err == nil {
					t.Errorf("%s was opened", path)
				}
				if _, err := v.HostPath(path); err == nil {
					t.Errorf("%s has a path", path)
				}
			}
		})
	}
}

// listView lists a tree with contents, digests and host paths compared.
func listView(t testing.TB, v *snapshot.View, dir string) (string, error) {
	entries, err := v.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range entries {
		line, err := describe(seq([]layers.Entry{e}))
		if err != nil {
			return "", err
		}
		b.WriteString(strings.TrimSuffix(line, "\n"))
		if e.Type == layers.Regular {
			got := content(t, v, e.Path)
			b.WriteString(" = " + got)
			if d, err := v.Digest(t.Context(), e.Path); err != nil || d != digest.FromString(got) {
				t.Errorf("%s has digest %s, %v", e.Path, d, err)
			}
			path, err := v.HostPath(e.Path)
			if err != nil {
				return "", err
			}
			if data, err := os.ReadFile(path); path != "" && (err != nil || string(data) != got) {
				t.Errorf("%s is at %s with %q, %v", e.Path, path, data, err)
			}
		}
		b.WriteByte('\n')
		if e.Type == layers.Dir {
			sub, err := listView(t, v, e.Path)
			if err != nil {
				return "", err
			}
			b.WriteString(sub)
		}
	}
	return b.String(), nil
}

func TestViewTogether(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	tree, src := viewTree(t, s, "mixed")
	v, err := s.View(t.Context(), tree, src)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got, err := listView(t, v, ".")
			if err != nil || got != viewListing {
				t.Errorf("tree is %s, %v", got, err)
			}
		})
	}
	wg.Wait()
}

// TestViewRemembersDigests: a file is hashed once, whatever process asks.
func TestViewRemembersDigests(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, src := s.add(t, pack(t, compress.Gzip, dir("a"), file("a/f", "content"), file("g", "other")))
	look := func(s store) digest.Digest {
		v, err := s.View(t.Context(), layers.Tree{id}, src)
		if err != nil {
			t.Fatal(err)
		}
		d, err := v.Digest(t.Context(), "a/f")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := digest.FromString("content")
	if got := look(s); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	// Now the file can't be hashed any more.
	if err := os.WriteFile(s.root.Path("layers", string(id), "fs/a/f"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := look(openStore(t, s.root.Dir())); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	// A torn memo is none.
	if err := os.Truncate(s.root.Path("layers", string(id), "digests"), 80); err != nil {
		t.Fatal(err)
	}
	if got := look(openStore(t, s.root.Dir())); got != digest.FromString("changed") {
		t.Errorf("digest %s of a torn memo", got)
	}
}

// TestViewOpaqueRoot: a layer may hide all that is below it.
func TestViewOpaqueRoot(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	low := s.addEntries(t, file("low", ""))
	high := s.addEntries(t, opaque("."), file("high", ""))
	v, err := s.View(t.Context(), layers.Tree{low, high}, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := v.ReadDir(".")
	if err != nil || len(list) != 1 || list[0].Path != "high" {
		t.Errorf("root has %v, %v", list, err)
	}
}

func TestViewOfNothing(t *testing.T) {
	t.Parallel()
	v, err := newStore(t).View(t.Context(), nil, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := v.Lookup("."); err != nil || e.Type != layers.Dir || e.Mode != 0o755 {
		t.Errorf("root is %+v, %v", e, err)
	}
	if list, err := v.ReadDir("."); err != nil || len(list) != 0 {
		t.Errorf("root has %v, %v", list, err)
	}
	if _, err := v.Lookup("f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want ErrNotExist", err)
	}
}

func BenchmarkViewLookup500(b *testing.B) {
	s := newStore(b)
	tree := layers.Tree{s.addEntries(b, dir("etc"), file("etc/passwd", "root"))}
	for i := range 499 {
		tree = append(tree, s.addEntries(b, file(fmt.Sprint("f", i), "")))
	}
	for b.Loop() {
		v, err := s.View(context.Background(), tree, snapshot.Sources{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := v.Lookup("etc/passwd"); err != nil {
			b.Fatal(err)
		}
	}
}
