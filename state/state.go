// Package state keeps the store's directory in order: where things are, how
// they are written, who uses them.
//
// One directory serves any number of processes without a daemon. Everything in
// it is made under a temporary name and renamed into place. Every process holds
// a lease (a locked file) on what it uses; the lock dies with the process, so
// what a killed process left behind is found and removed by the next one.
//
// docs/store.md describes the directory, and the order in which things are
// done so that a process may be killed at any instant.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// version is the version of the store's layout that this program reads and
// writes.
const version = 1

// The names in the store that this package uses.
const (
	versionFile = "version"
	tmpDir      = "tmp"
	leaseDir    = "leases"
	lockDir     = "locks"
)

// Root is the store's directory. Its methods may be called from any number of
// goroutines.
type Root struct {
	dir string

	mu     sync.Mutex // guards what follows
	lease  *lease     // nil until something is leased or temporary
	closed bool

	later    []string // trees to be removed
	removing bool     // removers has one
	removers sync.WaitGroup
}

// Open opens the store at dir and makes it if it is not there. It removes what
// killed processes left in its temporary directory, as far as it may. A store
// of a newer version is an error, and so is a directory that has something else
// in it.
func Open(dir string) (*Root, error) {
	r, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	// What can't be removed now, because the disk is read-only, say, is
	// left to the next one: it stands in nobody's way.
	_ = r.sweep()
	r.sweepLocks()
	return r, nil
}

func open(dir string) (*Root, error) {
	if dir == "" {
		return nil, errors.New("no directory given")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// Paths of the store are looked up without following symlinks.
	resolved, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		resolved, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, err
	}
	r := &Root{dir: resolved}
	if err := r.checkVersion(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// versionPrefix tells a store's version file from files of other programs.
const versionPrefix = "strake store "

// checkVersion fails for a newer store, and writes the version of a new one.
func (r *Root) checkVersion() error {
	data, err := os.ReadFile(r.Path(versionFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EISDIR) {
		return err
	}
	if text, ok := strings.CutPrefix(string(data), versionPrefix); ok {
		if v, err := strconv.Atoi(strings.TrimSpace(text)); err == nil {
			if v > version {
				return fmt.Errorf("%s has layout version %d, and this strake knows versions up to %d: use the newer strake, or another store", r.dir, v, version)
			}
			return nil
		}
	}
	// The store is new, or its version file is damaged.
	ours, err := r.looksOurs()
	if err != nil {
		return err
	}
	if !ours {
		return fmt.Errorf("%s is not empty and not a strake store", r.dir)
	}
	text := versionPrefix + strconv.Itoa(version) + "\n"
	// Not synced: one that a power failure damaged is written again.
	return r.WriteFile(r.Path(versionFile), []byte(text), 0o600, false)
}

// looksOurs reports whether the directory is empty, or a store whose version
// file was lost.
func (r *Root) looksOurs() (bool, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return false, err
	}
	empty := true
	for _, e := range entries {
		switch name := e.Name(); {
		case name == leaseDir, name == "layers":
			return true, nil
		case name == "lost+found", name == versionFile, strings.HasPrefix(name, tempPrefix):
			// A mount point, damage, or another process that makes
			// this store right now.
		case name == lockDir:
			// A process that had the store open when it was removed
			// locks things still.
		case name == tmpDir && len(entries) == 1 && len(names(r.Path(tmpDir))) == 0:
			// Whoever starts a daemon may have made it a TMPDIR.
		default:
			empty = false
		}
	}
	return empty, nil
}

// Share returns another Root of the same store, for a part of this process's
// work that ends before the process does: it has a lease and temporary files of
// its own, which its Close gives up.
func (r *Root) Share() *Root { return &Root{dir: r.dir} }

// Dir is the store's path, absolute and without symlinks.
func (r *Root) Dir() string { return r.dir }

// Path joins elem to the store's path.
func (r *Root) Path(elem ...string) string {
	return filepath.Join(append([]string{r.dir}, elem...)...)
}

// MkdirAll makes a directory of the store, with its parents, and returns its
// path.
func (r *Root) MkdirAll(elem ...string) (string, error) {
	dir := r.Path(elem...)
	return dir, os.MkdirAll(dir, 0o700)
}

// Close gives up the process's lease and removes its temporary files. It may be
// called twice.
func (r *Root) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	return r.Release()
}

// Release gives up what was leased so far, and removes the temporary files. What
// is leased or made later is so anew.
func (r *Root) Release() error {
	r.removers.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lease == nil {
		return nil
	}
	l := r.lease
	r.lease = nil
	return r.removeLease(l.id, l.file)
}
