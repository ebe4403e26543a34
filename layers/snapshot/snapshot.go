// Package snapshot keeps layers and makes file systems of them.
//
// A layer is a directory, layers/<id>/fs, or something a directory can be made
// of when a mount first needs it: a blob in a registry or in the blob store, or
// a recipe, the list of a COPY's files over the build context. layers/<id>/layer.json
// says which, and remembers the diffID and the blobs of a layer once it was
// packed.
//
// Two drivers give the same results: overlay mounts the layer directories,
// copydir copies them and needs neither mounts nor root.
package snapshot

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
)

// ErrNotFound: there is no such layer in the store.
var ErrNotFound = errors.New("layer not found")

// Layer is what is known of a layer (layer.json).
type Layer struct {
	ID layers.ID `json:"id"`
	// Dir: the directory is there, complete.
	Dir bool `json:"dir,omitempty"`
	// Recipe: the layer is made of the entries in layers/<id>/recipe. The
	// contents that are not inline come from Sources.File.
	Recipe bool `json:"recipe,omitempty"`

	DiffID digest.Digest `json:"diffID,omitempty"`
	// Blobs are the layer's packed forms: in the blob store, or only in a
	// registry (see Origins).
	Blobs []ocispec.Descriptor `json:"blobs,omitempty"`
	// Origins are references of repositories that hold Blobs, or URLs of
	// remote caches that do ("s3://bucket/prefix").
	Origins []string `json:"origins,omitempty"`
	// Cached: the blob is what a step's result was packed into somewhere else.
	// It is packed anew where one that was made here would be.
	Cached bool `json:"cached,omitempty"`
	// Variants are what DiffID and Blobs are when the layer was packed with
	// other file times or another compression level than is usual; package
	// image makes the keys.
	Variants map[string]Packed `json:"variants,omitempty"`

	// Given are marks (leak.Mark) of the secrets that the step which made the
	// layer was given, and Searched of those that it was searched for.
	Given    []string `json:"given,omitempty"`
	Searched []string `json:"searched,omitempty"`
	// Spoiled: a secret was found in it. It is as if it were not there.
	Spoiled bool `json:"spoiled,omitempty"`

	Size    int64     `json:"size,omitempty"` // bytes of content, where known
	Created time.Time `json:"created"`
}

// AddSearched adds marks to those that the layer was searched for.
func (l *Layer) AddSearched(marks []string) {
	for _, m := range marks {
		if !slices.Contains(l.Searched, m) {
			l.Searched = append(l.Searched, m)
		}
	}
}

// Packed is one way in which a layer was packed (see Layer.Variants).
type Packed struct {
	DiffID digest.Digest        `json:"diffID"`
	Blobs  []ocispec.Descriptor `json:"blobs,omitempty"`
}

// Sources gives the contents that layers not yet unpacked are made of.
type Sources struct {
	// Blob returns a blob's bytes as they are stored (compressed), from the
	// blob store or a registry.
	Blob func(ctx context.Context, l Layer, desc ocispec.Descriptor) (io.ReadCloser, error)
	// File returns the content of a recipe's entry (see layers.Origin).
	File func(ctx context.Context, id layers.ID, e layers.Entry) (io.ReadCloser, error)
}

// Driver makes writable file systems. See packages overlay and copydir, and
// snapshottest for what they must do. A Stack is the layer directories that a
// file system is on top of: it knows where they are and what is in them.
type Driver interface {
	// Name is "overlay" or "copydir".
	Name() string
	// Prepare readies a writable file system on top of lower. work is an
	// empty directory for the driver.
	Prepare(ctx context.Context, lower *merge.Stack, work string) (Mount, error)
	// Commit makes a layer directory, at the path dir that does not exist
	// yet, of what was written since Prepare. Nothing has the file system
	// mounted any more.
	Commit(ctx context.Context, m Mount, lower *merge.Stack, work, dir string) error
}

// Mount tells how to mount a file system. The one who mounts does so in a mount
// namespace of his own.
type Mount struct {
	// Lower are overlayfs's lower directories, the lowest first, and Upper
	// and Work its writable ones; if Upper is empty the mount is read-only.
	Lower       []string
	Upper, Work string
	UserXattr   bool
	// Bind is a directory to be bind-mounted instead.
	Bind string
}

// Options says how a Store keeps layers.
type Options struct {
	Driver Driver
	// UserXattr and RecordOwners: see layers.ApplyOptions.
	UserXattr, RecordOwners bool
	// Workers bounds layers unpacked at once; 0 is GOMAXPROCS.
	Workers int
}
