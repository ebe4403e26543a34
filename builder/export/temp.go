package export

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of what is not finished yet.
const tempPrefix = ".strake-tmp-"

// temp makes a temporary file, or directory, in dir, and removes those of
// processes that were killed. It is locked as long as it is open: what is not
// locked has no owner.
func temp(dir string, isDir bool) (*os.File, error) {
	sweep(dir)
	for {
		f, err := newTemp(dir, isDir)
		if err != nil {
			return nil, err
		}
		// Where there are no locks, nothing is swept.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if isNamed(f) {
			return f, nil
		}
		f.Close() // somebody swept it before it was locked
	}
}

func newTemp(dir string, isDir bool) (*os.File, error) {
	if !isDir {
		return os.CreateTemp(dir, tempPrefix+"*")
	}
	name, err := os.MkdirTemp(dir, tempPrefix+"*")
	if err != nil {
		return nil, err
	}
	return os.Open(name)
}

// isNamed reports whether an open file still has its name.
func isNamed(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(a, b)
}

// sweep removes what killed processes have left in dir, as far as it can.
func sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || e.Type()&^fs.ModeDir != 0 {
			continue
		}
		_ = sweepOne(dir, e.Name())
	}
}

func sweepOne(dir, name string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err // it has an owner
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return errors.Join(removeAll(root, name), root.Close())
}
