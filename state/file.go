package state

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sync/errgroup"
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
	return replace(f, path, data, perm, sync, os.Rename)
}

// WriteFile does what the function does, for a file of the store.
func (r *Root) WriteFile(path string, data []byte, perm os.FileMode, sync bool) error {
	f, err := r.TempFile("write")
	if err != nil {
		return err
	}
	return replace(f, path, data, perm, sync, Place)
}

// File is a file to be written: path and content.
type File struct {
	Path string
	Data []byte
}

// WriteFiles replaces files of the store, one after the other in the order given,
// each in one step and durably. Before the first takes its name the content of
// all is on disk, and ready, which is called meanwhile, has succeeded. The disk is
// waited for twice, however many files there are: file systems commit what is
// synced at once together.
func (r *Root) WriteFiles(files []File, perm os.FileMode, ready func() error) (err error) {
	temps := make([]string, len(files))
	defer func() {
		for _, name := range temps {
			if name != "" {
				err = errors.Join(err, os.Remove(name))
			}
		}
	}()
	var g errgroup.Group
	g.Go(ready)
	for i, file := range files {
		f, ferr := r.TempFile("write")
		if ferr != nil {
			return errors.Join(ferr, g.Wait())
		}
		temps[i] = f.Name()
		g.Go(func() error { return fill(f, file.Data, perm, true) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	dirs := map[string]bool{}
	for i, file := range files {
		if err := Place(temps[i], file.Path); err != nil {
			return err
		}
		temps[i] = ""
		dirs[filepath.Dir(file.Path)] = true
	}
	for dir := range dirs {
		g.Go(func() error { return SyncDir(dir) })
	}
	return g.Wait()
}

// Place renames a finished file to its place in the store. A directory there is
// damage, and removed.
func Place(from, to string) error {
	err := os.Rename(from, to)
	if err == nil || !removeDir(to) {
		return err
	}
	return os.Rename(from, to)
}

// OpenFile opens a file of the store that is never replaced, as a lock, and makes
// it if it is not there. A directory in its place is damage, and removed.
func OpenFile(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|os.O_CREATE, 0o600)
	if errors.Is(err, syscall.EISDIR) && removeDir(path) {
		f, err = os.OpenFile(path, flag|os.O_CREATE, 0o600)
	}
	return f, err
}

// removeDir removes a directory that stands where a file belongs.
func removeDir(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.IsDir() && RemoveAll(path) == nil
}

// replace writes data to the temporary file f and renames it to path.
func replace(f *os.File, path string, data []byte, perm os.FileMode, sync bool, rename func(from, to string) error) error {
	err := fill(f, data, perm, sync)
	if err == nil {
		err = rename(f.Name(), path)
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

const sealPrefix = "\n\"crc32c:"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal adds a checksum to JSON that is to be a file of the store, as a line of
// its own: a flipped bit may leave it JSON and make it say something else.
func Seal(data []byte) []byte {
	return fmt.Appendf(data[:len(data):len(data)], "%s%08x\"\n", sealPrefix, crc32.Checksum(data, castagnoli))
}

// Unseal returns what was sealed, and whether it is undamaged. Data without a
// checksum was written before there were any, and is taken as it is.
func Unseal(data []byte) ([]byte, bool) {
	i := bytes.LastIndex(data, []byte(sealPrefix))
	if i < 0 {
		return data, true
	}
	return data[:i], bytes.Equal(Seal(data[:i]), data)
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
