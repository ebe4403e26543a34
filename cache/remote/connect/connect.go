// Package connect opens remote caches by the flags or URLs that name them.
package connect

import (
	"context"
	"fmt"
	"io"
	"net/url"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/dir"
	"github.com/strake-build/strake/cache/remote/oci"
	"github.com/strake-build/strake/registry"
)

// Connector opens caches.
type Connector struct {
	// Getenv gives credentials and addresses that no flag says.
	Getenv func(string) string
	// Registry speaks to registries.
	Registry *registry.Client
}

// Cache opens the cache of a flag. It sends nothing yet.
func (c *Connector) Cache(s remote.Spec) (remote.Backend, error) {
	switch s.Type {
	case remote.TypeRegistry:
		return oci.Open(c.Registry, s.Attrs["ref"], s.String())
	case remote.TypeLocal:
		path := s.Attrs["src"]
		if path == "" {
			path = s.Attrs["dest"]
		}
		return dir.Open(path, s.String())
	}
	return nil, fmt.Errorf("type=%s is not supported here", s.Type)
}

// Blob opens a blob at the origin of a cache that is no repository. Whoever reads
// verifies it.
func (c *Connector) Blob(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	u, err := url.Parse(origin)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case dir.Scheme:
		return dir.Blob(ctx, u, desc)
	}
	return nil, fmt.Errorf("no cache is known by %s", origin)
}
