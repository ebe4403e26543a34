package copydir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
)

// Commit compares the copy with what it was, and moves what is new in it to the
// layer directory.
func (d *Driver) Commit(ctx context.Context, m snapshot.Mount, lower *merge.Stack, work, dir string) error {
	was, err := loadIndex(filepath.Join(work, indexFile))
	if err != nil {
		return err
	}
	c := committer{
		ctx:     ctx,
		root:    m.Bind,
		below:   lower,
		was:     was,
		options: d.options(),
		links:   map[inode]*group{},
	}
	root, err := layerdir.Stat(m.Bind)
	if err != nil {
		return err
	}
	if err := c.dir(".", true); err != nil {
		return err
	}
	c.relink()
	return c.build(dir, root)
}

// change is a path that is in the layer.
type change struct {
	path string
	file layerdir.File // Type is Whiteout if the path is gone
}

// group is the paths of one file.
type group struct {
	changed bool
	rest    []change // those that are what they were
}

// committer compares a tree with what it was.
type committer struct {
	ctx     context.Context
	root    string
	below   *merge.Stack
	was     index
	options layerdir.Options

	changes []change
	links   map[inode]*group
}

// dir compares a directory. shows tells that it is the one it was, or takes its
// place without hiding what was in it.
func (c *committer) dir(path string, shows bool) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	names, err := layerdir.Names(filepath.Join(c.root, path))
	if err != nil {
		return err
	}
	below := map[string]merge.Found{}
	if shows {
		list, err := c.below.ReadDir(path)
		if err != nil {
			return err
		}
		for _, f := range list {
			below[filepath.Base(f.Path)] = f
		}
	}
	for _, name := range names {
		here, err := c.file(filepath.Join(path, name), below[name])
		if err != nil {
			return err
		}
		if here {
			delete(below, name)
		}
	}
	for _, f := range below {
		if _, copied := c.was[f.Path]; copied {
			c.add(f.Path, layerdir.File{Entry: layers.Entry{Type: layers.Whiteout}})
		}
	}
	return nil
}

func (c *committer) add(path string, f layerdir.File) {
	c.changes = append(c.changes, change{path, f})
}

// file compares a file or tree with what is below it, whose Type is 0 if there
// is nothing. here is false for what can't be in a layer.
func (c *committer) file(path string, below merge.Found) (here bool, err error) {
	host := filepath.Join(c.root, path)
	st, err := layerdir.Stat(host)
	if err != nil {
		return false, err
	}
	now, err := stampOf(host)
	if err != nil {
		return false, err
	}
	switch st.Type {
	case 0: // a socket
		return false, nil
	case layers.Dir:
		return true, c.subdir(path, st, now, below)
	}
	if c.options.ModeChanged(st) {
		st.Mode = st.DiskMode
		if err := c.options.RecordOwner(host, st.Entry); err != nil {
			return false, err
		}
	}
	same := below.Type != 0 && now == c.was[path]
	if !same {
		if same, err = c.same(path, st, below); err != nil {
			return false, err
		}
	}
	if st.Links > 1 {
		c.link(path, st, same)
	}
	if !same {
		c.add(path, st)
	}
	return true, nil
}

// same reports whether a file that was written to is what it was.
func (c *committer) same(path string, st layerdir.File, below merge.Found) (bool, error) {
	if below.Type == 0 || !layerdir.Same(st.Entry, below.Entry) {
		return false, nil
	}
	if st.Type != layers.Regular || st.Size == 0 {
		return true, nil
	}
	return layerdir.SameContent(filepath.Join(c.root, path), c.below.Path(below))
}

func (c *committer) subdir(path string, st layerdir.File, now stamp, below merge.Found) error {
	if c.options.ModeChanged(st) {
		st.Mode = st.DiskMode
	}
	over := below.Type == layers.Dir
	st.Opaque = false
	if over && !now.sameFile(c.was[path]) {
		// Another directory took its place.
		empty, err := c.below.Empty(path)
		if err != nil {
			return err
		}
		st.Opaque = !empty
	}
	if st.Opaque || !over || !layerdir.Same(st.Entry, below.Entry) {
		c.add(path, st)
	}
	return c.dir(path, over && !st.Opaque)
}

// link notes a path of a file that has several.
func (c *committer) link(path string, st layerdir.File, same bool) {
	n := inode{dev: st.Dev, ino: st.Ino}
	g := c.links[n]
	if g == nil {
		g = &group{}
		c.links[n] = g
	}
	if same {
		g.rest = append(g.rest, change{path, st})
	} else {
		g.changed = true
	}
}

// relink adds the unchanged paths of files that got new ones: the layer has to
// say that they are one file.
func (c *committer) relink() {
	for _, g := range c.links {
		if g.changed {
			c.changes = append(c.changes, g.rest...)
		}
	}
}

// build makes the layer directory.
func (c *committer) build(dir string, root layerdir.File) error {
	slices.SortFunc(c.changes, func(a, b change) int { return layers.ComparePaths(a.path, b.path) })
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	dirs := []change{{".", root}}
	made := map[string]bool{".": true}
	for _, ch := range c.changes {
		parents, err := c.parents(dir, filepath.Dir(ch.path), made)
		if err != nil {
			return err
		}
		dirs = append(dirs, parents...)
		host := filepath.Join(dir, ch.path)
		switch ch.file.Type {
		case layers.Whiteout:
			err = c.options.Whiteout(host)
		case layers.Dir:
			err = os.Mkdir(host, 0o700)
			made[ch.path] = true
			dirs = append(dirs, ch)
		default:
			err = c.take(ch.path, host)
		}
		if err != nil {
			return err
		}
	}
	for _, ch := range slices.Backward(dirs) {
		host := filepath.Join(dir, ch.path)
		if ch.file.Opaque {
			if err := c.options.Opaque(host); err != nil {
				return err
			}
		}
		if err := c.options.SetAttrs(host, ch.file.Entry); err != nil {
			return err
		}
	}
	return nil
}

// take moves a file out of the tree. Directories may forbid that to one who
// isn't root; what their modes were is known by now.
func (c *committer) take(path, host string) error {
	src := filepath.Join(c.root, path)
	err := os.Rename(src, host)
	if errors.Is(err, fs.ErrPermission) && os.Chmod(filepath.Dir(src), 0o700) == nil {
		err = os.Rename(src, host)
	}
	return err
}

// parents makes the directory at path of the layer directory dir, and those
// that lead to it, and returns what it made.
func (c *committer) parents(dir, path string, made map[string]bool) ([]change, error) {
	if made[path] {
		return nil, nil
	}
	list, err := c.parents(dir, filepath.Dir(path), made)
	if err != nil {
		return nil, err
	}
	st, err := layerdir.Stat(filepath.Join(c.root, path))
	if err != nil {
		return nil, err
	}
	st.Opaque = false
	made[path] = true
	return append(list, change{path, st}), os.Mkdir(filepath.Join(dir, path), 0o700)
}
