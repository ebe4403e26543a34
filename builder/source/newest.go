package source

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

// NewestInTar returns the time of the newest regular file of a tar stream, and
// the zero time if it has none, or is no tar stream.
func NewestInTar(r io.Reader) (newest time.Time, err error) {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF || errors.Is(err, tar.ErrHeader) && newest.IsZero() {
			return newest, nil
		}
		if err != nil {
			return time.Time{}, err
		}
		if at := h.ModTime.UTC(); h.Typeflag == tar.TypeReg && at.After(newest) {
			newest = at
		}
	}
}

// Newest returns the time of the newest regular file in the directory, and the
// zero time if there is none. Ignored files don't count.
func (d *Dir) Newest() (newest time.Time, err error) {
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return time.Time{}, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if d.o.Ignored != nil {
			switch ignored, skip := d.o.Ignored(name, e.IsDir()); {
			case skip && e.IsDir():
				return fs.SkipDir
			case ignored:
				return nil
			}
		}
		if !e.Type().IsRegular() {
			return nil
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && info.ModTime().After(newest) {
			newest = info.ModTime().UTC()
		}
		return err
	})
	return newest, err
}
