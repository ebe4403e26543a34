package s3

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/remotetest"
	"github.com/strake-build/strake/cache/remote/s3/s3test"
)

func server(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h, stop, err := s3test.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func open(t *testing.T, endpoint string) *Bucket {
	t.Helper()
	b, err := Open(map[string]string{"bucket": "cache", "prefix": "team one/"}, env(map[string]string{
		"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "eu-west-1",
	}), "type=s3,bucket=cache")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBackend(t *testing.T) {
	t.Parallel()
	endpoint := server(t, nil)
	remotetest.Run(t, func() remote.Backend { return open(t, endpoint) }, func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error) {
		u, err := url.Parse(origin)
		if err != nil {
			return nil, err
		}
		// Only the credentials come from the environment.
		b, err := OpenOrigin(u, env(map[string]string{"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}))
		if err != nil {
			return nil, err
		}
		return b.Blob(ctx, desc)
	})
}

// All that the server needs is signed, and nothing of it is in the origin.
func TestSigned(t *testing.T) {
	t.Parallel()
	var got http.Header
	var path string
	endpoint := server(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got, path = r.Header.Clone(), r.URL.EscapedPath()
			h.ServeHTTP(w, r)
		})
	})
	b := open(t, endpoint)
	if _, err := b.Blob(t.Context(), remotetest.Ref([]byte("x")).Desc); !errors.Is(err, remote.ErrNotFound) {
		t.Error(err)
	}
	if auth := got.Get("Authorization"); !regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=id/\d{8}/eu-west-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=[0-9a-f]{64}$`).MatchString(auth) {
		t.Errorf("Authorization: %s", auth)
	}
	if want := "/cache/team%20one/blobs/sha256%3A2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"; path != want {
		t.Errorf("path %s, want %s", path, want)
	}
	if strings.Contains(b.Origin(), "secret") {
		t.Errorf("the origin %s has a secret", b.Origin())
	}
}

// A server that is busy is asked again when it says.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	endpoint := server(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 1 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	begin := time.Now()
	if _, err := open(t, endpoint).Get(t.Context(), "strake1-r-x"); !errors.Is(err, remote.ErrNotFound) {
		t.Error(err)
	}
	if asked.Load() != 2 || time.Since(begin) < time.Second {
		t.Errorf("asked %d times in %s", asked.Load(), time.Since(begin))
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	endpoint := server(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "<Code>AccessDenied</Code>", http.StatusForbidden)
		})
	})
	_, err := open(t, endpoint).Get(t.Context(), "strake1-r-x")
	if err == nil || errors.Is(err, remote.ErrNotFound) || !strings.Contains(err.Error(), "answered 403 Forbidden: <Code>AccessDenied</Code>") {
		t.Errorf("got %v", err)
	}
	for _, attrs := range []map[string]string{{"bucket": "a/b"}, {"bucket": "b", "endpoint_url": "ftp://x"}, {}} {
		if _, err := Open(attrs, env(map[string]string{"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}), ""); err == nil {
			t.Errorf("%v is taken", attrs)
		}
	}
	if _, err := Open(map[string]string{"bucket": "b"}, env(nil), ""); err == nil || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v", err)
	}
}
