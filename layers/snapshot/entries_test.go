package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
)

// tree is entries of all sorts, and what is at their origins.
func tree() ([]layers.Entry, *contents) {
	script := from("app/run", "#!/bin/sh")
	script.Mode = 0o4755
	attr := from("app/attr", "attr")
	attr.Xattrs = map[string]string{"user.x": "1"}
	timed := file("app/timed", "t")
	timed.ModTime = time.Unix(1234567890, 0)
	tmp := dir("tmp")
	tmp.Mode = 0o1777
	entries := []layers.Entry{
		dir("app"),
		attr,
		hardlink("app/link", "app/attr"),
		script,
		timed,
		symlink("bin", "/usr/bin"),
		{Path: "fifo", Type: layers.Fifo, Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()},
		whiteout("gone"),
		opaque("only"),
		file("only/this", ""),
		tmp,
	}
	return entries, &contents{files: map[string]string{"src/app/run": "#!/bin/sh", "src/app/attr": "attr"}}
}

const treeListing = `5 app 0755
0 app/attr 0644 4 user.x=1
1 app/link app/attr user.x=1
0 app/run 4755 9
0 app/timed 0644 1
2 bin /usr/bin
6 fifo
w gone
5 only 0755 opaque
0 only/this 0644 0
5 tmp 1777
`

func TestRecipe(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	entries, c := tree()
	id, err := s.AddRecipe(entries)
	if err != nil {
		t.Fatal(err)
	}
	if c.opens != 0 {
		t.Errorf("%d files were read to make a recipe", c.opens)
	}
	before := described(t, s.Entries(t.Context(), id, snapshot.Sources{}))
	if diff := cmp.Diff(treeListing, before); diff != "" {
		t.Errorf("recipe (-want +got):\n%s", diff)
	}
	d := s.ensure(t, id, c.sources())
	if diff := cmp.Diff(treeListing, described(t, layers.Walk(d))); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, described(t, s.Entries(t.Context(), id, snapshot.Sources{}))); diff != "" {
		t.Errorf("recipe with a directory (-want +got):\n%s", diff)
	}
	times := map[string]time.Time{}
	for e, err := range layers.Walk(d) {
		if err != nil {
			t.Fatal(err)
		}
		times[e.Path] = e.ModTime
	}
	if !times["app/timed"].Equal(time.Unix(1234567890, 0)) || !times["app"].Equal(layers.DefaultModTime) || !times["bin"].Equal(layers.DefaultModTime) {
		t.Errorf("times are %v", times)
	}
	s.noTemp(t)
}

func TestRecipeRefuses(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	unknown := from("f", "x")
	unknown.Digest = ""
	staged := from("f", "x")
	staged.Origin.Staged = "/tmp/x"
	odd := from("f", "x")
	odd.Digest = "md5:1234"
	for name, entries := range map[string][]layers.Entry{
		"no digest":  {unknown},
		"staged":     {staged},
		"odd digest": {odd},
		"twice":      {file("f", ""), file("f", "")},
		"outside":    {file("../f", "")},
		"absolute":   {file("/f", "")},
		"not clean":  {file("a//f", "")},
	} {
		if _, err := s.AddRecipe(entries); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	s.noTemp(t)
}

func TestRecipeOfChangedFiles(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{"other": "otherwise", "longer": "#!/bin/sh\n", "shorter": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			entries, c := tree()
			id, err := s.AddRecipe(entries)
			if err != nil {
				t.Fatal(err)
			}
			good := maps.Clone(c.files)
			c.files["src/app/run"] = content
			_, err = s.Ensure(t.Context(), layers.Tree{id}, c.sources())
			if err == nil || !strings.Contains(err.Error(), "app/run") || !strings.Contains(err.Error(), "changed") {
				t.Errorf("error %v, want that app/run changed", err)
			}
			s.noTemp(t)
			c.files = good
			s.ensure(t, id, c.sources())
		})
	}
}

