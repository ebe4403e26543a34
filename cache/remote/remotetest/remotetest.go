// Package remotetest is the suite that every backend of a remote cache passes.
package remotetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/layers/blob"
)

// Run checks a backend. open opens the same cache anew, as another process
// would; blob opens a blob of its origin.
func Run(t *testing.T, open func() remote.Backend, blob func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error)) {
	t.Run("objects", func(t *testing.T) { objects(t, open) })
	t.Run("blobs", func(t *testing.T) { blobs(t, open, blob) })
	t.Run("writers", func(t *testing.T) { writers(t, open, blob) })
}

// Ref is a blob with some content.
func Ref(content []byte) blob.Ref {
	return blob.Ref{
		Desc: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(content), Size: int64(len(content))},
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}
}

func objects(t *testing.T, open func() remote.Backend) {
	ctx := t.Context()
	a, b := open(), open()
	if _, err := a.Get(ctx, "strake1-r-none"); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("missing object: got %v, want ErrNotFound", err)
	}
	if ok, err := a.Has(ctx, "strake1-r-none"); ok || err != nil {
		t.Errorf("Has says of a missing object %v, %v", ok, err)
	}
	for _, want := range []string{`{"a":"b"}`, `{"a":"other"}`, `{"large":"` + strings.Repeat("x", 1<<20) + `"}`} {
		if err := a.Put(ctx, "strake1-r-one", []byte(want), nil, true); err != nil {
			t.Fatal(err)
		}
		got, err := b.Get(ctx, "strake1-r-one")
		if err != nil || string(got) != want {
			t.Errorf("got %.50q, %v, want %.50q", got, err, want)
		}
		if ok, err := b.Has(ctx, "strake1-r-one"); !ok || err != nil {
			t.Errorf("Has says %v, %v", ok, err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := open().Get(cancelled, "strake1-r-two"); errors.Is(err, remote.ErrNotFound) && !strings.HasPrefix(a.Origin(), "file:") {
		t.Error("a request that was cancelled counts as an answer")
	}
}

func read(ctx context.Context, open func(context.Context, string, ocispec.Descriptor) (io.ReadCloser, error), origin string, desc ocispec.Descriptor) (string, error) {
	r, err := open(ctx, origin, desc)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

func blobs(t *testing.T, open func() remote.Backend, openBlob func(context.Context, string, ocispec.Descriptor) (io.ReadCloser, error)) {
	ctx := t.Context()
	a := open()
	for _, content := range []string{"", "small", strings.Repeat("0123456789abcdef", 1<<20)} {
		ref := Ref([]byte(content))
		for _, damaged := range []bool{false, false, true} {
			if err := a.Put(ctx, "strake1-r-blobs", []byte(`{}`), []blob.Ref{ref}, damaged); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := read(ctx, openBlob, a.Origin(), ref.Desc); err != nil || got != content {
			t.Errorf("%d bytes: got %d, %v", len(content), len(got), err)
		}
	}
	missing := Ref([]byte("missing"))
	if got, err := read(ctx, openBlob, a.Origin(), missing.Desc); err == nil {
		t.Errorf("a missing blob is %q", got)
	}
	// An object whose blob can't be had is not written.
	bad := Ref([]byte("not to be had"))
	bad.Open = func(context.Context) (io.ReadCloser, error) { return nil, errors.New("gone") }
	if err := a.Put(ctx, "strake1-r-bad", []byte(`{}`), []blob.Ref{bad}, false); err == nil {
		t.Error("an object was written without its blob")
	}
	if ok, _ := open().Has(ctx, "strake1-r-bad"); ok {
		t.Error("the object of a failed Put is there")
	}
}

// writers has many write at once, and finds everything.
func writers(t *testing.T, open func() remote.Backend, openBlob func(context.Context, string, ocispec.Descriptor) (io.ReadCloser, error)) {
	const n, each = 50, 4
	ctx := t.Context()
	shared := Ref([]byte(strings.Repeat("shared", 1000)))
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			b := open()
			for k := range each {
				own := Ref([]byte(fmt.Sprintf("blob %d %d", i, k)))
				name := fmt.Sprintf("strake1-r-%d-%d", i, k)
				if err := b.Put(ctx, name, fmt.Appendf(nil, `{"writer":%d,"record":%d}`, i, k), []blob.Ref{shared, own}, false); err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
				// All write this one; it is one of theirs, whole.
				if err := b.Put(ctx, "strake1-r-same", fmt.Appendf(nil, `{"writer":%d}`, i), nil, false); err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	b := open()
	lost := 0
	for i := range n {
		for k := range each {
			got, err := b.Get(ctx, fmt.Sprintf("strake1-r-%d-%d", i, k))
			if want := fmt.Sprintf(`{"writer":%d,"record":%d}`, i, k); err != nil || string(got) != want {
				lost++
				t.Errorf("record %d of writer %d: %q, %v", k, i, got, err)
			}
			ref := Ref([]byte(fmt.Sprintf("blob %d %d", i, k)))
			if got, err := read(ctx, openBlob, b.Origin(), ref.Desc); err != nil || digest.FromString(got) != ref.Desc.Digest {
				t.Errorf("blob %d of writer %d: %v", k, i, err)
			}
		}
	}
	if got, err := b.Get(ctx, "strake1-r-same"); err != nil || !strings.HasPrefix(string(got), `{"writer":`) || !strings.HasSuffix(string(got), "}") {
		t.Errorf("the record of all is %q, %v", got, err)
	}
	t.Logf("%d writers, %d records, %d lost", n, n*each, lost)
}
