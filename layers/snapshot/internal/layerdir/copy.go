package layerdir

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Copy copies the content of the regular file at src to the new file dst. The
// blocks are shared where the file system can do that.
func Copy(dst, src string) error {
	in, err := OpenFile(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) != nil {
		_, err = io.Copy(out, in) // copy_file_range, and what else there is
	}
	return errors.Join(err, out.Close())
}

// OpenFile opens the regular file at path, whatever else is there: it neither
// follows a symlink nor waits for a pipe.
func OpenFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// SameContent reports whether two regular files of the same size have the same
// content.
func SameContent(a, b string) (bool, error) {
	fa, err := OpenFile(a)
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := OpenFile(b)
	if err != nil {
		return false, err
	}
	defer fb.Close()
	bufs := make([]byte, 256<<10)
	ba, bb := bufs[:128<<10], bufs[128<<10:]
	for {
		na, erra := io.ReadFull(fa, ba)
		nb, errb := io.ReadFull(fb, bb)
		if !bytes.Equal(ba[:na], bb[:nb]) {
			return false, nil
		}
		if err := errors.Join(unexpected(erra), unexpected(errb)); err != nil {
			return false, err
		}
		if erra != nil || errb != nil {
			return true, nil // the end of both
		}
	}
}

// unexpected is err unless it tells the end of a file.
func unexpected(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}
