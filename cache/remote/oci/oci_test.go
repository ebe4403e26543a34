package oci

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/remotetest"
	"github.com/strake-build/strake/registry"
)

func client(t *testing.T) *registry.Client {
	t.Helper()
	c, err := registry.New(registry.Options{ConfigDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBackend(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	c := client(t)
	for _, ref := range []string{"/team/cache", "/team/cache:branch"} {
		t.Run(ref, func(t *testing.T) {
			remotetest.Run(t, func() remote.Backend {
				b, err := Open(c, strings.TrimPrefix(s.URL, "http://")+ref, "type=registry")
				if err != nil {
					t.Fatal(err)
				}
				return b
			}, func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error) {
				return c.Blob(ctx, origin, desc, nil)
			})
		})
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	for _, ref := range []string{"Bad", "x@sha256:" + strings.Repeat("0", 64), "x:" + strings.Repeat("t", 60)} {
		if _, err := Open(client(t), ref, ""); err == nil {
			t.Errorf("%s is taken as a cache", ref)
		}
	}
}
