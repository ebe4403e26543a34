package layers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const createFlags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC

// fileJob is a new file whose attributes, and content if it is small, are to be
// written.
type fileJob struct {
	path string // for errors
	fd   int
	buf  *[smallFile]byte // nil if the content is written
	n    int
	meta meta
}

// work does jobs until there are no more. After the first error it only closes
// files.
func (a *applier) work() {
	for j := range a.jobs {
		if err := a.do(&j); err != nil {
			a.mu.Lock()
			if a.err == nil {
				a.err = fmt.Errorf("%s: %w", j.path, err)
			}
			a.mu.Unlock()
		}
		if j.buf != nil {
			a.bufs.Put(j.buf)
		}
	}
}

func (a *applier) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

func (a *applier) do(j *fileJob) error {
	defer unix.Close(j.fd)
	if a.failed() != nil {
		return nil
	}
	if j.n > 0 {
		if err := writeAll(j.fd, j.buf[:j.n], 0); err != nil {
			return err
		}
	}
	return a.setMeta(j.fd, false, &j.meta)
}

func (a *applier) regular(ctx context.Context, p *handle, base string, e *Entry, body io.Reader) error {
	if err := a.addSize(e.Size); err != nil {
		return err
	}
	j := fileJob{path: e.Path, meta: metaOf(e)}
	err := a.replace(p, base, func() (err error) {
		j.fd, err = unix.Openat(p.fd, base, createFlags, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	switch {
	case e.Size == 0:
	case e.Size <= smallFile:
		var ok bool
		if j.buf, ok = a.bufs.Get().(*[smallFile]byte); !ok {
			j.buf = new([smallFile]byte)
		}
		j.n, err = io.ReadFull(body, j.buf[:e.Size])
	default:
		err = a.content(ctx, j.fd, e.Size, body)
	}
	if err != nil {
		unix.Close(j.fd)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	a.jobs <- j
	return nil
}

// content writes the size bytes of body, with holes for zeros: sparse files
// would fill the disk otherwise.
func (a *applier) content(ctx context.Context, fd int, size int64, body io.Reader) error {
	// This also refuses at once what the file system can't hold.
	if err := unix.Ftruncate(fd, size); err != nil {
		return fmt.Errorf("a file of %d bytes: %w", size, err)
	}
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := a.buffer()
		n, err := io.ReadFull(body, b[:min(size-at, int64(len(b)))])
		if err != nil {
			return err
		}
		if b = b[:n]; !isZero(b) {
			if err := writeAll(fd, b, at); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return nil
}

var zeros [4 << 10]byte

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

func writeAll(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// setMeta gives an open file or directory its attributes. The order matters:
// user attributes need a writable file, and a change of the owner takes
// set-user-ID bits and capabilities away.
func (a *applier) setMeta(fd int, dir bool, m *meta) error {
	mode := m.mode
	record := false
	if a.o.RecordOwners && a.own.uid != 0 {
		// We must be able to read it later, and nothing but the mode lets us.
		need := uint32(0o400)
		if dir {
			need = 0o700
		}
		if mode&need != need {
			mode, record = mode|need, true
		}
	}
	for name, value := range m.xattrs {
		if name == xattrCapability {
			continue
		}
		if err := a.setXattr(fd, name, value); err != nil {
			return err
		}
	}
	if !a.owned || m.uid != a.own.uid || m.gid != a.own.gid {
		err := unix.Fchown(fd, m.uid, m.gid)
		if err != nil && !a.ownerRefused(err) {
			return fmt.Errorf("set owner %d:%d: %w", m.uid, m.gid, err)
		}
		record = record || err != nil
	}
	if record {
		value := owner{m.uid, m.gid, m.mode}.String()
		if err := unix.Fsetxattr(fd, OwnerXattr, []byte(value), 0); err != nil {
			return fmt.Errorf("record owner %s: %w", value, err)
		}
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return fmt.Errorf("set mode %o: %w", mode, err)
	}
	if value, ok := m.xattrs[xattrCapability]; ok {
		if err := a.setXattr(fd, xattrCapability, value); err != nil {
			return err
		}
	}
	return setTimes(fd, "", m.mtime)
}

func (a *applier) setXattr(fd int, name, value string) error {
	err := unix.Fsetxattr(fd, name, []byte(value), 0)
	switch {
	case err == nil, err == unix.ENOTSUP:
		return nil
	case err == unix.EPERM && strings.HasPrefix(name, "security.") && (a.o.UserXattr || a.o.RecordOwners):
		return nil
	}
	return fmt.Errorf("set extended attribute %s: %w", name, err)
}

// setTimes sets access and modification time of the file name in the directory
// fd, or of fd itself if name is empty.
func setTimes(fd int, name string, t time.Time) error {
	ts := unix.NsecToTimespec(int64(t.Nanosecond()))
	ts.Sec = t.Unix()
	both := [2]unix.Timespec{ts, ts}
	var err error
	if name != "" {
		err = unix.UtimesNanoAt(fd, name, both[:], unix.AT_SYMLINK_NOFOLLOW)
	} else if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&both)), 0, 0, 0); errno != 0 {
		// futimens is utimensat without a path, and x/sys has neither.
		err = errno
	}
	if err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}
