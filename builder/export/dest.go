package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/image"
)

// archiveFile writes the destination file, or stdout, by fn. The file is left
// alone if it is the same archive already: nothing grows with what did not
// change.
func (x *run) archiveFile(kind string, bundles []image.Bundle, fn func(w io.Writer) error) error {
	if x.Images == nil || x.o.Dest == "-" {
		return x.file(fn)
	}
	id, err := image.ArchiveID(kind, bundles)
	if err != nil {
		return err
	}
	if dest, err := finalPath(x.o.Dest); err == nil && x.Images.Written(dest, id) {
		x.status("%s is up to date", x.o.Dest)
		return nil
	}
	x.place = func(f *os.File, dest string) error {
		dir, err := finalPath(filepath.Dir(dest))
		if err != nil {
			return err
		}
		if err := x.Images.Place(f, filepath.Join(dir, filepath.Base(dest)), id); err != nil {
			return err
		}
		return f.Close()
	}
	return x.file(fn)
}

// finalPath is the absolute path of an existing file, without symlinks.
func finalPath(p string) (string, error) {
	p, err := filepath.EvalSymlinks(p)
	if err != nil {
		return "", err
	}
	return filepath.Abs(p)
}

// begin begins the archive at the destination with layers, and reports whether it
// has: it only does for a file that will be renamed.
func (x *run) begin(ctx context.Context, ids []layers.ID) bool {
	if !x.o.Tar || x.o.Dest == "-" {
		return false
	}
	dest, replaced, err := destination(x.o.Dest)
	if err != nil || !replaced {
		return false
	}
	x.begun = image.NewEarly(ctx, ids, func() (*os.File, error) { return create(dest) })
	return true
}

// destination returns where a file for dest goes, and whether it goes there by
// renaming: a device or a named pipe is written to, not replaced.
func destination(dest string) (_ string, replaced bool, err error) {
	fi, err := os.Stat(dest)
	switch {
	case err != nil:
		return dest, true, nil // what is wrong, if anything, is found when it is made
	case fi.IsDir():
		return "", false, fmt.Errorf("%s is a directory; the output is a file", dest)
	case !fi.Mode().IsRegular():
		return dest, false, nil
	}
	dest, err = filepath.EvalSymlinks(dest)
	return dest, true, err
}

// create makes the temporary file that will be renamed to dest.
func create(dest string) (*os.File, error) {
	dir := filepath.Dir(dest)
	if dir != "." {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return temp(dir, false)
}

// file writes the destination file, or stdout, by fn.
func (x *run) file(fn func(w io.Writer) error) (err error) {
	if x.o.Dest == "-" {
		return fn(x.Stdout)
	}
	dest, replaced, err := destination(x.o.Dest)
	if err != nil {
		return err
	}
	if !replaced {
		f, err := os.OpenFile(dest, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(fn(f), f.Close())
	}
	f := x.begun.File()
	if f == nil {
		if f, err = create(dest); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := fn(f); err != nil {
		return err
	}
	if err := f.Chmod(0o666 &^ umask()); err != nil {
		return err
	}
	if x.place != nil {
		return x.place(f, dest)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), dest)
}

// dir fills the directory dest: fn writes to an empty directory on the same
// file system, whose contents are then moved to dest, over what is there; with
// alone, what else is there is removed. Nothing outside of dest is touched, whatever symlinks it has below it.
func dir(dest string, alone bool, fn func(stage string) error) (err error) {
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dest)
	if err != nil {
		return err
	}
	defer root.Close()
	lock, err := temp(dest, true)
	if err != nil {
		return err
	}
	defer lock.Close()
	tmp := lock.Name()
	name := filepath.Base(tmp)
	defer func() { err = errors.Join(err, removeAll(root, name)) }()
	if err := fn(tmp); err != nil {
		return err
	}
	if alone {
		if err := removeOthers(root, name, "."); err != nil {
			return err
		}
	}
	return merge(root, name, ".")
}

// merge moves what is in the directory from to the directory to, both in root.
// Directories are united; anything else replaces what has its name.
func merge(root *os.Root, from, to string) error {
	entries, err := fs.ReadDir(root.FS(), filepath.ToSlash(from))
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		old, err := root.Lstat(dst)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case e.IsDir() && old.IsDir():
			info, err := e.Info()
			if err != nil {
				return err
			}
			if err := merge(root, src, dst); err != nil {
				return err
			}
			if err := errors.Join(root.Chmod(dst, info.Mode()), root.Chtimes(dst, info.ModTime(), info.ModTime())); err != nil {
				return err
			}
			continue
		case e.IsDir() || old.IsDir():
			if err := removeAll(root, dst); err != nil {
				return err
			}
		}
		if err := root.Rename(src, dst); err != nil {
			return err
		}
	}
	return nil
}

// removeOthers removes what is in the directory to and not in the directory
// from, both in root.
func removeOthers(root *os.Root, from, to string) error {
	entries, err := fs.ReadDir(root.FS(), filepath.ToSlash(to))
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if dst == from {
			continue
		}
		made, err := root.Lstat(src)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = removeAll(root, dst)
		case err == nil && made.IsDir() && e.IsDir():
			err = removeOthers(root, src, dst)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a tree, directories that can't be written to among it.
func removeAll(root *os.Root, name string) error {
	if err := root.RemoveAll(name); err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = fs.WalkDir(root.FS(), filepath.ToSlash(name), func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = root.Chmod(path, 0o700)
		}
		return nil
	})
	return root.RemoveAll(name)
}

// umask returns the process's file mode creation mask. It is read from /proc,
// since umask(2) can only be asked by changing it.
func umask() os.FileMode {
	b, err := os.ReadFile("/proc/self/status")
	if err == nil {
		for line := range strings.Lines(string(b)) {
			var m uint32
			if n, _ := fmt.Sscanf(line, "Umask: %o", &m); n == 1 {
				return os.FileMode(m) & 0o777
			}
		}
	}
	return 0o022
}
