// Package blob keeps content-addressed bytes in a directory that many
// processes share: blobs/sha256/<hex>.
//
// A blob is there whole or not at all: it is written under a temporary name
// while it is hashed, and renamed when digest and size are right. Content is
// verified again when it is read.
package blob

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotFound: the blob is not in the store.
var ErrNotFound = errors.New("blob not found")

// Ref is a blob and the way to its bytes. It may be in a store, in a registry
// or not made yet.
type Ref struct {
	Desc ocispec.Descriptor
	// Open returns the blob's bytes. They are verified by whoever reads.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// Origins are the repositories ("docker.io/library/alpine") that are
	// known to hold the blob, so that a push can mount it from there.
	Origins []string
}

// Store is a blob directory.
type Store struct{ dir string }

// Open opens the store at dir; it and its "sha256" are made if missing.
// Temporary files are made in tmp, on the same file system.
func Open(dir, tmp string) (*Store, error) { panic("unwritten") }

// Reader opens a blob. Reading to the end fails if the content does not have
// the digest; such a blob is removed so that the next one to want it fetches it
// again. The error is ErrNotFound if it is not there or has another size
// (size < 0: any).
func (s *Store) Reader(d digest.Digest, size int64) (io.ReadCloser, error) { panic("unwritten") }

// Path is the file of a blob, whether or not it exists.
func (s *Store) Path(d digest.Digest) string { panic("unwritten") }

// Stat returns the size of a blob, or ErrNotFound.
func (s *Store) Stat(d digest.Digest) (int64, error) { panic("unwritten") }

// Bytes reads a small blob (limit 16 MiB), verified.
func (s *Store) Bytes(d digest.Digest) ([]byte, error) { panic("unwritten") }

// Put stores the bytes of r if they have the digest (if not empty) and size (if
// not negative) given, and returns what they have.
func (s *Store) Put(r io.Reader, d digest.Digest, size int64) (digest.Digest, int64, error) {
	panic("unwritten")
}

// Create begins a blob of unknown digest.
func (s *Store) Create() (*Writer, error) { panic("unwritten") }

// Writer takes the bytes of a new blob.
type Writer struct{}

// Write hashes and stores p.
func (w *Writer) Write(p []byte) (int, error) { panic("unwritten") }

// Commit gives the blob its name. An equal blob that is already there stays.
func (w *Writer) Commit() (digest.Digest, int64, error) { panic("unwritten") }

// Close discards the blob unless it was committed. It may be called twice.
func (w *Writer) Close() error { panic("unwritten") }

// Remove removes a blob; one that is not there is no error.
func (s *Store) Remove(d digest.Digest) error { panic("unwritten") }

// List calls fn for every blob.
func (s *Store) List(fn func(d digest.Digest, size int64) error) error { panic("unwritten") }

// Sync makes the blobs durable, with one call for all that were written by this
// Store since the last Sync.
func (s *Store) Sync() error { panic("unwritten") }
