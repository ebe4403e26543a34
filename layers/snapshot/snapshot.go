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
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/state"
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
	// Origins are references of repositories that hold Blobs.
	Origins []string `json:"origins,omitempty"`
	// Variants are what DiffID and Blobs are when the layer was packed with
	// other file times or another compression level than is usual; package
	// image makes the keys.
	Variants map[string]Packed `json:"variants,omitempty"`

	Size    int64     `json:"size,omitempty"` // bytes of content, where known
	Created time.Time `json:"created"`
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
// snapshottest for what they must do.
type Driver interface {
	// Name is "overlay" or "copydir".
	Name() string
	// Prepare readies a writable file system on top of the directories
	// lower, the lowest first. work is an empty directory for the driver.
	Prepare(ctx context.Context, lower []string, work string) (Mount, error)
	// Commit makes a layer directory, at the path dir that does not exist
	// yet, of what was written since Prepare. Nothing has the file system
	// mounted any more.
	Commit(ctx context.Context, m Mount, lower []string, work, dir string) error
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

// Store is the layers of a store root.
type Store struct{}

// Open opens the layers of root.
func Open(root *state.Root, o Options) (*Store, error) { panic("unwritten") }

// Layer returns what is known of a layer, leases it, and fails with ErrNotFound
// if it is not there or damaged.
func (s *Store) Layer(id layers.ID) (Layer, error) { panic("unwritten") }

// Lease leases every layer of the tree and reports whether all exist.
func (s *Store) Lease(t layers.Tree) (bool, error) { panic("unwritten") }

// AddBlob makes a layer of a blob that is in the blob store or a registry,
// without reading it. If the layer is there, the blob and origins are added to
// what is known of it.
func (s *Store) AddBlob(diffID digest.Digest, desc ocispec.Descriptor, origins ...string) (layers.ID, error) {
	panic("unwritten")
}

// AddRecipe makes a layer of entries without reading their contents. Entries
// are sorted by path, and have digests.
func (s *Store) AddRecipe(entries []layers.Entry) (layers.ID, error) { panic("unwritten") }

// AddEntries makes a layer directory of entries now. hostPath returns the file
// of the host that holds the content of an entry: a file with the entry's own
// owner, mode, time and attributes in another layer is linked, others are
// copied; entry.Origin.Staged files are moved. Inline entries are written.
func (s *Store) AddEntries(ctx context.Context, entries []layers.Entry, hostPath func(layers.Entry) (string, error)) (layers.ID, error) {
	panic("unwritten")
}

// Update records the diffID or blobs of a layer that was packed.
func (s *Store) Update(id layers.ID, change func(*Layer)) error { panic("unwritten") }

// Ensure makes the directories of the tree's layers, downloading and unpacking
// in parallel, and returns their paths, the lowest first. Each layer is
// unpacked once however many processes want it. A blob that turns out to be
// damaged is an error.
func (s *Store) Ensure(ctx context.Context, t layers.Tree, src Sources) ([]string, error) {
	panic("unwritten")
}

// Entries yields the entries of one layer, from its directory or recipe, or
// unpacks it first.
func (s *Store) Entries(ctx context.Context, id layers.ID, src Sources) iter.Seq2[layers.Entry, error] {
	panic("unwritten")
}

// OpenEntry opens the content of an entry that Entries yielded.
func (s *Store) OpenEntry(ctx context.Context, id layers.ID, e layers.Entry, src Sources) (io.ReadCloser, error) {
	panic("unwritten")
}

// Remove removes a layer. The caller holds the exclusive "gc" lock and knows
// that nobody refers to it.
func (s *Store) Remove(id layers.ID) error { panic("unwritten") }

// List returns all layers.
func (s *Store) List() ([]Layer, error) { panic("unwritten") }

// Active is a writable file system on top of a tree.
type Active struct {
	// Mount is what to mount as its root.
	Mount Mount
}

// Prepare makes a writable child of the tree.
func (s *Store) Prepare(ctx context.Context, t layers.Tree, src Sources) (*Active, error) {
	panic("unwritten")
}

// Commit makes a layer of what was written; the Active is gone then. stubs are
// paths (relative) that were made as mount points: they are removed first if
// they are still empty and not in the tree below. A directory that differs from
// the one below in nothing but its time, and has nothing new in it, is not in
// the layer.
func (a *Active) Commit(ctx context.Context, stubs []string) (layers.ID, error) { panic("unwritten") }

// Discard removes what was written. It may be called after Commit.
func (a *Active) Discard() error { panic("unwritten") }

// View is the merged, read-only sight of a tree. It mounts nothing: paths are
// looked up in the layer directories and recipes themselves. Paths are like
// layers.Entry.Path.
type View struct{}

// View opens a view of a tree. Layers that are only blobs are unpacked.
func (s *Store) View(ctx context.Context, t layers.Tree, src Sources) (*View, error) {
	panic("unwritten")
}

// Lookup returns the entry at path, not following a symlink there; symlinks in
// its parents are not followed either (the error is fs.ErrNotExist then, or if
// there is nothing). Hard links are given as Regular.
func (v *View) Lookup(path string) (layers.Entry, error) { panic("unwritten") }

// ReadDir returns the entries of a directory, sorted by name.
func (v *View) ReadDir(path string) ([]layers.Entry, error) { panic("unwritten") }

// Open opens the regular file at path.
func (v *View) Open(ctx context.Context, path string) (io.ReadCloser, error) { panic("unwritten") }

// Digest is the digest of the regular file at path. It is remembered with the
// layer.
func (v *View) Digest(ctx context.Context, path string) (digest.Digest, error) { panic("unwritten") }

// HostPath is the file of the host that holds the regular file at path; empty
// if there is none (a recipe).
func (v *View) HostPath(path string) (string, error) { panic("unwritten") }
