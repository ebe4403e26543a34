package gha

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/gha/ghatest"
	"github.com/strake-build/strake/cache/remote/remotetest"
	"github.com/strake-build/strake/layers/blob"
)

// service starts the service and returns the environment that a workflow has.
func service(t *testing.T) func(string) string {
	return serviceBehind(t, func(h http.Handler) http.Handler { return h })
}

// serviceBehind is service with what wrap puts before it.
func serviceBehind(t *testing.T, wrap func(http.Handler) http.Handler) func(string) string {
	t.Helper()
	h, stop, err := ghatest.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	s := httptest.NewServer(wrap(h))
	t.Cleanup(s.Close)
	return func(name string) string {
		return map[string]string{"ACTIONS_RESULTS_URL": s.URL + "/", "ACTIONS_RUNTIME_TOKEN": ghatest.Token}[name]
	}
}

func open(t *testing.T, attrs map[string]string, getenv func(string) string) *Service {
	t.Helper()
	s, err := Open(attrs, getenv, "type=gha")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBackend(t *testing.T) {
	t.Parallel()
	getenv := service(t)
	remotetest.Run(t, func() remote.Backend { return open(t, nil, getenv) }, func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error) {
		u, err := url.Parse(origin)
		if err != nil {
			return nil, err
		}
		s, err := OpenOrigin(u, getenv)
		if err != nil {
			return nil, err
		}
		return s.Blob(ctx, desc)
	})
}

// Blobs larger than a block come back as they were; scopes keep objects apart,
// not blobs.
func TestBlocks(t *testing.T) {
	t.Parallel()
	getenv := service(t)
	content := make([]byte, 2*block+12345)
	_, _ = rand.Read(content)
	ref := remotetest.Ref(content)
	a, b := open(t, map[string]string{"scope": "a"}, getenv), open(t, map[string]string{"scope": "b"}, getenv)
	if err := a.Put(t.Context(), "strake1-r-x", []byte("{}"), []blob.Ref{ref}, false); err != nil {
		t.Fatal(err)
	}
	r, err := b.Blob(t.Context(), ref.Desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if d, err := digest.FromReader(r); err != nil || d != ref.Desc.Digest {
		t.Errorf("got %s, %v", d, err)
	}
	if ok, err := b.Has(t.Context(), "strake1-r-x"); ok || err != nil {
		t.Errorf("an object of another scope is there: %v, %v", ok, err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	getenv := service(t)
	s := open(t, map[string]string{"token": "old"}, getenv)
	if _, err := s.Get(t.Context(), "strake1-r-x"); err == nil || !strings.Contains(err.Error(), "answered 401 Unauthorized") || strings.Contains(err.Error(), "old") {
		t.Errorf("got %v", err)
	}
	if _, err := Open(nil, func(string) string { return "" }, ""); err == nil || !strings.Contains(err.Error(), "ACTIONS_RUNTIME_TOKEN") {
		t.Errorf("without a workflow: %v", err)
	}
}

// An entry that the service made, but didn't say so in time, is not taken for one
// that somebody else is writing.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	lost := map[string]bool{} // calls come one after the other
	getenv := serviceBehind(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if strings.HasSuffix(r.URL.Path, "/CreateCacheEntry") && bytes.Contains(body, []byte(`-0"`)) && !lost[string(body)] {
				lost[string(body)] = true
				h.ServeHTTP(httptest.NewRecorder(), r)
				http.Error(w, "too late", http.StatusGatewayTimeout)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	a := open(t, nil, getenv)
	if err := a.Put(t.Context(), "strake1-r-x", []byte("{}"), []blob.Ref{remotetest.Ref([]byte("content"))}, false); err != nil {
		t.Fatal(err)
	}
	b := open(t, nil, getenv)
	if got, err := b.Get(t.Context(), "strake1-r-x"); err != nil || string(got) != "{}" {
		t.Errorf("the object is %q, %v", got, err)
	}
	r, err := b.Blob(t.Context(), remotetest.Ref([]byte("content")).Desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "content" {
		t.Errorf("the blob is %q, %v", got, err)
	}
}
