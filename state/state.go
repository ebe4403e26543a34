// Package state keeps the store's directory in order: where things are, how
// they are written, who uses them.
//
// One directory serves any number of processes without a daemon. Everything in
// it is made under a temporary name and renamed into place. Every process holds
// a lease (a locked file) on what it uses; the lock dies with the process, so
// what a killed process left behind is found and removed by the next one.
package state

import (
	"context"
	"os"
)

// Root is the store's directory.
type Root struct{ dir string }

// Open opens the store at dir and makes it if it is not there. It removes what
// killed processes left in its temporary directory. A store of a newer version
// is an error.
func Open(dir string) (*Root, error) { panic("unwritten") }

// Dir is the store's path.
func (r *Root) Dir() string { return r.dir }

// Path joins elem to the store's path.
func (r *Root) Path(elem ...string) string { panic("unwritten") }

// TempDir makes an empty directory on the store's file system. It is removed
// with the process's lease at the latest.
func (r *Root) TempDir(prefix string) (string, error) { panic("unwritten") }

// TempFile makes a file likewise; see Commit.
func (r *Root) TempFile(prefix string) (*os.File, error) { panic("unwritten") }

// Lock takes the named lock, shared by all processes, and waits for it until
// ctx ends. Names are hex digests or words; they become file names below
// "locks". The lock is freed by unlock, or when the process dies.
func (r *Root) Lock(ctx context.Context, name string, exclusive bool) (unlock func(), err error) {
	panic("unwritten")
}

// WriteFile replaces the file at path by data in one step: readers see the old
// or the new content. With sync, data is on disk before it takes its name.
func WriteFile(path string, data []byte, perm os.FileMode, sync bool) error { panic("unwritten") }

// Kind is the kind of a thing that can be leased.
type Kind string

// The kinds of leased things: layers by ID, blobs by digest.
const (
	KindLayer Kind = "layer"
	KindBlob  Kind = "blob"
)

// Keep leases things for the life of this process: garbage collection by any
// process leaves them alone. The caller checks after Keep that they still
// exist.
func (r *Root) Keep(kind Kind, ids ...string) error { panic("unwritten") }

// Leased returns what all living processes hold. The caller holds the
// exclusive "gc" lock.
func (r *Root) Leased() (map[Kind]map[string]bool, error) { panic("unwritten") }

// Close gives up the process's lease and removes its temporary files.
func (r *Root) Close() error { panic("unwritten") }
