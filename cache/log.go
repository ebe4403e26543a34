package cache

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/state"
)

// logFile is the log: a header, then frames, appended by any process that holds
// the write lock. It is never changed otherwise, only replaced.
//
//	 0  "strakelg"
//	 8  version, 4 bytes, and 4 zero bytes
//	16  mark
type logFile struct {
	f    *os.File
	mark mark
	pos  int64 // end of the last good frame that was read
	size int64 // when it was last read
}

const (
	logMagic      = "strakelg"
	snapshotMagic = "strakesn"
	version       = 1
	logHeader     = 24
)

var (
	errForeign = errors.New("not a cache file of strake, or damaged")
	errNewer   = errors.New("written by a newer version of strake")
)

// checkMagic checks the first 16 bytes of a log or snapshot.
func checkMagic(header []byte, magic string) error {
	if len(header) < 16 || string(header[:8]) != magic {
		return errForeign
	}
	switch v := binary.LittleEndian.Uint32(header[8:]); {
	case v > version:
		return errNewer
	case v != version:
		return errForeign
	}
	return nil
}

func openLog(path string) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, syscall.EROFS) {
		f, err = os.Open(path) // to be read; adding to it fails
	}
	if errors.Is(err, syscall.EISDIR) {
		err = fmt.Errorf("%s: %w", path, errForeign)
	}
	if err != nil {
		return nil, err
	}
	header := make([]byte, logHeader)
	if _, err = io.ReadFull(f, header); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errForeign
	} else if err == nil {
		err = checkMagic(header, logMagic)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &logFile{f: f, mark: mark(header[16:]), pos: logHeader}, nil
}

// tempFile makes a temporary file on the cache's file system.
type tempFile func(prefix string) (*os.File, error)

// newLog replaces the log by an empty one. The caller holds the write lock.
func newLog(path string, temp tempFile, m mark) (err error) {
	b := make([]byte, 0, logHeader)
	b = append(b, logMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = append(b, 0, 0, 0, 0)
	b = append(b, m[:]...)
	f, err := temp("log")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return state.Place(f.Name(), path)
}

func newMark() (m mark) {
	rand.Read(m[:])
	return m
}

// stat returns the size of the log, and whether another one has taken its name.
func (l *logFile) stat() (size int64, replaced bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(l.f.Fd()), &st); err != nil {
		return 0, false, err
	}
	return st.Size, st.Nlink == 0, nil
}

// read calls fn for the frames that were appended since the last call. The
// frames are good for ever. damaged is called with the place of bytes that had
// to be passed over.
//
// What looks like half a frame at the end may be one that is being written: it
// stays unread until something good comes after it.
func (l *logFile) read(size int64, fn func(frame), damaged func(at int64, n int)) error {
	if size == l.size {
		return nil
	}
	b := make([]byte, size-l.pos)
	n, err := l.f.ReadAt(b, l.pos)
	if err != nil && err != io.EOF {
		return err
	}
	b = b[:n]
	for {
		f, skipped, size, ok := nextFrame(b, l.mark)
		if !ok {
			break
		}
		if skipped > 0 {
			damaged(l.pos, skipped)
		}
		fn(f)
		b = b[skipped+size:]
		l.pos += int64(skipped + size)
	}
	l.size = size
	return nil
}

// append adds frames in one write. The caller holds the write lock.
func (l *logFile) append(b []byte) error {
	size, _, err := l.stat()
	if err != nil {
		return err
	}
	if _, err := l.f.Write(b); err != nil {
		// A full disk: take back what did fit. Nobody has read it yet, as
		// it is not whole.
		return errors.Join(err, l.f.Truncate(size))
	}
	return nil
}

// writeLock takes the lock that writers of the directory share and waits for
// it. It is held for as long as an append or a compaction takes.
func writeLock(dir string) (unlock func(), err error) {
	f, err := state.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() {
				// Closing is not enough: a child that is being started
				// has the file open until it runs its program.
				unix.Flock(int(f.Fd()), unix.LOCK_UN)
				f.Close()
			}, nil
		}
		if err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}
