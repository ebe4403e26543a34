// Package source gives the trees that builds start from: directories of the
// user, git repositories, files fetched by http.
package source

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
)

// Index remembers the digests of files by (dev, ino, size, mtime, ctime), for
// all builds of a store. A file changed in the same instant as it was hashed is
// not trusted (git's racy rule).
type Index struct{}

// OpenIndex opens the index kept in dir, or an empty one if it is missing or
// damaged.
func OpenIndex(dir string) (*Index, error) { panic("unwritten") }

// Save writes what was learned, merged with what other processes saved.
func (x *Index) Save() error { panic("unwritten") }

// Dir is a directory of the user as a read-only tree. It is walked once, in
// parallel, when it is first looked at; nothing outside of it is read, whatever
// symlinks it has. Owners are 0:0, and times are layers.DefaultModTime, since
// neither says anything about the content. Sockets are not in the tree.
type Dir struct{}

// DirOptions says what is in the tree.
type DirOptions struct {
	// Ignored reports whether an ignore rule drops a path (relative, with
	// slashes); for directories skip tells that nothing below can be kept.
	// nil: nothing is dropped.
	Ignored func(path string, dir bool) (ignored, skip bool)
	Index   *Index
	Workers int // 0: GOMAXPROCS
}

// OpenDir opens a directory. The error says what a person can do about one that
// is missing or unreadable.
func OpenDir(path string, o DirOptions) (*Dir, error) { panic("unwritten") }

// Lookup, ReadDir, Open, Digest and HostPath are as snapshot.View's. Open
// fails if the file is no longer what Lookup saw.
func (d *Dir) Lookup(path string) (layers.Entry, error)    { panic("unwritten") }
func (d *Dir) ReadDir(path string) ([]layers.Entry, error) { panic("unwritten") }
func (d *Dir) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	panic("unwritten")
}
func (d *Dir) Digest(ctx context.Context, path string) (digest.Digest, error) { panic("unwritten") }
func (d *Dir) HostPath(path string) (string, error)                           { panic("unwritten") }

// Digests hashes the files at the paths given, in parallel, so that Digest has
// them at hand.
func (d *Dir) Digests(ctx context.Context, paths []string) error { panic("unwritten") }
