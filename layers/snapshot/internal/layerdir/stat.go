// Package layerdir reads and writes single files of layer directories, in the
// form that package layers describes.
//
// Paths are the host's. What is in a layer directory is hostile, but nothing
// changes it while it is read: a caller that comes to a path step by step, and
// sees a directory at each, stays in the layer. Symlinks at the path itself are
// never followed.
package layerdir

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
)

// File is a file of a layer directory.
type File struct {
	// Entry describes it; Path is empty, and Type is never Hardlink.
	layers.Entry
	Dev, Ino uint64
	Links    uint64
	Blocks   int64 // of 512 bytes
	Changed  time.Time
	// DiskMode is the mode on the disk; it differs from Mode where owners
	// are recorded.
	DiskMode uint32
	// Recorded: the owner comes from layers.OwnerXattr.
	Recorded bool
	// Internal are the names of overlayfs's own attributes on it.
	Internal []string
}

// Overlayfs's own attributes, and what follows their prefix.
const (
	trustedPrefix = "trusted.overlay."
	userPrefix    = "user.overlay."
	opaque        = "opaque"
	whiteout      = "whiteout"
)

// isInternal reports whether an attribute is overlayfs's own.
func isInternal(name string) bool {
	return strings.HasPrefix(name, trustedPrefix) || strings.HasPrefix(name, userPrefix)
}

// isShown reports whether an attribute is part of a layer; it agrees with
// layers.Walk.
func isShown(name string) bool {
	return name == capability ||
		strings.HasPrefix(name, "user.") && !isInternal(name) && name != layers.OwnerXattr
}

// Stat describes the file at path.
func Stat(path string) (File, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Lstat(path, &st) }); err != nil {
		return File{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	f := File{
		Entry: layers.Entry{
			Mode:    st.Mode & 0o7777,
			UID:     int(st.Uid),
			GID:     int(st.Gid),
			ModTime: time.Unix(st.Mtim.Unix()),
		},
		Dev:      st.Dev,
		Ino:      st.Ino,
		Links:    uint64(st.Nlink),
		Blocks:   st.Blocks,
		Changed:  time.Unix(st.Ctim.Unix()),
		DiskMode: st.Mode & 0o7777,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Type = layers.Regular
		f.Size = st.Size
	case unix.S_IFDIR:
		f.Type = layers.Dir
	case unix.S_IFLNK:
		f.Type = layers.Symlink
		target, err := os.Readlink(path)
		if err != nil {
			return File{}, err
		}
		f.Link = target
	case unix.S_IFIFO:
		f.Type = layers.Fifo
	case unix.S_IFCHR, unix.S_IFBLK:
		f.Type = layers.Block
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			f.Type = layers.Char
		}
		f.Major, f.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
		if f.Type == layers.Char && st.Rdev == 0 {
			return File{Entry: layers.Entry{Type: layers.Whiteout}, Dev: f.Dev, Ino: f.Ino, Blocks: f.Blocks}, nil
		}
	default:
		// A socket: nobody listens to it any more.
		f.Type = 0
	}
	if f.Type != layers.Regular && f.Type != layers.Dir {
		return f, nil
	}
	return f, f.readXattrs(path, int(st.Uid))
}

// readXattrs reads the attributes and applies those that have a meaning here.
// Owners that are recorded count for files of this process only: a process in a
// build that has another user must not give its files away.
func (f *File) readXattrs(path string, uid int) error {
	names, err := listXattrs(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isShown(name) && !isInternal(name) && name != layers.OwnerXattr {
			continue
		}
		value, err := getXattr(path, name)
		if err != nil {
			return err
		}
		switch {
		case name == layers.OwnerXattr:
			if uid == os.Geteuid() {
				f.applyOwner(value)
			}
			continue
		case isShown(name):
			if f.Xattrs == nil {
				f.Xattrs = map[string]string{}
			}
			f.Xattrs[name] = value
			continue
		}
		f.Internal = append(f.Internal, name)
		switch strings.TrimPrefix(strings.TrimPrefix(name, trustedPrefix), userPrefix) {
		case opaque:
			f.Opaque = f.Opaque || f.Type == layers.Dir && value == "y"
		case whiteout:
			if f.Type == layers.Regular && f.Size == 0 {
				f.Entry = layers.Entry{Type: layers.Whiteout}
				return nil
			}
		}
	}
	return nil
}

// applyOwner applies a recorded owner; one that is malformed is none.
func (f *File) applyOwner(value string) {
	uid, rest, _ := strings.Cut(value, ":")
	gid, mode, _ := strings.Cut(rest, ":")
	u, uerr := strconv.ParseUint(uid, 10, 32)
	g, gerr := strconv.ParseUint(gid, 10, 32)
	m, merr := strconv.ParseUint(mode, 8, 32)
	if uerr != nil || gerr != nil || merr != nil || m > 0o7777 {
		return
	}
	f.UID, f.GID, f.Mode = int(u), int(g), uint32(m)
	f.Recorded = true
}

// Names lists a directory, in no particular order.
func Names(dir string) ([]string, error) { return SomeNames(dir, math.MaxInt) }

// errLarge: a directory has more names than are wanted.
var errLarge = errors.New("too large")

// SomeNames lists a directory unless its names take more than limit bytes as
// the kernel lists them: that is an error. The system calls are made directly,
// for package os makes nine of these four.
func SomeNames(dir string, limit int) (names []string, err error) {
	fd := -1
	err = ignoringEINTR(func() (err error) {
		fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var small [2048]byte
	buf := small[:]
	for {
		n := 0
		err := ignoringEINTR(func() (err error) {
			n, err = unix.ReadDirent(fd, buf)
			return err
		})
		if err != nil {
			return nil, &fs.PathError{Op: "readdir", Path: dir, Err: err}
		}
		if n == 0 {
			return names, nil
		}
		if limit -= n; limit < 0 {
			return nil, &fs.PathError{Op: "readdir", Path: dir, Err: errLarge}
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
		if len(buf) == len(small) {
			buf = make([]byte, 32<<10)
		}
	}
}

// Same reports whether two entries are alike but for their paths, digests and
// origins. The times of directories don't count: they change with what is in
// them.
func Same(a, b layers.Entry) bool {
	if a.Type != b.Type || a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Size != b.Size || a.Link != b.Link ||
		a.Major != b.Major || a.Minor != b.Minor || len(a.Xattrs) != len(b.Xattrs) {
		return false
	}
	for name, v := range a.Xattrs {
		if w, ok := b.Xattrs[name]; !ok || v != w {
			return false
		}
	}
	return a.Type == layers.Dir || a.ModTime.Equal(b.ModTime)
}

func listXattrs(path string) ([]string, error) {
	var small [512]byte
	buf := small[:]
	for {
		n, err := unix.Llistxattr(path, buf)
		switch err {
		case nil:
			if n == 0 {
				return nil, nil
			}
			return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
		case unix.EINTR:
		case unix.ENOTSUP:
			return nil, nil
		case unix.ERANGE:
			buf = make([]byte, 64<<10) // the kernel's limit
		default:
			return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
		}
	}
}

func getXattr(path, name string) (string, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := unix.Lgetxattr(path, name, buf)
		switch err {
		case nil:
			return string(buf[:n]), nil
		case unix.EINTR:
		case unix.ERANGE:
			buf = make([]byte, 64<<10) // the kernel's limit
		default:
			return "", &fs.PathError{Op: "lgetxattr " + name, Path: path, Err: err}
		}
	}
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
