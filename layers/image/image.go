// Package image makes images of trees: it packs layers into blobs, writes
// manifests and configurations, and keeps the store's images and their names.
//
// An image in the store is its configuration and a tree. Its layers are
// compressed when somebody first wants the manifest (a push, a save); as
// packing is deterministic the manifest's digest is the same whenever that is.
package image

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/state"
)

// Packer packs layers.
type Packer struct {
	Layers   *snapshot.Store
	Blobs    *blob.Store
	Segments *compress.SegmentCache
	// Workers is how many layers are packed at once, and how many segments
	// of them; 0 is GOMAXPROCS.
	Workers int
}

// PackOptions says what form packed layers have.
type PackOptions struct {
	Compression compress.Algorithm
	Level       int
	// Force compresses layers anew that exist in another compression, those
	// of base images among them.
	Force bool
	// ModTime is the time of the files of layers made here; zero is
	// layers.DefaultModTime. Layers that came as blobs are as they are.
	ModTime time.Time
	// Clamp: earlier times stay.
	Clamp bool
	// Docker: Docker media types instead of OCI's.
	Docker bool
}

// DiffID returns the layer's diffID, and computes and remembers it if needed:
// a recipe is packed into a blob then (its contents are at hand now), a
// directory only hashed.
func (p *Packer) DiffID(ctx context.Context, id layers.ID, o PackOptions, src snapshot.Sources) (digest.Digest, error) {
	panic("unwritten")
}

// Pack returns the layer as a blob, and makes it if needed. The diffID is
// computed in the same pass. A layer that came from a registry is not fetched
// unless o.Force says so: its Ref streams it.
func (p *Packer) Pack(ctx context.Context, id layers.ID, o PackOptions, src snapshot.Sources) (blob.Ref, digest.Digest, error) {
	panic("unwritten")
}

// Packed is an image ready for delivery: one manifest, its configuration and
// layers.
type Packed struct {
	Desc     ocispec.Descriptor // of the manifest, with Platform
	Manifest []byte
	Config   blob.Ref
	Layers   []blob.Ref
}

// Index makes an OCI index (or Docker manifest list) of images.
func Index(images []*Packed, docker bool, annotations map[string]string) (ocispec.Descriptor, []byte, error) {
	panic("unwritten")
}

// Pack makes a manifest of an image of the store. config is the image
// configuration with its diffIDs.
func (p *Packer) Manifest(ctx context.Context, config []byte, t layers.Tree, o PackOptions, annotations map[string]string, src snapshot.Sources) (*Packed, error) {
	panic("unwritten")
}

// Image is an image of the store.
type Image struct {
	// ID is the digest of the configuration.
	ID       digest.Digest    `json:"id"`
	Platform ocispec.Platform `json:"platform"`
	Tree     layers.Tree      `json:"tree"`
	// Pack is how its manifest is made.
	Pack   PackOptions `json:"pack"`
	Stored time.Time   `json:"stored"`
}

// Name is a name and the images it stands for: one for each platform.
type Name struct {
	// Ref is normalised and has a tag; empty for an image without a name.
	Ref    string        `json:"ref"`
	Images []Image       `json:"images"`
	Index  digest.Digest `json:"index,omitempty"` // of the index it was pulled from
	Tagged time.Time     `json:"tagged"`
}

// Store keeps images and names in images/ of the store root, a file each.
// Several processes may change it at once.
type Store struct{}

// OpenStore opens the images of root.
func OpenStore(root *state.Root, blobs *blob.Store) (*Store, error) { panic("unwritten") }

// Put stores images, their configurations, under names (none: untagged).
// Names are moved from what they stood for. Everything that is referred to is
// synced before a name points to it.
func (s *Store) Put(refs []string, images []Image, configs [][]byte, index digest.Digest) error {
	panic("unwritten")
}

// Find returns what a user's argument stands for: a name with or without tag
// or digest, or an image ID or a unique prefix of one. It returns ErrNotFound
// (state: "No such image") or an error for ambiguous prefixes.
func (s *Store) Find(arg string) (Name, error) { panic("unwritten") }

// List returns all names, and images without names.
func (s *Store) List() ([]Name, error) { panic("unwritten") }

// Tag gives an image another name.
func (s *Store) Tag(arg, ref string) error { panic("unwritten") }

// Remove removes a name, or an image with all its names if arg is an ID (force
// is needed for several). It returns what was untagged and deleted, as `docker
// rmi` prints it.
func (s *Store) Remove(arg string, force bool) (untagged, deleted []string, err error) {
	panic("unwritten")
}

// Config returns the configuration of an image.
func (s *Store) Config(id digest.Digest) ([]byte, error) { panic("unwritten") }
