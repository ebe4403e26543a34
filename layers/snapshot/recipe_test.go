package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
)

// everything has all that an entry can have.
var everything = []layers.Entry{
	{Path: ".", Type: layers.Dir, Mode: 0o1777},
	{Path: "a", Type: layers.Dir, Mode: 0o755, UID: 1, GID: 2, Opaque: true, ModTime: time.Unix(-5, 6)},
	{Path: "a/b", Type: layers.Regular, Mode: 0o4755, Size: 5, Digest: digest.FromString("hello"), Inline: true, Data: []byte("hello")},
	{Path: "a/b-c", Type: layers.Regular, Mode: 0o644, Size: 1 << 40, Digest: digest.FromString("x"), Origin: layers.Origin{Input: 3, Path: "src/b"}},
	{Path: "a/b.d", Type: layers.Regular, Digest: digest.FromString(""), Inline: true},
	{Path: "a/\xff\n", Type: layers.Symlink, Mode: 0o777, Link: "../\xfe"},
	{Path: "ab", Type: layers.Char, Mode: 0o600, Major: 1, Minor: 3, UID: 1<<32 - 2, GID: 1<<32 - 2},
	{Path: "b", Type: layers.Hardlink, Link: "a/b"},
	{Path: "c", Type: layers.Whiteout},
	{Path: "d", Type: layers.Fifo, Xattrs: map[string]string{"user.a": "", "user.b": "\x00\xff"}},
}

func TestRecipeKeepsEverything(t *testing.T) {
	t.Parallel()
	for _, entries := range [][]layers.Entry{nil, everything, many(5000)} {
		path := filepath.Join(t.TempDir(), "recipe")
		write(t, path, entries)
		r, err := loadRecipe(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(entries, r.entries); diff != "" {
			t.Errorf("recipe (-want +got):\n%s", diff)
		}
	}
}

func write(t testing.TB, path string, entries []layers.Entry) {
	t.Helper()
	var b bytes.Buffer
	if err := writeRecipe(&b, entries); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// many is n files in directories of 100.
func many(n int) []layers.Entry {
	var list []layers.Entry
	for i := range n {
		if i%100 == 0 {
			list = append(list, layers.Entry{Path: fmt.Sprintf("app/d%05d", i/100), Type: layers.Dir, Mode: 0o755})
		}
		name := fmt.Sprintf("d%05d/file%02d.txt", i/100, i%100)
		list = append(list, layers.Entry{
			Path: "app/" + name, Type: layers.Regular, Mode: 0o644, Size: int64(i),
			Digest: digest.FromString(name), Origin: layers.Origin{Input: 1, Path: "src/" + name},
		})
	}
	return list
}

// TestRecipeDamage: a recipe with any byte lost or changed is damaged.
func TestRecipeDamage(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := writeRecipe(&b, everything); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	decode := func(data []byte) error {
		return decodeRecipe(bytes.NewReader(data), int64(len(data)), func(layers.Entry, error) bool { return true })
	}
	if err := decode(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		if err := decode(good[:i]); !errors.Is(err, errDamaged) {
			t.Fatalf("cut at %d of %d: %v", i, len(good), err)
		}
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if err := decode(bad); !errors.Is(err, errDamaged) {
			t.Fatalf("byte %d of %d changed: %v", i, len(good), err)
		}
	}
}

func FuzzRecipe(f *testing.F) {
	for _, entries := range [][]layers.Entry{nil, everything, many(3)} {
		var enc recipeEncoder
		for _, e := range entries {
			if err := enc.entry(e); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(enc.buf)
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		dec := recipeDecoder{buf: block}
		var enc recipeEncoder
		var got []layers.Entry
		for len(dec.buf) > 0 {
			e := dec.entry()
			if dec.bad {
				return
			}
			if err := enc.entry(e); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
			got = append(got, e)
		}
		again := recipeDecoder{buf: enc.buf}
		for _, want := range got {
			if e := again.entry(); again.bad || !cmp.Equal(want, e) {
				t.Fatalf("%+v became %+v", want, e)
			}
		}
	})
}

func TestRecipeLayer(t *testing.T) {
	t.Parallel()
	r := &recipe{entries: []layers.Entry{
		{Path: "a", Type: layers.Dir, Mode: 0o700},
		{Path: "a/b", Type: layers.Regular, Size: 1},
		{Path: "a/b-", Type: layers.Hardlink, Link: "a/b"},
		{Path: "a-", Type: layers.Regular},
		{Path: "x/y/z", Type: layers.Regular},
		{Path: "x/y/zz", Type: layers.Regular},
		{Path: "x/yy", Type: layers.Hardlink, Link: "a/b-"},
	}}
	for path, want := range map[string]string{
		".":   "[a a- x]",
		"a":   "[b b-]",
		"x":   "[y yy]",
		"x/y": "[z zz]",
		"a/b": "[]",
	} {
		names, err := r.Names(path)
		if err != nil || fmt.Sprint(names) != want {
			t.Errorf("%s has %v, %v, want %s", path, names, err, want)
		}
	}
	for path, want := range map[string]layers.Type{
		".": layers.Dir, "a": layers.Dir, "x": layers.Dir, "x/y": layers.Dir,
		"a/b": layers.Regular, "a/b-": layers.Regular, "a-": layers.Regular,
		"y": 0, "x/y/": 0, "a/": 0, "x/yy": 0, "zz": 0,
	} {
		e, err := r.Stat(path)
		if e.Type != want || want == 0 && !errors.Is(err, os.ErrNotExist) || want != 0 && (err != nil || e.Path != path) {
			t.Errorf("%s is %+v, %v, want type %q", path, e, err, want)
		}
	}
	if e, err := r.Stat("a/b-"); err != nil || e.Size != 1 {
		t.Errorf("a hard link is %+v, %v", e, err)
	}
}

func TestDigestLines(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	for _, path := range []string{"f", "with space", "\xff\n", `"q"`, "ü"} {
		line := digestLine(path, d)
		got, raw, ok := parseDigestLine(line)
		if !ok || got != path || hexDigest(raw[:]) != d {
			t.Errorf("%q: %q, %v", path, got, ok)
		}
		for i := range line {
			if _, _, ok := parseDigestLine(line[:i]); ok {
				t.Errorf("%q: took a line torn at %d", path, i)
			}
		}
	}
}

func BenchmarkRecipe100k(b *testing.B) {
	entries := many(100_000)
	path := filepath.Join(b.TempDir(), "recipe")
	write(b, path, entries)
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			write(b, path, entries)
		}
	})
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("read", func(b *testing.B) {
		b.ReportMetric(float64(info.Size()), "bytes")
		for b.Loop() {
			for _, err := range readRecipe(path) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
