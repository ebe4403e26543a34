// Package registry pulls from and pushes to registries that speak the OCI
// distribution API.
//
// Names, credentials, tokens and manifests are go-containerregistry's; fetching
// and uploading blobs is ours: it resumes after a lost connection, retries with
// Retry-After, and gives up on a stalled one.
package registry

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

// ErrNotFound: the registry has no such manifest or repository.
var ErrNotFound = errors.New("not found in the registry")

// ErrUnauthorized: the registry wants (other) credentials.
var ErrUnauthorized = errors.New("unauthorized")

// Options says how registries are reached.
type Options struct {
	// Mirrors are tried in order before the registry itself, by registry
	// host: "docker.io" → "localhost:5000". A mirror may have a path prefix.
	Mirrors map[string][]string
	// Insecure are hosts that may be spoken to by plain http or with
	// certificates not checked. Loopback addresses always are.
	Insecure []string
	// ConfigDir is Docker's configuration directory with config.json; empty:
	// $DOCKER_CONFIG or ~/.docker, as the caller's environment says.
	ConfigDir string
	UserAgent string
}

// Client speaks to registries. It keeps tokens and connections.
type Client struct{}

// New returns a client.
func New(o Options) (*Client, error) { panic("unwritten") }

// Image is an image as a registry describes it: no layer has been fetched.
type Image struct {
	Ref         string             // normalised, "docker.io/library/alpine:3.18"
	Index       digest.Digest      // of the index it was chosen from, or empty
	Desc        ocispec.Descriptor // of the manifest, with its platform
	Manifest    ocispec.Manifest   // Docker schema 2 manifests are given in this form too
	RawManifest []byte
	Config      []byte // the configuration blob, verified
	// Origin is where layers can be fetched: a repository, with the mirror
	// that answered.
	Origin string
}

// Resolve fetches the manifest and configuration of an image for a platform.
// The error names the platforms there are if it is none of them. A reference
// with a digest is checked against it.
func (c *Client) Resolve(ctx context.Context, ref string, platform ocispec.Platform) (*Image, error) {
	panic("unwritten")
}

// Head returns the descriptor that a reference stands for, index or manifest.
func (c *Client) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	panic("unwritten")
}

// Manifest fetches a manifest or index whole, verified.
func (c *Client) Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	panic("unwritten")
}

// Blob fetches a blob of the repository origin (see Image.Origin). The stream
// resumes by itself, and ends with an error if it does not have the digest and
// size of desc.
func (c *Client) Blob(ctx context.Context, origin string, desc ocispec.Descriptor, report progress.Func) (io.ReadCloser, error) {
	panic("unwritten")
}

// Manifest is a manifest or index to be pushed after what it refers to.
type Manifest struct {
	Desc     ocispec.Descriptor
	Raw      []byte
	Blobs    []blob.Ref  // config and layers
	Children []*Manifest // of an index
}

// Push uploads m and what it refers to under ref (a tag, or only the repository
// to push by digest). Blobs that are there are not sent; blobs with an origin
// on the same registry are mounted; others stream from blob.Ref.Open, several
// at once, resumed or restarted after errors.
func (c *Client) Push(ctx context.Context, ref string, m *Manifest, report progress.Func) error {
	panic("unwritten")
}

// Normalize returns the full form of a reference: "alpine" is
// "docker.io/library/alpine:latest".
func Normalize(ref string) (string, error) { panic("unwritten") }

// Familiar is the short form of a reference: the inverse of Normalize but for
// the tag, which stays.
func Familiar(ref string) string { panic("unwritten") }

// Login checks credentials with the registry host and stores them as `docker
// login` does (credential helper or config.json).
func (c *Client) Login(ctx context.Context, host, username, password string) error {
	panic("unwritten")
}

// Logout removes stored credentials.
func (c *Client) Logout(host string) error { panic("unwritten") }
