package dir

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/remotetest"
	"github.com/strake-build/strake/layers/blob"
)

func openBlob(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	u, err := url.Parse(origin)
	if err != nil {
		return nil, err
	}
	return Blob(ctx, u, desc)
}

func TestBackend(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a cache % of ours")
	remotetest.Run(t, func() remote.Backend {
		d, err := Open(path, "type=local")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, openBlob)
	if left, err := os.ReadDir(filepath.Join(path, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func putOne(t *testing.T, d *Dir, ref blob.Ref, damaged bool) {
	t.Helper()
	if err := d.Put(t.Context(), "strake1-r-x", []byte("{}"), []blob.Ref{ref}, damaged); err != nil {
		t.Fatal(err)
	}
}

// A blob that is known to be damaged is written anew.
func TestDamaged(t *testing.T) {
	t.Parallel()
	d, err := Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ref := remotetest.Ref([]byte("content"))
	putOne(t, d, ref, false)
	file := filepath.Join(d.path, "blobs", "sha256", ref.Desc.Digest.Encoded())
	if err := os.WriteFile(file, []byte("contemt"), 0o644); err != nil {
		t.Fatal(err)
	}
	putOne(t, d, ref, true)
	if data, err := os.ReadFile(file); string(data) != "content" {
		t.Errorf("got %q, %v", data, err)
	}
}

// Who shares the directory can put pipes into it, which nobody writes to.
func TestPipes(t *testing.T) {
	t.Parallel()
	d, err := Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	ref := remotetest.Ref([]byte("content"))
	putOne(t, d, ref, false)
	object, err := d.object("strake1-r-x")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{object, filepath.Join(d.path, "blobs", "sha256", ref.Desc.Digest.Encoded())} {
		if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Get(t.Context(), "strake1-r-x"); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("Get of a pipe: %v", err)
	}
	if _, err := Blob(t.Context(), &url.URL{Path: d.path}, ref.Desc); !errors.Is(err, errIrregular) {
		t.Errorf("Blob of a pipe: %v", err)
	}
	putOne(t, d, ref, false)
	if data, err := d.Get(t.Context(), "strake1-r-x"); string(data) != "{}" || err != nil {
		t.Errorf("after it was written anew: %q, %v", data, err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	d, err := Open(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "../x", "a/b", "X", "a b"} {
		if err := d.Put(t.Context(), name, nil, nil, false); err == nil {
			t.Errorf("%q is taken as a name", name)
		}
	}
}
