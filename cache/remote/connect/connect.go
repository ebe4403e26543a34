// Package connect opens remote caches by the flags or URLs that name them.
package connect

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/dir"
	"github.com/strake-build/strake/cache/remote/gha"
	"github.com/strake-build/strake/cache/remote/oci"
	"github.com/strake-build/strake/cache/remote/s3"
	"github.com/strake-build/strake/registry"
)

// Connector opens caches.
type Connector struct {
	// Getenv gives credentials and addresses that no flag says.
	Getenv func(string) string
	// Registry speaks to registries.
	Registry *registry.Client
	// Local opens caches of type local; nil: they are directories here.
	Local func(remote.Spec) (LocalCache, error)

	mu     sync.Mutex
	opened map[string]source // by origin: flags may give other credentials than the environment
}

// source has blobs.
type source interface {
	Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// LocalCache is a cache whose blobs only the build that opened it can fetch.
type LocalCache interface {
	remote.Backend
	source
}

func (c *Connector) keep(origin string, s source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opened == nil {
		c.opened = map[string]source{}
	}
	c.opened[origin] = s
}

// source returns what an origin names.
func (c *Connector) source(origin *url.URL) (source, error) {
	c.mu.Lock()
	s, ok := c.opened[origin.String()]
	c.mu.Unlock()
	if ok {
		return s, nil
	}
	var err error
	switch origin.Scheme {
	case s3.Scheme:
		s, err = s3.OpenOrigin(origin, c.Getenv)
	case gha.Scheme:
		s, err = gha.OpenOrigin(origin, c.Getenv)
	default:
		err = fmt.Errorf("no cache is known by %s", origin)
	}
	if err != nil {
		return nil, err
	}
	c.keep(origin.String(), s)
	return s, nil
}

// Cache opens the cache of a flag. It sends nothing yet.
func (c *Connector) Cache(s remote.Spec) (remote.Backend, error) {
	switch s.Type {
	case remote.TypeRegistry:
		return oci.Open(c.Registry, s.Attrs["ref"], s.String())
	case remote.TypeLocal:
		if c.Local != nil {
			b, err := c.Local(s)
			if err != nil {
				return nil, err
			}
			c.keep(b.Origin(), b)
			return b, nil
		}
		path := s.Attrs["src"]
		if path == "" {
			path = s.Attrs["dest"]
		}
		return dir.Open(path, s.String())
	case remote.TypeS3:
		b, err := s3.Open(s.Attrs, c.Getenv, s.String())
		if err != nil {
			return nil, err
		}
		c.keep(b.Origin(), b)
		return b, nil
	case remote.TypeGHA:
		b, err := gha.Open(s.Attrs, c.Getenv, s.String())
		if err != nil {
			return nil, err
		}
		// One for --cache-from and --cache-to: what one finds out about
		// entries is worth knowing for the other.
		c.mu.Lock()
		same, ok := c.opened[b.Origin()].(*gha.Service)
		c.mu.Unlock()
		if ok {
			return same, nil
		}
		c.keep(b.Origin(), b)
		return b, nil
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
	if u.Scheme == dir.Scheme {
		return dir.Blob(ctx, u, desc)
	}
	b, err := c.source(u)
	if err != nil {
		return nil, err
	}
	return b.Blob(ctx, desc)
}
