package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/state"
)

func TestEnsureUnpacks(t *testing.T) {
	t.Parallel()
	for _, a := range []compress.Algorithm{compress.None, compress.Gzip, compress.Zstd} {
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			id, src := s.add(t, pack(t, a, dir("etc"), file("etc/passwd", "root"), symlink("lib", "usr/lib"), whiteout("old")))
			l, err := s.Layer(id)
			if err != nil || l.Dir || l.Recipe {
				t.Fatalf("a layer that nobody has unpacked: %+v, %v", l, err)
			}
			got := described(t, layers.Walk(s.ensure(t, id, src)))
			want := "5 etc 0755\n0 etc/passwd 0644 4\n2 lib usr/lib\nw old\n"
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("layer (-want +got):\n%s", diff)
			}
			if l, err := s.Layer(id); err != nil || !l.Dir || l.Size != 4 {
				t.Errorf("layer is %+v, %v", l, err)
			}
			// It needs no source any more, here and in another process.
			s.ensure(t, id, snapshot.Sources{})
			openStore(t, s.root.Dir()).ensure(t, id, snapshot.Sources{})
			s.noTemp(t)
		})
	}
}

func TestEnsureOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	other := openStore(t, s.root.Dir())
	var tree layers.Tree
	c := &contents{blobs: map[digest.Digest][]byte{}}
	for i := range 5 {
		p := pack(t, compress.Gzip, file("f", fmt.Sprint(i)))
		id, _ := s.add(t, p)
		c.blobs[p.desc.Digest] = p.data
		tree = append(tree, id)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			dirs, err := []store{s, other}[i%2].Ensure(t.Context(), tree, c.sources())
			if err != nil {
				t.Error(err)
				return
			}
			for i, dir := range dirs {
				if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != fmt.Sprint(i) {
					t.Errorf("layer %d has %q, %v", i, got, err)
				}
			}
		})
	}
	wg.Wait()
	if c.opens != len(tree) {
		t.Errorf("%d blobs were read, want %d", c.opens, len(tree))
	}
}

func TestEnsureRefusesDamage(t *testing.T) {
	t.Parallel()
	good := pack(t, compress.Gzip, file("f", strings.Repeat("content", 1000)))
	other := pack(t, compress.Gzip, file("f", "other"))
	tests := map[string][]byte{
		"other content": other.data,
		"truncated":     good.data[:len(good.data)/2],
		"no gzip":       append([]byte{0x1f, 0x8b}, "garbage"...),
		"empty":         nil,
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			id, src := s.add(t, good)
			bad := &contents{blobs: map[digest.Digest][]byte{good.desc.Digest: data}}
			_, err := s.Ensure(t.Context(), layers.Tree{id}, bad.sources())
			if err == nil || !strings.Contains(err.Error(), string(id)) {
				t.Fatalf("error %v, want one that names the layer", err)
			}
			s.noTemp(t)
			if _, err := os.Lstat(s.root.Path("layers", string(id), "fs")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("there is a directory: %v", err)
			}
			s.ensure(t, id, src) // later, with the right blob
		})
	}
}

// TestEnsureReadsBadBlobsToTheEnd: that is how blob stores notice damage.
func TestEnsureReadsBadBlobsToTheEnd(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	good := pack(t, compress.Gzip, file("f", "content"))
	id, _ := s.add(t, good)
	r := &countingReader{r: strings.NewReader("not a layer at all" + strings.Repeat("x", 1<<20))}
	_, err := s.Ensure(t.Context(), layers.Tree{id}, snapshot.Sources{
		Blob: func(context.Context, snapshot.Layer, ocispec.Descriptor) (io.ReadCloser, error) { return r, nil },
	})
	if err == nil || !r.ended || !r.closed {
		t.Errorf("error %v, read to the end: %v, closed: %v", err, r.ended, r.closed)
	}
}

type countingReader struct {
	r             io.Reader
	ended, closed bool
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.ended = c.ended || err == io.EOF
	return n, err
}

func (c *countingReader) Close() error {
	c.closed = true
	return nil
}

func TestEnsureTakesAnotherBlob(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	entries := []layers.Entry{file("f", "content")}
	gz, zst := pack(t, compress.Gzip, entries...), pack(t, compress.Zstd, entries...)
	s.add(t, gz)
	id, src := s.add(t, zst) // has only this
	s.ensure(t, id, src)
}

// A manifest that lies of a blob's size must not spoil the layer for images
// whose manifests tell the truth.
func TestEnsureTakesTheTrueSize(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := pack(t, compress.Gzip, file("f", "content"))
	lie := p
	lie.desc.Size = 5
	s.add(t, lie)
	id, _ := s.add(t, p)
	src := snapshot.Sources{Blob: func(_ context.Context, _ snapshot.Layer, desc ocispec.Descriptor) (io.ReadCloser, error) {
		if desc.Size != int64(len(p.data)) {
			return nil, fmt.Errorf("%d bytes where %d are due", len(p.data), desc.Size)
		}
		return io.NopCloser(bytes.NewReader(p.data)), nil
	}}
	s.ensure(t, id, src)
}

