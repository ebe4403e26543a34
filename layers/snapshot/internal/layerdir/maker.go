package layerdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/layers"
)

// Maker makes a layer directory of entries.
//
// All directories are made first, by one goroutine: then everything that leads
// to an entry is known to be a directory of this layer, whatever symlinks the
// entries have. Files follow in parallel, hard links after them, and the
// attributes of the directories, which lose nothing any more then, last.
type Maker struct {
	Dir     string // to be made
	Options Options
	// Slots bounds the files made at once by all who share it.
	Slots chan struct{}
	// File makes the Regular e, which is not inline, at the path host. If it
	// has the attributes of e then, attrs is false.
	File func(ctx context.Context, e layers.Entry, host string) (attrs bool, err error)

	dirs map[string]int // entry of each directory; -1 for those that are implied
}

// batch is how many files a goroutine makes while it has a slot.
const batch = 64

// Make makes the directory. After an error some of it is there.
func (m *Maker) Make(ctx context.Context, entries []layers.Entry) error {
	if err := os.Mkdir(m.Dir, 0o700); err != nil {
		return err
	}
	m.dirs = map[string]int{".": -1}
	var order []string // directories, parents first
	var files, links []int
	for i, e := range entries {
		if e.Path == "." && e.Type == layers.Dir {
			m.dirs["."] = i
			continue
		}
		if !ValidPath(e.Path) {
			return fmt.Errorf("%q: not a path in a layer", e.Path)
		}
		made, err := m.parents(parentOf(e.Path))
		if err != nil {
			return err
		}
		order = append(order, made...)
		switch e.Type {
		case layers.Dir:
			// One that an entry before implied is there already.
			if j, ok := m.dirs[e.Path]; !ok {
				if err := os.Mkdir(m.host(e.Path), 0o700); err != nil {
					return err
				}
				order = append(order, e.Path)
			} else if j >= 0 {
				return fmt.Errorf("%s: twice in a layer", e.Path)
			}
			m.dirs[e.Path] = i
		case layers.Hardlink:
			links = append(links, i)
		default:
			files = append(files, i)
		}
	}
	if err := m.makeFiles(ctx, entries, files); err != nil {
		return err
	}
	for _, i := range links {
		if err := m.link(entries[i]); err != nil {
			return err
		}
	}
	for i := len(order) - 1; i >= 0; i-- {
		if err := m.finishDir(entries, order[i]); err != nil {
			return err
		}
	}
	return m.finishDir(entries, ".")
}

func (m *Maker) host(path string) string { return filepath.Join(m.Dir, path) }

// parents makes the directory at path, and those that lead to it, if there is
// no entry for them. It returns what it made.
func (m *Maker) parents(path string) (made []string, err error) {
	if _, ok := m.dirs[path]; ok {
		return nil, nil
	}
	made, err = m.parents(parentOf(path))
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(m.host(path), 0o700); err != nil {
		return nil, err
	}
	m.dirs[path] = -1
	return append(made, path), nil
}

func (m *Maker) makeFiles(ctx context.Context, entries []layers.Entry, files []int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(m.Slots))
	for len(files) > 0 && ctx.Err() == nil {
		part := files[:min(batch, len(files))]
		files = files[len(part):]
		g.Go(func() error {
			select {
			case m.Slots <- struct{}{}:
				defer func() { <-m.Slots }()
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			for _, i := range part {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := m.makeFile(ctx, entries[i]); err != nil {
					return fmt.Errorf("%s: %w", entries[i].Path, err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil && len(files) > 0 {
		return context.Cause(ctx)
	}
	return nil
}

func (m *Maker) makeFile(ctx context.Context, e layers.Entry) error {
	host := m.host(e.Path)
	attrs := true
	var err error
	switch {
	case e.Type != layers.Regular:
		err = m.Options.Make(host, e)
		if errors.Is(err, fs.ErrPermission) && (e.Type == layers.Char || e.Type == layers.Block) && (m.Options.UserXattr || m.Options.RecordOwners) {
			return nil // as layers.Apply does in a user namespace
		}
	case e.Inline:
		err = os.WriteFile(host, e.Data, 0o600)
	default:
		attrs, err = m.File(ctx, e, host)
	}
	if err != nil || !attrs {
		return err
	}
	return m.Options.SetAttrs(host, WithTime(e))
}

func (m *Maker) link(e layers.Entry) error {
	if !ValidPath(e.Link) {
		return fmt.Errorf("%s: linked to %q, which is not a path in a layer", e.Path, e.Link)
	}
	// The parents of the target are directories of this layer, or Link fails.
	if _, ok := m.dirs[parentOf(e.Link)]; !ok {
		return fmt.Errorf("%s: linked to %s, which is not in the layer", e.Path, e.Link)
	}
	return os.Link(m.host(e.Link), m.host(e.Path))
}

func (m *Maker) finishDir(entries []layers.Entry, path string) error {
	e := Implied(path)
	if i := m.dirs[path]; i >= 0 {
		e = WithTime(entries[i])
	}
	if e.Opaque {
		if err := m.Options.Opaque(m.host(path)); err != nil {
			return err
		}
	}
	return m.Options.SetAttrs(m.host(path), e)
}

// Implied is the entry of a directory that leads to others and has none itself.
func Implied(path string) layers.Entry {
	return layers.Entry{Path: path, Type: layers.Dir, Mode: 0o755, ModTime: layers.DefaultModTime}
}

// WithTime gives an entry without a time the one that files made here have.
func WithTime(e layers.Entry) layers.Entry {
	if e.ModTime.IsZero() {
		e.ModTime = layers.DefaultModTime
	}
	return e
}

// ValidPath reports whether path has the form of layers.Entry.Path, other than
// that of the root.
func ValidPath(path string) bool {
	if path == "" || strings.IndexByte(path, 0) >= 0 {
		return false
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return true
}

func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}
