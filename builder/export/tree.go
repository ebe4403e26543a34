package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/progress"
)

// platformDir is the name of a platform's subdirectory where there are several:
// "linux_amd64".
func platformDir(p ocispec.Platform) string {
	return strings.ReplaceAll(platforms.Format(p), "/", "_")
}

// fileTime is the time that files of an exported tree get: a constant one, as in
// layers.
func (x *run) fileTime() time.Time {
	if x.o.Epoch != nil {
		return *x.o.Epoch
	}
	return layers.DefaultModTime
}

// views opens the images' trees, each with the directory that it goes to.
func (x *run) each(ctx context.Context, fn func(v *snapshot.View, prefix string, img Image) error) error {
	for _, img := range x.images {
		prefix := "."
		if x.split() {
			prefix = platformDir(img.Target.Platform)
		}
		v, err := x.Layers.View(ctx, img.Tree, img.Sources)
		if err != nil {
			return err
		}
		if err := fn(v, prefix, img); err != nil {
			return err
		}
	}
	return nil
}

func (x *run) split() bool {
	if x.o.Split != nil {
		return *x.o.Split
	}
	return len(x.images) > 1
}

// overwritten is the error for a file that several platforms have in the same
// place.
func overwritten(name string, img Image) error {
	return fmt.Errorf("%s of %s is there from another platform: leave platform-split=false out", name, platforms.Format(img.Target.Platform))
}

// suffix tells statements of several platforms in one directory apart.
func (x *run) suffix(prefix string, img Image) string {
	if len(x.images) < 2 || prefix != "." {
		return ""
	}
	return platformDir(img.Target.Platform)
}

// walk yields the entries of a view below path, but not path itself, parents
// first.
func walk(ctx context.Context, v *snapshot.View, dir string) iter.Seq2[layers.Entry, error] {
	return func(yield func(layers.Entry, error) bool) { walkDir(ctx, v, dir, yield) }
}

func walkDir(ctx context.Context, v *snapshot.View, dir string, yield func(layers.Entry, error) bool) bool {
	if ctx.Err() != nil {
		return yield(layers.Entry{}, context.Cause(ctx)) && false
	}
	entries, err := v.ReadDir(dir)
	if err != nil {
		return yield(layers.Entry{}, err) && false
	}
	for _, e := range entries {
		if !yield(e, nil) {
			return false
		}
		if e.Type == layers.Dir && !walkDir(ctx, v, e.Path, yield) {
			return false
		}
	}
	return true
}

// tar writes the merged trees as one tar stream.
func (x *run) tar(ctx context.Context) error {
	x.status("sending tarball")
	type content struct {
		v    *snapshot.View
		path string
	}
	return x.file(func(w io.Writer) error {
		var views []*snapshot.View
		var prefixes []string
		var said [][]StatementFile
		err := x.each(ctx, func(v *snapshot.View, prefix string, img Image) error {
			views, prefixes = append(views, v), append(prefixes, prefix)
			files, err := Statements(ctx, v, img, x.o.AttestationPrefix, x.suffix(prefix, img))
			said = append(said, files)
			return err
		})
		if err != nil {
			return err
		}
		entries := func(yield func(layers.Entry, error) bool) {
			seen := map[string]layers.Type{} // of earlier platforms in the same place
			for i, v := range views {
				if prefixes[i] != "." {
					top := layers.Entry{Path: prefixes[i], Type: layers.Dir, Mode: 0o755, ModTime: x.fileTime()}
					if !yield(top, nil) {
						return
					}
				}
				for e, err := range walk(ctx, v, ".") {
					e.ModTime = x.fileTime()
					// What is read from where is told by Origin: the
					// path there, and which view.
					e.Origin = layers.Origin{Input: i, Path: e.Path}
					e.Path = path.Join(prefixes[i], e.Path)
					if len(views) > 1 && !x.split() && err == nil {
						typ, twice := seen[e.Path]
						if twice && typ == layers.Dir && e.Type == layers.Dir {
							continue
						}
						if twice {
							err = overwritten(e.Path, x.images[i])
						}
						seen[e.Path] = e.Type
					}
					if e.Type == layers.Hardlink {
						e.Link = path.Join(prefixes[i], e.Link)
					}
					if !yield(e, err) || err != nil {
						return
					}
				}
				for n, f := range said[i] {
					e := layers.Entry{
						Path: path.Join(prefixes[i], f.Name), Type: layers.Regular, Mode: 0o600, Size: int64(len(f.Data)), ModTime: x.fileTime(),
						Origin: layers.Origin{Input: i, Staged: strconv.Itoa(n)},
					}
					if !yield(e, nil) {
						return
					}
				}
			}
		}
		open := func(e layers.Entry) (io.ReadCloser, error) {
			if n, err := strconv.Atoi(e.Origin.Staged); err == nil {
				return io.NopCloser(bytes.NewReader(said[e.Origin.Input][n].Data)), nil
			}
			c := content{views[e.Origin.Input], e.Origin.Path}
			return c.v.Open(ctx, c.path)
		}
		return layers.WriteTar(ctx, w, entries, open, layers.TarOptions{NoWhiteouts: true})
	})
}