func TestEnsureIsCancelled(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := pack(t, compress.Gzip, file("f", "content"))
	id, src := s.add(t, p)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	pr, pw := io.Pipe()
	_, err := s.Ensure(ctx, layers.Tree{id}, snapshot.Sources{
		Blob: func(context.Context, snapshot.Layer, ocispec.Descriptor) (io.ReadCloser, error) {
			cancel(cause)
			context.AfterFunc(ctx, func() { pw.CloseWithError(cause) })
			return pr, nil
		},
	})
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want the cause", err)
	}
	s.noTemp(t)
	s.ensure(t, id, src)
}

func TestEnsureMissing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for _, id := range []layers.ID{"", "../../etc", layers.ID(strings.Repeat("a", 64))} {
		if _, err := s.Ensure(t.Context(), layers.Tree{id}, snapshot.Sources{}); !errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("layer %q: error %v, want ErrNotFound", id, err)
		}
		if ok, err := s.Lease(layers.Tree{id}); ok || err != nil {
			t.Errorf("layer %q: leased %v, %v", id, ok, err)
		}
	}
}

func TestAddBlobAddsToWhatIsKnown(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	entries := []layers.Entry{file("f", "content")}
	gz, zst := pack(t, compress.Gzip, entries...), pack(t, compress.Zstd, entries...)
	var wg sync.WaitGroup
	for i, p := range []packed{gz, zst, gz, zst} {
		wg.Go(func() {
			if _, err := openStore(t, s.root.Dir()).AddBlob(p.diffID, p.desc, fmt.Sprint("repo", i%2)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l, err := s.Layer(layers.ID(gz.diffID.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(l.Origins)
	if len(l.Blobs) != 2 || !slices.Equal(l.Origins, []string{"repo0", "repo1"}) || l.DiffID != gz.diffID {
		t.Errorf("layer is %+v", l)
	}
	for _, bad := range []digest.Digest{"", "sha256:xyz", "../..", digest.NewDigestFromEncoded(digest.SHA512, strings.Repeat("a", 128))} {
		if _, err := s.AddBlob(bad, gz.desc); err == nil {
			t.Errorf("took diffID %q", bad)
		}
	}
}

func TestUpdateLosesNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := s.addEntries(t, file("f", ""))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			err := openStore(t, s.root.Dir()).Update(id, func(l *snapshot.Layer) { l.Origins = append(l.Origins, fmt.Sprint(i)) })
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l, err := s.Layer(id); err != nil || len(l.Origins) != 16 {
		t.Errorf("%v, %v: want 16 changes", l.Origins, err)
	}
	s.noTemp(t)
}

func TestDamagedLayers(t *testing.T) {
	t.Parallel()
	p := pack(t, compress.Gzip, file("f", "content"))
	tests := map[string]func(dir string) error{
		"empty": func(dir string) error { return os.WriteFile(filepath.Join(dir, "layer.json"), nil, 0o600) },
		"torn":  func(dir string) error { return os.Truncate(filepath.Join(dir, "layer.json"), 20) },
		"another's": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "layer.json"), []byte(`{"id":"x"}`), 0o600)
		},
		"flipped bit": func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, "layer.json"))
			if err != nil {
				return err
			}
			at := bytes.Index(data, []byte(`"size":`)) + len(`"size":`)
			data[at] ^= 1 // another digit
			return os.WriteFile(filepath.Join(dir, "layer.json"), data, 0o600)
		},
		"missing": func(dir string) error { return os.Remove(filepath.Join(dir, "layer.json")) },
		"no contents": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "layer.json"), []byte(`{"id":"`+p.diffID.Encoded()+`","dir":true}`), 0o600)
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			id, _ := s.add(t, p)
			if err := damage(s.root.Path("layers", string(id))); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, s.root.Dir())
			if _, err := s.Layer(id); !errors.Is(err, snapshot.ErrNotFound) {
				t.Fatalf("error %v, want ErrNotFound", err)
			}
			if ok, err := s.Lease(layers.Tree{id}); ok || err != nil {
				t.Errorf("leased: %v, %v", ok, err)
			}
			if list, err := s.List(); len(list) != 0 || err != nil {
				t.Errorf("listed: %v, %v", list, err)
			}
			if list, err := s.Damaged(); len(list) != 1 || err != nil {
				t.Errorf("damaged: %v, %v", list, err)
			}
			// It is made again.
			id, src := s.add(t, p)
			s.ensure(t, id, src)
			s.noTemp(t)
		})
	}
}

