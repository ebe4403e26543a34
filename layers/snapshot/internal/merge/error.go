package merge

import (
	"errors"
	"io/fs"
	"syscall"
)

// notExist tells that nothing is at path, unless err is another failure.
func notExist(path string, err error) error {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return &fs.PathError{Op: "look up", Path: path, Err: fs.ErrNotExist}
}

// isNotExist reports whether a file is missing; a name that is too long to be
// one is.
func isNotExist(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG)
}
