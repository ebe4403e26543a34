// Package merge sees a list of layers as the one tree that they make, without
// mounting anything.
package merge

import (
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
)

// Layer is one layer of a Stack: a directory (*Dir) or a list of entries.
type Layer interface {
	// Stat returns the entry at path, or fs.ErrNotExist. Path is set; hard
	// links are given as what they link to. All that leads to path are
	// directories of this layer.
	Stat(path string) (layers.Entry, error)
	// Names lists a directory of this layer, in any order.
	Names(path string) ([]string, error)
}

// Found is an entry and the layer it comes from.
type Found struct {
	layers.Entry
	Layer int // index in the Stack
}

// Stack is a list of layers, the lowest first. It may be used by several
// goroutines.
type Stack struct {
	layers []Layer

	mu     sync.Mutex
	dirs   map[string]*dir
	listed int // entries in listings
}

// dir is a directory of the merged tree.
type dir struct {
	Found
	from    []int // the layers it shows, the highest first
	listing []Found
	full    bool // listing is all that is in it
}

// What a Stack remembers at most. Beyond it things are looked up again.
const (
	maxDirs   = 50_000
	maxListed = 50_000
)

// New returns the Stack of layers.
func New(list []Layer) *Stack {
	return &Stack{layers: list, dirs: map[string]*dir{}}
}

// Dirs returns the Stack of layer directories.
func Dirs(paths []string) *Stack {
	list := make([]Layer, len(paths))
	room := NewRoom(maxDirs)
	for i, p := range paths {
		list[i] = NewDir(p, room)
	}
	return New(list)
}

// Path is the host's path of what Lookup or ReadDir found in a layer directory.
func (s *Stack) Path(f Found) string { return s.layers[f.Layer].(*Dir).Path(f.Entry.Path) }

// Shown returns the root directory, and the layer directories that show in the
// tree, the lowest first: not those below one whose root is opaque.
func (s *Stack) Shown() (root layers.Entry, dirs []string, err error) {
	d, err := s.root()
	if err != nil {
		return layers.Entry{}, nil, err
	}
	dirs = make([]string, 0, len(d.from))
	for _, i := range slices.Backward(d.from) {
		dirs = append(dirs, s.layers[i].(*Dir).path)
	}
	return d.Entry, dirs, nil
}

// Lookup returns the entry at path, or fs.ErrNotExist if nothing is there or
// what leads there are not directories.
func (s *Stack) Lookup(path string) (Found, error) {
	if path != "." && !layerdir.ValidPath(path) {
		return Found{}, &fs.PathError{Op: "look up", Path: path, Err: fs.ErrInvalid}
	}
	if path == "." {
		d, err := s.root()
		if err != nil {
			return Found{}, err
		}
		return d.Found, nil
	}
	parent, name := split(path)
	d, err := s.dir(parent)
	if err != nil {
		return Found{}, notExist(path, err)
	}
	f, _, err := s.child(d, name)
	return f, err
}

// ReadDir returns what is in the directory at path, sorted by name. The result
// is not to be changed.
func (s *Stack) ReadDir(path string) ([]Found, error) {
	if path != "." && !layerdir.ValidPath(path) {
		return nil, &fs.PathError{Op: "read directory", Path: path, Err: fs.ErrInvalid}
	}
	d, err := s.dir(path)
	if err != nil {
		return nil, err
	}
	if list, ok := s.listing(d); ok {
		return list, nil
	}
	seen := map[string]bool{}
	var list []Found
	for _, i := range d.from {
		names, err := s.layers[i].Names(path)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if seen[name] {
				continue
			}
			seen[name] = true
			e, err := s.layers[i].Stat(join(path, name))
			if err != nil {
				return nil, err
			}
			if e.Type == layers.Whiteout || e.Type == 0 {
				continue
			}
			list = append(list, Found{e, i})
		}
	}
	slices.SortFunc(list, func(a, b Found) int { return strings.Compare(a.Path, b.Path) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if !d.full && s.listed+len(list) <= maxListed {
		d.listing, d.full = list, true
		s.listed += len(list)
	}
	return list, nil
}

// Empty reports whether the directory at path has nothing in it.
func (s *Stack) Empty(path string) (bool, error) {
	list, err := s.ReadDir(path)
	return len(list) == 0, err
}

func (s *Stack) listing(d *dir) ([]Found, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.listing, d.full
}

// root returns the root directory: all layers above the highest opaque one
// show in it.
func (s *Stack) root() (*dir, error) {
	if d := s.cached("."); d != nil {
		return d, nil
	}
	d := &dir{Found: Found{layers.Entry{Path: ".", Type: layers.Dir, Mode: 0o755}, -1}}
	for i := len(s.layers) - 1; i >= 0; i-- {
		e, err := s.layers[i].Stat(".")
		if err != nil {
			return nil, err
		}
		if len(d.from) == 0 {
			d.Found = Found{e, i}
		}
		d.from = append(d.from, i)
		if e.Opaque {
			break
		}
	}
	s.remember(".", d)
	return d, nil
}

// dir returns the directory at path.
func (s *Stack) dir(path string) (*dir, error) {
	if path == "." {
		return s.root()
	}
	if d := s.cached(path); d != nil {
		return d, nil
	}
	parent, name := split(path)
	p, err := s.dir(parent)
	if err != nil {
		return nil, notExist(path, err)
	}
	f, from, err := s.child(p, name)
	if err != nil {
		return nil, err
	}
	if f.Type != layers.Dir {
		return nil, notExist(path, nil)
	}
	d := &dir{Found: f, from: from}
	s.remember(path, d)
	return d, nil
}

// child looks a name up in a directory. from are the layers that show in it if
// it is a directory.
func (s *Stack) child(d *dir, name string) (f Found, from []int, err error) {
	path := join(d.Path, name)
	if list, ok := s.listing(d); ok {
		i, ok := slices.BinarySearchFunc(list, path, func(f Found, p string) int { return strings.Compare(f.Path, p) })
		if !ok {
			return Found{}, nil, notExist(path, nil)
		}
		if list[i].Type != layers.Dir {
			return list[i], nil, nil
		}
	}
	for _, i := range d.from {
		e, err := s.layers[i].Stat(path)
		if isNotExist(err) {
			continue
		}
		if err != nil {
			return Found{}, nil, err
		}
		if len(from) == 0 {
			if e.Type == layers.Whiteout || e.Type == 0 {
				break
			}
			f = Found{e, i}
		}
		if e.Type != layers.Dir {
			break
		}
		from = append(from, i)
		if e.Opaque {
			break
		}
	}
	if f.Type == 0 {
		return Found{}, nil, notExist(path, nil)
	}
	return f, from, nil
}

func (s *Stack) cached(path string) *dir {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirs[path]
}

func (s *Stack) remember(path string, d *dir) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dirs) < maxDirs {
		s.dirs[path] = d
	}
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func split(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return ".", path
}
