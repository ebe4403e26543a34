package image

import (
	"archive/tar"
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
)

// noise is a file of n bytes that is as large when it is compressed.
func noise(path string, n int) layers.Entry {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return regular(path, string(b))
}

// early begins an archive of layers, and returns how they are to be packed, and
// where the archive goes. No large layer is complete before the file has begun.
func early(t *testing.T, ids ...layers.ID) (e *Early, o PackOptions, name string) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "a.tar")
	begun := make(chan struct{})
	e = NewEarly(t.Context(), ids, func() (*os.File, error) {
		defer close(begun)
		return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	o.Follow = e.Follow
	o.Packed = func(id layers.ID, ref blob.Ref) {
		if ref.Desc.Size > earlySize {
			<-begun
		}
		e.Packed(id, ref)
	}
	return e, o, name
}

// finish writes the rest of the archive and returns its bytes, and those that
// were written early.
func (e *Early) finish(t *testing.T, bundles ...Bundle) (data []byte, early int64) {
	t.Helper()
	f := e.File()
	if f == nil {
		t.Fatal("nothing was written early")
	}
	defer f.Close()
	if n := len(e.blobs); n > 0 {
		early = e.blobs[n-1].end
	}
	if err := e.WriteOCI(t.Context(), f, bundles); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return data, early
}

// However an archive comes about it has the same bytes: layer by layer while they
// are packed, of layers that are there, in a file or a stream.
func TestEarly(t *testing.T) {
	t.Parallel()
	var want []byte
	for _, workers := range []int{1, 2} {
		s := newStore(t)
		s.packer.Workers = workers
		base, _, src := s.pulled(t, compress.Gzip, "a base", false)
		tree := []layers.ID{
			base, s.dir(t, regular("small", "x")), s.dir(t, noise("large", 45e5)), s.dir(t, regular("small", "y")),
			s.dir(t, noise("larger", 5e6)), s.dir(t, noise("large", 45e5)), // a layer that is there already
			s.dir(t, regular("small", "x")), s.dir(t, noise("last", 44e5)),
		}
		e, o, name := early(t, tree...)
		packed := s.buildFrom(t, linux, o, src, tree...)
		got, n := e.finish(t, Single(packed, "docker.io/me/app:1"))
		if n < 13e6 {
			t.Errorf("%d bytes were written early", n)
		}
		// An archive that was given away is not removed.
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
		found := s.buildFrom(t, linux, PackOptions{}, src, tree...)
		if want == nil {
			want = write1(t, WriteOCI, Single(found, "docker.io/me/app:1"))
			list, _ := untar(t, want)
			if len(list) != 2+len(tree)-2+2+2 { // directories, layers, documents, index.json and oci-layout
				t.Errorf("files: %q", list)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d workers: an archive of %d bytes differs from one of %d bytes", workers, len(got), len(want))
		}
	}
}

// What is written in the end may be another image than was begun.
func TestEarlyOfAnother(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := s.dir(t, regular("c", "c"))
	for i := range 5 {
		a, b := s.dir(t, noise("a", 45e5+i)), s.dir(t, noise("b", 46e5+i))
		tree := [][]layers.ID{{a, c}, {b, a}, {c}, {}, {a, b, c}}[i]
		e, o, _ := early(t, a, b)
		o.Compression = compress.None // is quick
		s.build(t, linux, o, a, b)
		other := Single(s.build(t, linux, PackOptions{Compression: o.Compression}, tree...))
		if got, _ := e.finish(t, other); !bytes.Equal(got, write1(t, WriteOCI, other)) {
			t.Errorf("case %d: the archive differs", i)
		}
	}
}

// Nothing is begun for layers that are there, or are small.
func TestNothingEarly(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	large := s.dir(t, noise("large", 45e5))
	s.build(t, linux, PackOptions{}, large)
	e, _, name := early(t, large, s.dir(t, regular("small", "x")))
	s.build(t, linux, PackOptions{Follow: e.Follow, Packed: e.Packed}, e.layers...)
	if f := e.File(); f != nil {
		t.Errorf("%s was begun", f.Name())
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(name); err == nil {
		t.Errorf("%s is there", name)
	}
}

// A layer that comes to nothing does not stay in a file, and nobody waits for it.
func TestEarlyFailure(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	first := s.dir(t, regular("first", "1"))
	for name, spoil := range map[string]func(context.CancelCauseFunc, *blob.Writer){
		"given up": func(_ context.CancelCauseFunc, w *blob.Writer) { w.Close() },
		"canceled": func(cancel context.CancelCauseFunc, _ *blob.Writer) { cancel(nil) },
		"unknown":  func(context.CancelCauseFunc, *blob.Writer) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			begun := make(chan *os.File, 1)
			path := filepath.Join(t.TempDir(), "a.tar")
			e := NewEarly(ctx, []layers.ID{"one", first}, func() (*os.File, error) {
				f, err := os.Create(path)
				begun <- f
				return f, err
			})
			w, err := s.blobs.Create()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			f, err := w.Follow()
			if err != nil {
				t.Fatal(err)
			}
			e.Follow("one", f)
			if _, err := w.Write(make([]byte, earlySize)); err != nil {
				t.Fatal(err)
			}
			<-begun
			spoil(cancel, w)
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("the file is still there")
			}
		})
	}
}

// The header of a layer has one size, whatever its own is.
func TestTarHeader(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 1, 1<<33 - 1, 1 << 33, 1 << 40} {
		h, err := tarHeader(blobPath(digest.FromString("x")), size)
		if err != nil || len(h) != headerSize {
			t.Errorf("%d bytes: header of %d bytes, %v", size, len(h), err)
			continue
		}
		got, err := tar.NewReader(bytes.NewReader(h)).Next()
		if err != nil || got.Size != size || got.Typeflag != tar.TypeReg {
			t.Errorf("%d bytes: %+v, %v", size, got, err)
		}
	}
}

// The bytes of archives. If they change, archiveFormat must, and
// CHANGELOG.md has a line for it.
func TestArchiveFormat(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	layer := func(content string) blob.Ref {
		f := memory("", []byte(content))
		return blob.Ref{Desc: f.desc, Open: f.open}
	}
	p, err := s.packer.manifest([]byte(`{"os":"linux","architecture":"amd64"}`), []blob.Ref{layer("one"), layer("two"), layer("one")}, PackOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, c := range map[string]struct {
		write writer
		want  digest.Digest
	}{
		"OCI":    {WriteOCI, "sha256:9b55fb5760b88b4f2b90a92a6597fdb0deca4bdb71768c1d9f69323b22ea6751"},
		"docker": {WriteDocker, "sha256:39f6e458cb53a6f2888b7073b12f759d9b38f3145d8f60fe2bb7a6de3773c1a5"},
	} {
		if got := digest.FromBytes(write1(t, c.write, Single(p, "docker.io/me/app:1"))); got != c.want {
			t.Errorf("%s: archive %s, want %s (format %d)", kind, got, c.want, archiveFormat)
		}
	}
}
