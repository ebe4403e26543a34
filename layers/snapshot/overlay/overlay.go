// Package overlay makes writable file systems by overlayfs: the layer
// directories are its lower directories, and what is written goes to an upper
// directory that becomes the next layer.
//
// The mounts that it describes are to be made with redirect_dir=nofollow,
// metacopy=off and index=off, so that an upper directory says everything that
// was written in the form that any overlay mount, and package layers, reads.
// (redirect_dir=off means "follow" by default, which doesn't go with userxattr.)
package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
)

// MaxLayers is how many lower directories overlayfs takes.
const MaxLayers = 500

// Driver is the snapshot.Driver. The zero value is for root.
type Driver struct {
	// UserXattr is the mount option userxattr, for user namespaces.
	UserXattr bool
	// RecordOwners: see layers.ApplyOptions.
	RecordOwners bool
}

// Name is "overlay".
func (d *Driver) Name() string { return "overlay" }

// Prepare makes the upper directory, with the owner, mode and attributes of the
// root below it.
func (d *Driver) Prepare(ctx context.Context, lower *merge.Stack, work string) (snapshot.Mount, error) {
	m := snapshot.Mount{
		Upper:     filepath.Join(work, "upper"),
		Work:      filepath.Join(work, "work"),
		UserXattr: d.UserXattr,
	}
	// Overlayfs doesn't look for the mark of an opaque directory at the root:
	// what is below one is left out here.
	root, dirs, err := lower.Shown()
	if err != nil {
		return snapshot.Mount{}, err
	}
	dirs = merge.Topmost(dirs)
	if len(dirs) > MaxLayers {
		return snapshot.Mount{}, fmt.Errorf("%d layers are more than overlayfs can stack (%d)", len(dirs), MaxLayers)
	}
	if len(dirs) == 0 {
		// An overlay needs one.
		empty := filepath.Join(work, "empty")
		if err := os.Mkdir(empty, 0o755); err != nil {
			return snapshot.Mount{}, err
		}
		dirs = []string{empty}
	}
	m.Lower = dirs
	for _, dir := range []string{m.Upper, m.Work} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return snapshot.Mount{}, err
		}
	}
	return m, d.options().SetAttrs(m.Upper, root)
}

func (d *Driver) options() layerdir.Options {
	return layerdir.Options{UserXattr: d.UserXattr, RecordOwners: d.RecordOwners}
}

// Commit takes what is not new out of the upper directory and makes it the
// layer directory.
func (d *Driver) Commit(ctx context.Context, m snapshot.Mount, lower *merge.Stack, work, dir string) error {
	c := committer{
		ctx:     ctx,
		upper:   m.Upper,
		below:   lower,
		options: d.options(),
	}
	root, err := layerdir.Stat(m.Upper)
	if err != nil {
		return err
	}
	if err := layerdir.Strip(m.Upper, root.Internal...); err != nil {
		return err
	}
	if _, err := c.dir(".", root, true); err != nil {
		return err
	}
	return os.Rename(m.Upper, dir)
}

// committer walks an upper directory.
type committer struct {
	ctx     context.Context
	upper   string
	below   *merge.Stack
	options layerdir.Options
}

// dir cleans the directory at path, which st describes, and reports whether
// anything in it is new. shows tells that the directory below shows through.
func (c *committer) dir(path string, st layerdir.File, shows bool) (kept bool, err error) {
	if err := c.ctx.Err(); err != nil {
		return false, context.Cause(c.ctx)
	}
	host := filepath.Join(c.upper, path)
	names, err := layerdir.Names(host)
	if err != nil {
		return false, err
	}
	changed := false
	for _, name := range names {
		k, err := c.file(filepath.Join(path, name), shows)
		if err != nil {
			return false, err
		}
		kept = kept || k
		changed = changed || !k
	}
	if kept && changed {
		err = layerdir.SetTime(host, st.ModTime)
	}
	return kept, err
}

// file cleans the file or tree at path, and removes it if it is nothing new.
func (c *committer) file(path string, shows bool) (kept bool, err error) {
	host := filepath.Join(c.upper, path)
	st, err := layerdir.Stat(host)
	if err != nil {
		return false, err
	}
	if c.options.ModeChanged(st) {
		st.Mode = st.DiskMode
		if err := c.options.RecordOwner(host, st.Entry); err != nil {
			return false, err
		}
	}
	var below merge.Found // Type is 0 if nothing is there
	if shows {
		below, err = c.below.Lookup(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	switch st.Type {
	case layers.Dir:
		return c.subdir(path, st, below)
	case layers.Whiteout:
		if below.Type == 0 {
			return false, os.Remove(host)
		}
		return true, nil
	case 0: // a socket
		if err := os.Remove(host); err != nil || below.Type == 0 {
			return false, err
		}
		return true, c.options.Whiteout(host)
	}
	same, err := c.same(path, st, below)
	if err != nil {
		return false, err
	}
	if same {
		return false, os.Remove(host)
	}
	return true, layerdir.Strip(host, st.Internal...)
}

// subdir does what file does for a directory.
func (c *committer) subdir(path string, st layerdir.File, below merge.Found) (kept bool, err error) {
	host := filepath.Join(c.upper, path)
	over := below.Type == layers.Dir
	if st.Opaque && over {
		// A mark that hides nothing is none.
		empty, err := c.below.Empty(path)
		if err != nil {
			return false, err
		}
		st.Opaque = !empty
	}
	opaque := st.Opaque && over
	for _, name := range st.Internal {
		if opaque && layerdir.IsOpaqueMark(name) {
			continue
		}
		if err := layerdir.Strip(host, name); err != nil {
			return false, err
		}
	}
	kept, err = c.dir(path, st, over && !opaque)
	if err != nil {
		return false, err
	}
	if kept || opaque || !over || !layerdir.Same(st.Entry, below.Entry) {
		return true, nil
	}
	return false, os.Remove(host)
}

// same reports whether a file that was copied up is what it was. Files with
// several links stay: what they are linked to is new.
func (c *committer) same(path string, st layerdir.File, below merge.Found) (bool, error) {
	if below.Type == 0 || st.Links > 1 || !layerdir.Same(st.Entry, below.Entry) {
		return false, nil
	}
	if st.Type != layers.Regular || st.Size == 0 {
		return true, nil
	}
	return layerdir.SameContent(filepath.Join(c.upper, path), c.below.Path(below))
}
