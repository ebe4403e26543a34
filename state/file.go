package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// tempPrefix begins the names of files that WriteFile has not finished.
const tempPrefix = ".tmp-"

// WriteFile replaces the file at path by data in one step: readers see the old
// or the new content. With sync, data is on disk before it takes its name, and
// the name when WriteFile returns.
//
// The temporary file is beside path. For files of the store there is
// Root.WriteFile, which leaves nothing behind if the process is killed.
func WriteFile(path string, data []byte, perm os.FileMode, sync bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	return replace(f, path, data, perm, sync)
}

// WriteFile does what the function does, for a file of the store.
func (r *Root) WriteFile(path string, data []byte, perm os.FileMode, sync bool) error {
	f, err := r.TempFile("write")
	if err != nil {
		return err
	}
	return replace(f, path, data, perm, sync)
}

// replace writes data to the temporary file f and renames it to path.
func replace(f *os.File, path string, data []byte, perm os.FileMode, sync bool) error {
	err := fill(f, data, perm, sync)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if sync {
		return SyncDir(filepath.Dir(path))
	}
	return nil
}

// fill writes and closes f.
func fill(f *os.File, data []byte, perm os.FileMode, sync bool) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// sameFile reports whether path is the file that f is.
func sameFile(f *os.File, path string) (bool, error) {
	var open, named syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &open); err != nil {
		return false, &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if err := syscall.Lstat(path, &named); err != nil {
		if err == syscall.ENOENT {
			return false, nil
		}
		return false, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return open.Dev == named.Dev && open.Ino == named.Ino, nil
}
