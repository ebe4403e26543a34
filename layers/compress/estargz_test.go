package compress

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

// layerOf is a tar stream of files, each of as many bytes.
func layerOf(t testing.TB, sizes map[string]int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range len(sizes) {
		name := fmt.Sprintf("f%d", i)
		size := sizes[name]
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(sample(size, uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packEstargz(t testing.TB, stream []byte, level int) ([]byte, *EstargzWriter) {
	t.Helper()
	var out bytes.Buffer
	z, err := NewEstargz(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(z, iotestReader{bytes.NewReader(stream)}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), z
}

// iotestReader hides WriteTo, so that pieces are small.
type iotestReader struct{ io.Reader }

// The reader of the stargz library finds the index by its digest, and every
// file by the index; any gzip reader reads the whole.
func TestEstargz(t *testing.T) {
	t.Parallel()
	sizes := map[string]int{"f0": 10, "f1": 0, "f2": 9 << 20, "f3": 4 << 20, "f4": 100_000}
	stream := layerOf(t, sizes)
	out, z := packEstargz(t, stream, 0)
	if again, _ := packEstargz(t, stream, 0); !bytes.Equal(out, again) {
		t.Error("packed twice, the bytes differ")
	}

	r, err := NewReader(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := digest.FromBytes(plain); got != z.DiffID() || int64(len(plain)) != z.Size() {
		t.Errorf("decompresses to %s, %d bytes; the writer said %s, %d", got, len(plain), z.DiffID(), z.Size())
	}
	if !bytes.HasPrefix(plain, stream) {
		t.Error("does not begin with what was written")
	}

	x, err := estargz.Open(io.NewSectionReader(bytes.NewReader(out), 0, int64(len(out))))
	if err != nil {
		t.Fatal(err)
	}
	if x.TOCDigest() != z.TOC() {
		t.Errorf("the index has the digest %s; the writer said %s", x.TOCDigest(), z.TOC())
	}
	verify, err := x.VerifyTOC(z.TOC())
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range sizes {
		e, ok := x.Lookup(name)
		if !ok {
			t.Errorf("%s is not in the index", name)
			continue
		}
		f, err := x.OpenFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, sample(size, uint64(name[1]-'0'))) {
			t.Errorf("%s: %d bytes of %d, or others (%v)", name, len(got), size, err)
		}
		if size == 0 {
			continue
		}
		v, err := verify.Verifier(e)
		if err != nil {
			t.Fatal(err)
		}
		if v.Write(got[:min(len(got), 4<<20)]); !v.Verified() {
			t.Errorf("%s: its first chunk has not the digest of the index", name)
		}
	}
}

func TestEstargzRefuses(t *testing.T) {
	t.Parallel()
	if _, err := NewEstargz(io.Discard, 10); err == nil {
		t.Error("level 10 is none")
	}
	z, err := NewEstargz(io.Discard, 1)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "stargz.index.json", Typeflag: tar.TypeReg})
	w.Close()
	io.Copy(z, &b)
	if err := z.Close(); err == nil || !strings.Contains(err.Error(), "TOC") {
		t.Errorf("a file in the place of the index: %v", err)
	}
	if z, err = NewEstargz(io.Discard, 1); err != nil {
		t.Fatal(err)
	}
	z.Write(bytes.Repeat([]byte("no tar"), 1000))
	if err := z.Close(); err == nil {
		t.Error("what is no tar stream was packed")
	}
}
