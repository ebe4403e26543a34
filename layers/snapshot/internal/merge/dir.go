package merge

import (
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
)

// Dir is a layer directory. Nothing changes it, so it remembers what it was
// asked for: trees of many layers are looked through without a system call for
// each of them. It may be used by several goroutines.
type Dir struct {
	path string
	room *Room

	mu      sync.Mutex
	entries map[string]layers.Entry
	dirs    map[string]*names
}

// names is what is known of the names in a directory.
type names struct {
	listed bool
	large  bool     // too large to be listed
	list   []string // sorted
}

// maxNames is the size of a directory, in bytes of its entries, above which its
// names are not remembered.
const maxNames = 16 << 10

// Room bounds what any number of Dirs remember together.
type Room struct{ left atomic.Int64 }

// NewRoom returns room for n entries or names.
func NewRoom(n int) *Room {
	r := &Room{}
	r.left.Store(int64(n))
	return r
}

// Full reports whether nothing more can be remembered.
func (r *Room) Full() bool { return r == nil || r.left.Load() <= 0 }

func (r *Room) take(n int) bool {
	if r.Full() {
		return false
	}
	r.left.Add(int64(-n))
	return true
}

// NewDir returns the layer directory at path. Without room it remembers
// nothing.
func NewDir(path string, room *Room) *Dir {
	return &Dir{path: path, room: room, entries: map[string]layers.Entry{}, dirs: map[string]*names{}}
}

// Path is the host's path of a file in the layer.
func (d *Dir) Path(path string) string {
	if path == "." {
		return d.path
	}
	return d.path + "/" + path
}

// Stat implements Layer.
func (d *Dir) Stat(path string) (layers.Entry, error) {
	d.mu.Lock()
	e, known := d.entries[path]
	missing := !known && path != "." && d.missing(path)
	d.mu.Unlock()
	if missing {
		return layers.Entry{}, fs.ErrNotExist
	}
	if known {
		return e, nil
	}
	f, err := layerdir.Stat(d.Path(path))
	f.Path = path
	if err == nil && d.room.take(1) {
		d.mu.Lock()
		d.entries[path] = f.Entry
		d.mu.Unlock()
	}
	return f.Entry, err
}

// missing reports whether nothing is at path, as far as names tell. What is in
// a directory is listed when it is asked for the second time: one that matters
// to one path only isn't worth it.
func (d *Dir) missing(path string) bool {
	parent, name := split(path)
	n := d.dirs[parent]
	if n == nil {
		if d.room.take(1) {
			d.dirs[parent] = &names{}
		}
		return false
	}
	if !n.listed {
		n.listed = true
		list, err := layerdir.SomeNames(d.Path(parent), maxNames)
		if n.large = err != nil || !d.room.take(len(list)); !n.large {
			slices.Sort(list)
			n.list = list
		}
	}
	if n.large {
		return false
	}
	_, ok := slices.BinarySearchFunc(n.list, name, strings.Compare)
	return !ok
}

// Names implements Layer.
func (d *Dir) Names(path string) ([]string, error) {
	d.mu.Lock()
	n := d.dirs[path]
	d.mu.Unlock()
	if n != nil && n.listed && !n.large {
		return n.list, nil
	}
	return layerdir.Names(d.Path(path))
}