// TestRecipeFromBlob: when nobody has the files of a recipe any more, the blob
// that it was packed into serves.
func TestRecipeFromBlob(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, err := s.AddRecipe([]layers.Entry{from("a/f", "content")})
	if err != nil {
		t.Fatal(err)
	}
	p := pack(t, compress.Zstd, dir("a"), file("a/f", "content"))
	if err := s.Update(id, func(l *snapshot.Layer) { l.DiffID = p.diffID; l.Blobs = append(l.Blobs, p.desc) }); err != nil {
		t.Fatal(err)
	}
	c := &contents{blobs: map[digest.Digest][]byte{p.desc.Digest: p.data}}
	view, err := s.View(t.Context(), layers.Tree{id}, c.sources())
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, view, "a/f"); got != "content" {
		t.Errorf("read %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(s.ensure(t, id, c.sources()), "a/f")); err != nil || string(got) != "content" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestDamagedRecipe(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	entries, c := tree()
	for name, use := range map[string]func(s store, id layers.ID) error{
		"entries": func(s store, id layers.ID) error {
			_, err := describe(s.Entries(t.Context(), id, c.sources()))
			return err
		},
		"ensure": func(s store, id layers.ID) error {
			_, err := s.Ensure(t.Context(), layers.Tree{id}, c.sources())
			return err
		},
		"view": func(s store, id layers.ID) error {
			_, err := s.View(t.Context(), layers.Tree{id}, c.sources())
			return err
		},
	} {
		id, err := s.AddRecipe(entries)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(s.root.Path("layers", string(id), "recipe"), 100); err != nil {
			t.Fatal(err)
		}
		if err := use(s, id); !errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("%s: error %v, want ErrNotFound", name, err)
		}
		if ok, err := s.Lease(layers.Tree{id}); ok || err != nil {
			t.Errorf("%s: the layer is still there: %v", name, err)
		}
	}
	// A directory makes up for the recipe.
	id, err := s.AddRecipe(entries)
	if err != nil {
		t.Fatal(err)
	}
	s.ensure(t, id, c.sources())
	if err := os.Truncate(s.root.Path("layers", string(id), "recipe"), 100); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.root.Dir())
	if got := described(t, s.Entries(t.Context(), id, snapshot.Sources{})); got != treeListing {
		t.Errorf("entries are %s", got)
	}
}

func TestOpenEntry(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	entries, c := tree()
	recipe, err := s.AddRecipe(entries)
	if err != nil {
		t.Fatal(err)
	}
	made, err := s.AddRecipe(entries)
	if err != nil {
		t.Fatal(err)
	}
	s.ensure(t, made, c.sources())
	blob, src := s.add(t, pack(t, compress.Gzip, dir("app"), file("app/attr", "attr"), file("app/run", "#!/bin/sh")))
	for id, src := range map[layers.ID]snapshot.Sources{recipe: c.sources(), made: {}, blob: src} {
		for _, e := range []layers.Entry{from("app/attr", "attr"), from("app/run", "#!/bin/sh"), file("inline", "inline")} {
			r, err := s.OpenEntry(t.Context(), id, e, src)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close()); err != nil || digest.FromBytes(data) != e.Digest {
				t.Errorf("%s has %q, %v", e.Path, data, err)
			}
		}
	}
}

