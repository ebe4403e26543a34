// Package blob keeps content-addressed bytes in a directory that many
// processes share: blobs/sha256/<hex>.
//
// A blob is there whole or not at all: it is written under a temporary name
// while it is hashed, and renamed when digest and size are right. Content is
// verified again when it is read.
//
// Nothing is on disk for certain before [Store.Sync] returns. Until then a crash
// of the machine may leave a blob short or damaged; it is noticed when it is
// read, like any other damage.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotFound: the blob is not in the store.
var ErrNotFound = errors.New("blob not found")

// ErrDamaged: the blob was in the store and had other content than its name says.
// It is there no more: errors of this kind are of kind ErrNotFound, too.
var ErrDamaged = errors.New("blob is damaged")

// MaxDamaged is how many damaged blobs a command puts up with: it finds them one
// by one, and there may be as many as images have layers.
const MaxDamaged = 500

// damagedError is an error of kind ErrDamaged.
type damagedError struct{ d digest.Digest }

func (e damagedError) Error() string {
	return fmt.Sprintf("blob %s is damaged: its content has another digest", e.d)
}

// Is implements the interface of package errors.
func (e damagedError) Is(target error) bool { return target == ErrDamaged || target == ErrNotFound }

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

// Store is a blob directory. Its methods may be called from any number of
// goroutines and processes at once.
type Store struct {
	dir  string // that holds the blobs by their hex digits
	temp func(prefix string) (*os.File, error)

	mu       sync.Mutex
	unsynced map[digest.Digest]struct{} // put here since the last Sync
}

// Open opens the store at dir; it and its "sha256" are made if missing.
// temp makes temporary files, on the same file system; those of a process that
// was killed are left for the owner of their directory to remove.
func Open(dir string, temp func(prefix string) (*os.File, error)) (*Store, error) {
	s := &Store{
		dir:      filepath.Join(dir, string(digest.SHA256)),
		temp:     temp,
		unsynced: map[digest.Digest]struct{}{},
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	return s, nil
}

// TempIn makes temporary files in a directory, for Open.
func TempIn(dir string) func(prefix string) (*os.File, error) {
	return func(prefix string) (*os.File, error) { return os.CreateTemp(dir, prefix+"-") }
}

// check refuses digests that blobs are not stored by. It must come before a
// digest becomes part of a path: digests come from foreign manifests.
func check(d digest.Digest) error {
	algorithm, _, ok := strings.Cut(string(d), ":")
	if ok && algorithm != string(digest.SHA256) {
		return fmt.Errorf("digest %q: blobs are stored by sha256, not %s", string(d), algorithm)
	}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", string(d), err)
	}
	return nil
}

// Path is the file of a blob, whether or not it exists; it is empty if blobs
// can't be stored by this kind of digest.
func (s *Store) Path(d digest.Digest) string {
	if check(d) != nil {
		return ""
	}
	return filepath.Join(s.dir, d.Encoded())
}

// Stat returns the size of a blob, or ErrNotFound.
func (s *Store) Stat(d digest.Digest) (int64, error) {
	if err := check(d); err != nil {
		return 0, err
	}
	fi, err := os.Lstat(s.Path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	if err != nil {
		return 0, err
	}
	if !fi.Mode().IsRegular() {
		return 0, fmt.Errorf("%s, which is no regular file: %w", d, ErrNotFound)
	}
	return fi.Size(), nil
}

// Remove removes a blob; one that is not there is no error.
func (s *Store) Remove(d digest.Digest) error {
	if err := check(d); err != nil {
		return err
	}
	if err := os.Remove(s.Path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List calls fn for every blob, in no order, until fn fails. Blobs that come
// or go meanwhile may be missed.
func (s *Store) List(fn func(d digest.Digest, size int64) error) error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		files, err := dir.ReadDir(1024)
		for _, f := range files {
			d := digest.NewDigestFromEncoded(digest.SHA256, f.Name())
			if check(d) != nil || !f.Type().IsRegular() {
				continue
			}
			fi, err := f.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if err := fn(d, fi.Size()); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
