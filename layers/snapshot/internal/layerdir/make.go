package layerdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
)

// Options says what the file system and the process's rights demand.
type Options struct {
	// UserXattr and RecordOwners: see layers.ApplyOptions.
	UserXattr, RecordOwners bool
}

// Make makes what e describes at path: a Regular empty, and nothing with its
// attributes yet. It is not for hard links.
func (o Options) Make(path string, e layers.Entry) error {
	switch e.Type {
	case layers.Regular:
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	case layers.Dir:
		return os.Mkdir(path, 0o700)
	case layers.Symlink:
		return os.Symlink(e.Link, path)
	case layers.Fifo:
		return mknod(path, unix.S_IFIFO|0o600, 0)
	case layers.Char:
		if e.Major == 0 && e.Minor == 0 {
			return fmt.Errorf("%s: a device 0:0 can't be in a layer", path)
		}
		return mknod(path, unix.S_IFCHR|0o600, unix.Mkdev(e.Major, e.Minor))
	case layers.Block:
		return mknod(path, unix.S_IFBLK|0o600, unix.Mkdev(e.Major, e.Minor))
	case layers.Whiteout:
		return o.Whiteout(path)
	}
	return fmt.Errorf("%s: unknown type %q", path, e.Type)
}

// Whiteout makes a whiteout: a device where the kernel lets us, else a marked
// file.
func (o Options) Whiteout(path string) error {
	err := mknod(path, unix.S_IFCHR, 0)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return setXattr(path, userPrefix+whiteout, "y")
}

// Opaque marks a directory as opaque. Only root may use the trusted namespace.
func (o Options) Opaque(path string) error {
	if o.UserXattr {
		return setXattr(path, userPrefix+opaque, "y")
	}
	return setXattr(path, trustedPrefix+opaque, "y")
}

// SetAttrs gives the file at path the owner, mode, attributes and time of e, in
// an order in which none undoes another: attributes of users need a writable
// file, and a change of the owner takes set-user-ID bits and capabilities away.
// What can't be set is recorded or left out as layers.Apply does. A zero time
// leaves the time as it is.
func (o Options) SetAttrs(path string, e layers.Entry) error {
	if e.Type == layers.Whiteout {
		return nil
	}
	plain := e.Type == layers.Regular || e.Type == layers.Dir
	if plain {
		if err := o.setXattrs(path, e.Xattrs, false); err != nil {
			return err
		}
	}
	mode := o.diskMode(e.Type, e.Mode)
	record := mode != e.Mode
	if err := ignoringEINTR(func() error { return unix.Lchown(path, e.UID, e.GID) }); err != nil {
		if !o.RecordOwners || err != unix.EPERM && err != unix.EINVAL {
			return &fs.PathError{Op: "lchown", Path: path, Err: err}
		}
		record = true
	}
	if record && plain {
		if err := o.RecordOwner(path, e); err != nil {
			return err
		}
	}
	if e.Type != layers.Symlink {
		if err := unix.Chmod(path, mode); err != nil {
			return &fs.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if plain {
		if err := o.setXattrs(path, e.Xattrs, true); err != nil {
			return err
		}
	}
	return SetTime(path, e.ModTime)
}

// diskMode is the mode that a file gets on the disk: we must be able to read it
// later, and for one who isn't root nothing but the mode lets us.
func (o Options) diskMode(t layers.Type, mode uint32) uint32 {
	if !o.RecordOwners || os.Geteuid() == 0 {
		return mode
	}
	switch t {
	case layers.Regular:
		mode |= 0o400
	case layers.Dir:
		mode |= 0o700
	}
	return mode
}

// ModeChanged reports whether the mode of a file with a recorded owner is
// another on the disk than was recorded.
func (o Options) ModeChanged(f File) bool {
	return f.Recorded && f.DiskMode != o.diskMode(f.Type, f.Mode)
}

// RecordOwner records owner and mode of the file at path.
func (o Options) RecordOwner(path string, e layers.Entry) error {
	v := strconv.Itoa(e.UID) + ":" + strconv.Itoa(e.GID) + ":" + strconv.FormatUint(uint64(e.Mode), 8)
	return setXattr(path, layers.OwnerXattr, v)
}

const capability = "security.capability"

// setXattrs sets the file capabilities, or all other attributes.
func (o Options) setXattrs(path string, xattrs map[string]string, capabilities bool) error {
	for name, value := range xattrs {
		if !isShown(name) || (name == capability) != capabilities {
			continue
		}
		err := setXattr(path, name, value)
		switch {
		case err == nil, errors.Is(err, unix.ENOTSUP):
		case capabilities && errors.Is(err, fs.ErrPermission) && (o.UserXattr || o.RecordOwners):
			// A user namespace; they would mean nothing in it.
		default:
			return err
		}
	}
	return nil
}

// SetTime sets the time of the last change, and of the last access with it. A
// zero time does nothing.
func SetTime(path string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	if s := t.Unix(); s != ts.Sec { // beyond the years that nanoseconds reach
		ts = unix.Timespec{Sec: s, Nsec: int64(t.Nanosecond())}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}

// Strip removes attributes of overlayfs.
func Strip(path string, names ...string) error {
	for _, name := range names {
		if err := unix.Lremovexattr(path, name); err != nil && err != unix.ENODATA {
			return &fs.PathError{Op: "lremovexattr " + name, Path: path, Err: err}
		}
	}
	return nil
}

// IsOpaqueMark reports whether an attribute is the one that makes directories
// opaque.
func IsOpaqueMark(name string) bool { return name == trustedPrefix+opaque || name == userPrefix+opaque }

func mknod(path string, mode uint32, dev uint64) error {
	if err := ignoringEINTR(func() error { return unix.Mknod(path, mode, int(dev)) }); err != nil {
		return &fs.PathError{Op: "mknod", Path: path, Err: err}
	}
	return nil
}

func setXattr(path, name, value string) error {
	if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
		return &fs.PathError{Op: "lsetxattr " + name, Path: path, Err: err}
	}
	return nil
}
