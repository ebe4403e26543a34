// Package registry pulls from and pushes to registries that speak the OCI
// distribution API.
//
// A reference is resolved to a manifest and a configuration; layers are streamed
// when somebody wants them, by repository and descriptor. Everything is verified
// against its digest. A transfer resumes where a connection was lost, waits as
// long as a registry asks for (Retry-After) within reason, and is given up when
// nothing has moved for half a minute: no call hangs. Credentials go to the
// registry they are for, and to the token server it names, nowhere else.
//
// Names have Docker's meaning (distribution/reference), and so have stored
// credentials (config.json and credential helpers).
//
//	c, err := registry.New(registry.Options{UserAgent: "strake"})
//	img, err := c.Resolve(ctx, "alpine", platform)
//	layer, err := c.Blob(ctx, img.Origin, img.Manifest.Layers[0], progress.Discard)
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers/blob"
)

// ErrNotFound: the registry has no such manifest, blob or repository.
var ErrNotFound = errors.New("not found in the registry")

// ErrUnauthorized: the registry wants (other) credentials.
var ErrUnauthorized = errors.New("unauthorized")

// ErrOffline: the registry would have to be asked, and Options.Offline forbids
// it. What is wanted is not in the store.
var ErrOffline = errors.New("not in the store, and nothing is fetched offline")

// Options says how registries are reached.
type Options struct {
	// Mirrors are tried in order before the registry itself, by registry
	// host: "docker.io" → "localhost:5000". A mirror may have a path prefix,
	// and "http://" or "https://" before it. Nothing is pushed to mirrors.
	Mirrors map[string][]string
	// Insecure are hosts that may be spoken to by plain http or with
	// certificates not checked. Loopback addresses always are.
	Insecure []string
	// ConfigDir is Docker's configuration directory with config.json; empty:
	// $DOCKER_CONFIG or ~/.docker, as the caller's environment says.
	ConfigDir string
	UserAgent string
	// Origins opens blobs whose origin is a URL instead of a repository; nil:
	// there are none.
	Origins func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Offline: no registry is asked; what would have to be is an error.
	Offline bool
	// Blobs keeps the manifests and configurations that Resolve fetched by
	// their digests, so that they are not fetched again; nil: they are.
	Blobs *blob.Store
}

// Client speaks to registries. It keeps tokens and connections, and serves any
// number of goroutines.
type Client struct {
	options Options
	limits  limits
	http    *http.Client

	mu    sync.Mutex
	hosts map[string]*host
	// answered is the endpoint that last gave something for a repository: the
	// first to be asked for the next thing.
	answered map[string]string

	config configFile
}

// limits are the bounds that keep calls from hanging.
type limits struct {
	header  time.Duration // until an answer begins
	stall   time.Duration // without a byte of a body, either way
	giveUp  time.Duration // without progress over all attempts
	backoff time.Duration // before the second attempt; doubles
	// maxWait is the longest Retry-After that is honoured; a longer one is an
	// error at once.
	maxWait  time.Duration
	attempts int // without progress
}

// Whoever never answers is asked twice, and whoever stalls three times; either
// is given up within 30 seconds.
var defaultLimits = limits{
	header:   14 * time.Second,
	stall:    9500 * time.Millisecond,
	giveUp:   28 * time.Second,
	backoff:  200 * time.Millisecond,
	maxWait:  time.Minute,
	attempts: 7,
}

// New returns a client. It reads and connects to nothing yet.
func New(o Options) (*Client, error) {
	if o.ConfigDir == "" {
		o.ConfigDir = os.Getenv("DOCKER_CONFIG")
	}
	if o.ConfigDir == "" {
		if home, err := os.UserHomeDir(); err == nil {
			o.ConfigDir = filepath.Join(home, ".docker")
		}
	}
	c := &Client{
		options:  o,
		limits:   defaultLimits,
		hosts:    map[string]*host{},
		answered: map[string]string{},
		config:   configFile{dir: o.ConfigDir},
	}
	for registry, mirrors := range o.Mirrors {
		for _, m := range mirrors {
			if _, _, _, err := parseMirror(m); err != nil {
				return nil, fmt.Errorf("mirror of %s: %w", registry, err)
			}
		}
	}
	c.http = &http.Client{
		Transport: &transports{
			strict:   newTransport(&tls.Config{MinVersion: tls.VersionTLS12}),
			lax:      newTransport(&tls.Config{InsecureSkipVerify: true}), // #nosec G402 -- for the registries that the user calls insecure
			insecure: c.insecure,
		},
		CheckRedirect: checkRedirect,
	}
	return c, nil
}

// Credentials asks somebody for what they have for a registry's host; the host
// of Docker Hub is "registry-1.docker.io". All empty: nothing. A secret without a
// name is an identity token, which token servers take.
type Credentials func(ctx context.Context, host string) (username, secret string, err error)

// For returns a client that shares connections with c, but speaks for somebody
// else: credentials are what they are asked for, tokens are kept for them alone,
// manifests go to their
// blobs, and what their caches have comes from origins (see Options.Origins).
func (c *Client) For(ask Credentials, blobs *blob.Store, origins func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error)) *Client {
	o := c.options
	o.Blobs, o.Origins = blobs, origins
	return &Client{
		options: o, limits: c.limits, http: c.http,
		hosts: map[string]*host{}, answered: map[string]string{}, config: configFile{ask: ask},
	}
}

// Image is an image as a registry describes it: no layer has been fetched.
type Image struct {
	Ref         string             // normalised, "docker.io/library/alpine:3.18"
	Index       digest.Digest      // of the index it was chosen from, or empty
	Desc        ocispec.Descriptor // of the manifest, with its platform
	Manifest    ocispec.Manifest   // Docker schema 2 manifests are given in this form too
	RawManifest []byte
	Config      []byte // the configuration blob, verified
	RawIndex    []byte // of Index
	// Attestations are the attestation manifests of the image in its index.
	Attestations []ocispec.Descriptor
	// Origin is the repository where layers can be fetched
	// ("docker.io/library/alpine"), from it or one of its mirrors.
	Origin string
}