// local writes the merged trees to a directory. Files belong to the user who
// builds; devices are left out.
func (x *run) local(ctx context.Context) error {
	x.status("copying files")
	return dir(x.o.Dest, x.o.Delete, func(stage string) error {
		return x.each(ctx, func(v *snapshot.View, prefix string, img Image) error {
			top := filepath.Join(stage, prefix)
			if err := os.MkdirAll(top, 0o755); err != nil {
				return err
			}
			root, err := os.OpenRoot(top)
			if err != nil {
				return err
			}
			files, err := Statements(ctx, v, img, x.o.AttestationPrefix, x.suffix(prefix, img))
			if err == nil {
				err = x.files(ctx, v, root, img)
			}
			for _, f := range files {
				t := x.fileTime()
				if err == nil {
					err = errors.Join(root.WriteFile(f.Name, f.Data, 0o600), root.Chtimes(f.Name, t, t))
				}
			}
			return errors.Join(err, root.Close())
		})
	})
}

// files writes a tree to a directory that is empty, or has other platforms'
// files.
func (x *run) files(ctx context.Context, v *snapshot.View, root *os.Root, img Image) error {
	// Modes and times of directories are set when they are full: they may
	// not be writable, and writing changes their times.
	var dirs []layers.Entry
	var skipped []string
	buf := make([]byte, 256<<10)
	for e, err := range walk(ctx, v, ".") {
		if err != nil {
			return err
		}
		switch e.Type {
		case layers.Dir:
			dirs = append(dirs, e)
			err = root.Mkdir(e.Path, 0o700)
			if fi, serr := root.Lstat(e.Path); errors.Is(err, fs.ErrExist) && serr == nil && fi.IsDir() {
				err = root.Chmod(e.Path, 0o700)
			}
		case layers.Regular:
			err = x.regular(ctx, v, root, e, buf)
		case layers.Symlink:
			err = root.Symlink(e.Link, e.Path)
		case layers.Hardlink:
			err = root.Link(e.Link, e.Path)
		case layers.Fifo:
			t := x.fileTime()
			err = errors.Join(mkfifo(root, e), root.Chtimes(e.Path, t, t))
		default:
			skipped = append(skipped, e.Path)
		}
		if errors.Is(err, fs.ErrExist) {
			err = overwritten(e.Path, img)
		}
		if err != nil {
			return err
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		e := dirs[i]
		t := x.fileTime()
		if err := errors.Join(root.Chtimes(e.Path, t, t), root.Chmod(e.Path, mode(e))); err != nil {
			return err
		}
	}
	if len(skipped) > 0 {
		x.event(progress.Event{Kind: progress.Warning, Text: fmt.Sprintf("%d devices are not in the output directory: %s", len(skipped), some(skipped))})
	}
	return nil
}

func (x *run) regular(ctx context.Context, v *snapshot.View, root *os.Root, e layers.Entry, buf []byte) (err error) {
	r, err := v.Open(ctx, e.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := root.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, buf)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	if n != e.Size {
		return fmt.Errorf("%s: %d bytes were read instead of %d", e.Path, n, e.Size)
	}
	for k, val := range e.Xattrs {
		if !strings.HasPrefix(k, "user.") {
			continue
		}
		// What the file system, or the user's rights, don't allow here
		// is left out, as cp -a does.
		_ = unix.Fsetxattr(int(f.Fd()), k, []byte(val), 0)
	}
	t := x.fileTime()
	return errors.Join(f.Chmod(mode(e)), root.Chtimes(e.Path, t, t))
}

// mode gives the permission bits in os's form. Files come from images of
// others and will belong to the user: nobody gets the user's rights by them.
func mode(e layers.Entry) os.FileMode {
	m := fs.FileMode(e.Mode & 0o777)
	if e.Mode&0o1000 != 0 && e.Type == layers.Dir {
		m |= os.ModeSticky
	}
	return m
}

func mkfifo(root *os.Root, e layers.Entry) error {
	d, err := root.Open(path.Dir(e.Path))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Mknodat(int(d.Fd()), path.Base(e.Path), unix.S_IFIFO|e.Mode&0o777, 0); err != nil {
		return &fs.PathError{Op: "mkfifo", Path: e.Path, Err: err}
	}
	return nil
}

// some names a few of many.
func some(names []string) string {
	if len(names) > 3 {
		return strings.Join(names[:3], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}