// TestOpenEntryStaysInside: a layer's symlinks lead nowhere.
func TestOpenEntryStaysInside(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	secret := t.TempDir()
	if err := os.WriteFile(filepath.Join(secret, "f"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := s.addEntries(t, symlink("d", secret), symlink("f", filepath.Join(secret, "f")))
	for _, path := range []string{"d/f", "f"} {
		if r, err := s.OpenEntry(t.Context(), id, from(path, "secret"), snapshot.Sources{}); err == nil {
			r.Close()
			t.Errorf("%s was opened", path)
		}
	}
}

func TestAddEntries(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	entries, c := tree()
	host := t.TempDir()
	for name, content := range c.files {
		path := filepath.Join(host, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	hostPath := func(e layers.Entry) (string, error) { return filepath.Join(host, e.Origin.Path), nil }
	id, err := s.AddEntries(t.Context(), entries, hostPath)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(treeListing, described(t, s.Entries(t.Context(), id, snapshot.Sources{}))); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
	st, err := os.Stat(filepath.Join(host, "src/app/attr"))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("the user's file has mode %v, %v", st.Mode(), err)
	}
	if l, err := s.Layer(id); err != nil || l.Size != 14 {
		t.Errorf("size %d, %v", l.Size, err)
	}
	if err := os.WriteFile(filepath.Join(host, "src/app/attr"), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.root.Path("layers", string(id), "fs/app/attr")); err != nil || string(got) != "attr" {
		t.Errorf("the layer has %q, %v after the user's file changed", got, err)
	}
	if _, err := s.AddEntries(t.Context(), entries, hostPath); err == nil || !strings.Contains(err.Error(), "app/attr: content changed") {
		t.Errorf("error %v, want that app/attr changed", err)
	}
	s.noTemp(t)
}

// TestAddEntriesLinks: files of other layers are linked if nothing about them
// is different.
func TestAddEntriesLinks(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	with := func(e layers.Entry, change func(*layers.Entry)) layers.Entry { change(&e); return e }
	at := time.Unix(1000, 5)
	base := s.addEntries(t, with(file("f", "content"), func(e *layers.Entry) { e.ModTime = at; e.Xattrs = map[string]string{"user.a": "1"} }))
	src := s.root.Path("layers", string(base), "fs", "f")
	same := with(from("same", "content"), func(e *layers.Entry) { e.Xattrs = map[string]string{"user.a": "1"} })
	tests := map[string]struct {
		e    layers.Entry
		link bool
	}{
		"any time":   {same, true},
		"same time":  {with(same, func(e *layers.Entry) { e.ModTime = at }), true},
		"other time": {with(same, func(e *layers.Entry) { e.ModTime = at.Add(1) }), false},
		"mode":       {with(same, func(e *layers.Entry) { e.Mode = 0o600 }), false},
		"xattrs":     {with(same, func(e *layers.Entry) { e.Xattrs = nil }), false},
		"xattr":      {with(same, func(e *layers.Entry) { e.Xattrs = map[string]string{"user.a": "2"} }), false},
	}
	for name, test := range tests {
		id, err := s.AddEntries(t.Context(), []layers.Entry{test.e}, func(layers.Entry) (string, error) { return src, nil })
		if err != nil {
			t.Fatal(err)
		}
		made := s.root.Path("layers", string(id), "fs", "same")
		if linked := ino(t, made) == ino(t, src); linked != test.link {
			t.Errorf("%s: linked %v, want %v", name, linked, test.link)
		}
		got := described(t, layers.Walk(filepath.Dir(made)))
		want := described(t, seq([]layers.Entry{test.e}))
		if got != want {
			t.Errorf("%s: made %s, want %s", name, got, want)
		}
	}

	// Two entries are two files, unless they say otherwise.
	second := with(same, func(e *layers.Entry) { e.Path = "second" })
	id, err := s.AddEntries(t.Context(), []layers.Entry{same, second, hardlink("third", "second")}, func(layers.Entry) (string, error) { return src, nil })
	if err != nil {
		t.Fatal(err)
	}
	got := described(t, layers.Walk(s.root.Path("layers", string(id), "fs")))
	if want := "0 same 0644 7 user.a=1\n0 second 0644 7 user.a=1\n1 third second user.a=1\n"; got != want {
		t.Errorf("made %s, want %s", got, want)
	}
}

func ino(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestAddEntriesMovesStagedFiles(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	stage, err := s.root.TempDir("stage")
	if err != nil {
		t.Fatal(err)
	}
	e := from("f", "content")
	e.Mode = 0o755
	e.Origin.Staged = filepath.Join(stage, "x")
	if err := os.WriteFile(e.Origin.Staged, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := ino(t, e.Origin.Staged)
	id := s.addEntries(t, e)
	made := s.root.Path("layers", string(id), "fs", "f")
	if ino(t, made) != want {
		t.Error("it was not moved")
	}
	if got := described(t, layers.Walk(filepath.Dir(made))); got != "0 f 0755 7\n" {
		t.Errorf("made %s", got)
	}
	e.Origin.Staged = "/dev/null"
	if _, err := s.AddEntries(t.Context(), []layers.Entry{e}, nil); err == nil {
		t.Error("took a device for a file")
	}
}

// TestAddEntriesStaysInside: entries can't lead out of their layer.
func TestAddEntriesStaysInside(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	for name, entries := range map[string][]layers.Entry{
		"below a symlink":        {symlink("d", outside), file("d/f", "x")},
		"directory in a symlink": {symlink("d", outside), dir("d/sub")},
		"below a file":           {file("d", ""), file("d/f", "x")},
		"dots":                   {file("../f", "x")},
		"absolute":               {file(outside+"/f", "x")},
		"link to the outside":    {hardlink("l", "../../../version")},
		"link through a symlink": {symlink("d", outside), hardlink("l", "d/f")},
		"link to nothing":        {hardlink("l", "f")},
		"zero byte":              {file("a\x00b", "x")},
		"whiteout device":        {{Path: "dev", Type: layers.Char}},
		"unknown type":           {{Path: "x", Type: 'z'}},
	} {
		s := newStore(t)
		_, err := s.AddEntries(t.Context(), entries, func(layers.Entry) (string, error) { return "", errors.New("nowhere") })
		if err == nil && name != "whiteout device" {
			t.Errorf("%s: no error", name)
		}
		s.noTemp(t)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
}

// TestAddEntriesOverlayAttributes: attributes with a meaning to overlayfs or to
// us can't be smuggled in.
func TestAddEntriesOverlayAttributes(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	e := dir("d")
	e.Xattrs = map[string]string{"user.overlay.opaque": "y", "trusted.overlay.redirect": "/etc", layers.OwnerXattr: "1:1:4777", "user.fine": "1"}
	id := s.addEntries(t, e)
	if got := described(t, layers.Walk(s.root.Path("layers", string(id), "fs"))); got != "5 d 0755 user.fine=1\n" {
		t.Errorf("made %s", got)
	}
	buf := make([]byte, 1000)
	n, err := unix.Llistxattr(s.root.Path("layers", string(id), "fs", "d"), buf)
	if names := string(buf[:max(n, 0)]); err != nil || strings.Contains(names, "overlay") || strings.Contains(names, "strake") && os.Geteuid() == 0 {
		t.Errorf("attributes are %q, %v", names, err)
	}
}

func TestAddEntriesImpliesParents(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	late := dir("a/b")
	late.Mode = 0o700
	id := s.addEntries(t, file("x/y/f", ""), late, file("a/b/f", ""), file("a-b", ""))
	want := "5 a 0755\n5 a/b 0700\n0 a/b/f 0644 0\n0 a-b 0644 0\n5 x 0755\n5 x/y 0755\n0 x/y/f 0644 0\n"
	if diff := cmp.Diff(want, described(t, layers.Walk(s.root.Path("layers", string(id), "fs")))); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func TestAddEntriesIsCancelled(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var entries []layers.Entry
	for i := range 1000 {
		entries = append(entries, from(fmt.Sprintf("f%04d", i), "x"))
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	_, err := s.AddEntries(ctx, entries, func(layers.Entry) (string, error) {
		cancel(cause)
		return "", cause
	})
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want the cause", err)
	}
	s.noTemp(t)
}

func BenchmarkRecipeLayer10k(b *testing.B) {
	s := newStore(b)
	c := &contents{files: map[string]string{}}
	var entries []layers.Entry
	for i := range 10_000 {
		e := from(fmt.Sprintf("d%03d/f%05d", i/100, i), "some content")
		c.files[e.Origin.Path] = "some content"
		entries = append(entries, e)
	}
	for b.Loop() {
		id, err := s.AddRecipe(entries)
		if err != nil {
			b.Fatal(err)
		}
		s.ensure(b, id, c.sources())
	}
}