// TestLostDirectory: a directory that is gone is made again.
func TestLostDirectory(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, src := s.add(t, pack(t, compress.Gzip, file("f", "content")))
	if err := os.RemoveAll(s.ensure(t, id, src)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, s.root.Dir())
	if _, err := os.ReadFile(filepath.Join(s.ensure(t, id, src), "f")); err != nil {
		t.Error(err)
	}
}

// TestInterruptedEnsure: a directory that no layer.json tells of is not
// trusted.
func TestInterruptedEnsure(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, src := s.add(t, pack(t, compress.Gzip, file("f", "content")))
	if err := os.MkdirAll(s.root.Path("layers", string(id), "fs", "half"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := described(t, layers.Walk(s.ensure(t, id, src))); got != "0 f 0644 7\n" {
		t.Errorf("layer has %s", got)
	}
	s.noTemp(t)
}

func TestRemoveListUsage(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	content := strings.Repeat("x", 100_000)
	a := s.addEntries(t, file("f", content))
	b, err := s.AddEntries(t.Context(), []layers.Entry{from("g", content)}, func(layers.Entry) (string, error) {
		return s.root.Path("layers", string(a), "fs", "f"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	each := make([]int64, 2)
	for i, id := range []layers.ID{a, b} {
		if each[i], err = s.Usage(id); err != nil || each[i] < 100_000 {
			t.Errorf("layer takes %d bytes, %v", each[i], err)
		}
	}
	if both, err := s.Usage(a, b); err != nil || both >= each[0]+each[1]-90_000 {
		t.Errorf("both take %d bytes, %v, and each %v: they share a file", both, err, each)
	}
	if list, err := s.List(); err != nil || len(list) != 2 {
		t.Errorf("list: %v, %v", list, err)
	}
	for range 2 {
		if err := s.Remove(a); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Layer(a); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
	if got, err := os.ReadFile(s.root.Path("layers", string(b), "fs", "g")); err != nil || string(got) != content {
		t.Errorf("the layer that shared a file has %d bytes, %v", len(got), err)
	}
	if err := s.Remove("../version"); err == nil {
		t.Error("removed something else")
	}
	s.noTemp(t)
}

// TestLeases: what a process uses is leased before it is returned.
func TestLeases(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	p := pack(t, compress.Gzip, file("f", "content"))
	pulled, _ := s.add(t, p)
	made := s.addEntries(t, file("f", ""))
	other := openStore(t, s.root.Dir())
	if ok, err := other.Lease(layers.Tree{pulled, made, pulled}); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := s.root.Close(); err != nil {
		t.Fatal(err)
	}
	leased, err := other.root.Leased()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{string(pulled): true, string(made): true}
	if diff := cmp.Diff(want, leased[state.KindLayer]); diff != "" {
		t.Errorf("leased (-want +got):\n%s", diff)
	}
}

func BenchmarkLease500(b *testing.B) {
	s := newStore(b)
	var tree layers.Tree
	for range 500 {
		tree = append(tree, s.addEntries(b, file("f", "")))
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			s := openStore(b, s.root.Dir())
			if ok, err := s.Lease(tree); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			if ok, err := s.Lease(tree); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
}

// A cache claims that a blob has a diffID; who knows better is not told otherwise,
// and counts alone if the cache came first.
func TestClaimsOfCaches(t *testing.T) {
	t.Parallel()
	genuine, evil := pack(t, compress.Gzip, file("f", "genuine")), pack(t, compress.Zstd, file("f", "evil"))
	blobs := func(s store, id layers.ID) []ocispec.Descriptor {
		t.Helper()
		l, err := s.Layer(id)
		if err != nil {
			t.Fatal(err)
		}
		return l.Blobs
	}
	s := newStore(t)
	id, err := s.AddCached(genuine.diffID, evil.desc, "example.com/cache")
	if err != nil || len(blobs(s, id)) != 1 {
		t.Fatalf("%v, %v", blobs(s, id), err)
	}
	for _, add := range []func() (layers.ID, error){
		func() (layers.ID, error) { return s.AddBlob(genuine.diffID, genuine.desc, "example.com/image") },
		func() (layers.ID, error) { return s.AddCached(genuine.diffID, evil.desc, "example.com/cache") },
	} {
		if _, err := add(); err != nil {
			t.Fatal(err)
		}
		if got := blobs(s, id); len(got) != 1 || got[0].Digest != genuine.desc.Digest {
			t.Errorf("blobs %v, want only %s", got, genuine.desc.Digest)
		}
	}
	l, err := s.Layer(id)
	if err != nil || l.Cached || len(l.Origins) != 1 || l.Origins[0] != "example.com/image" {
		t.Errorf("%+v, %v", l, err)
	}
}
