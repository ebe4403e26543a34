package layers

import (
	"bytes"
	"fmt"
	"iter"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Walk yields the entries of the layer directory dir, in the order of
// ComparePaths, with hard links within dir told as such, and overlayfs's own
// attributes turned into Whiteout and Opaque. Sockets and the root itself are
// not yielded, but for an opaque mark of the root (see ReadTar). Recorded owners are given as the entries' owners if the file
// belongs to the caller (a process in a build that has another user can't give
// its files away by the attribute). Of other extended attributes
// security.capability and those of the namespace "user" are given. An error ends
// the walk; its entry has the path only.
func Walk(dir string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		w := walker{
			dir:   dir,
			yield: yield,
			uid:   uint32(os.Geteuid()),
			links: map[inode]string{},
			dents: make([]byte, 32<<10),
		}
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			w.fail(".", &os.PathError{Op: "open", Path: dir, Err: err})
			return
		}
		root := Entry{Path: ".", Type: Dir}
		if err := w.attributes(dir, &root, false); err != nil {
			unix.Close(fd)
			w.fail(".", fmt.Errorf("%s: %w", dir, err))
			return
		}
		if root.Opaque && !yield(Entry{Path: ".", Type: Whiteout, Opaque: true, ModTime: DefaultModTime}, nil) {
			unix.Close(fd)
			return
		}
		w.walk(fd, ".")
	}
}

type inode struct{ dev, ino uint64 }

type walker struct {
	dir   string
	yield func(Entry, error) bool
	uid   uint32
	links map[inode]string // where files with several links were met first
	dents []byte
	xattr xattrReader
}

func (w *walker) fail(path string, err error) bool {
	w.yield(Entry{Path: path}, err)
	return false
}

// walk yields what is in the directory fd, which it closes. It returns false
// when the walk is over.
func (w *walker) walk(fd int, rel string) bool {
	defer unix.Close(fd)
	names, err := w.names(fd)
	if err != nil {
		return w.fail(rel, fmt.Errorf("read directory %s: %w", rel, err))
	}
	var st unix.Stat_t
	for _, name := range names {
		path := joinPath(rel, name)
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return w.fail(path, fmt.Errorf("stat %s: %w", path, err))
		}
		e, ok, err := w.entry(fd, name, path, &st)
		if err != nil {
			return w.fail(path, fmt.Errorf("%s: %w", path, err))
		}
		if !ok {
			continue
		}
		if !w.yield(e, nil) {
			return false
		}
		if e.Type != Dir {
			continue
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return w.fail(path, fmt.Errorf("open %s: %w", path, err))
		}
		if !w.walk(sub, path) {
			return false
		}
	}
	return true
}

// names returns the names in a directory, sorted.
func (w *walker) names(fd int) ([]string, error) {
	var names []string
	for {
		n, err := unix.ReadDirent(fd, w.dents)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(w.dents[:n], -1, names)
	}
	slices.Sort(names)
	return names, nil
}

// entry describes the file name in the directory fd. ok is false for files that
// are in no layer.
func (w *walker) entry(fd int, name, path string, st *unix.Stat_t) (e Entry, ok bool, err error) {
	e = Entry{
		Path:    path,
		Mode:    st.Mode & 0o7777,
		UID:     int(st.Uid),
		GID:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = Regular, st.Size
	case unix.S_IFDIR:
		e.Type = Dir
	case unix.S_IFLNK:
		e.Type = Symlink
	case unix.S_IFCHR:
		e.Type = Char
		if st.Rdev == 0 {
			return Entry{Path: path, Type: Whiteout, ModTime: e.ModTime}, true, nil
		}
	case unix.S_IFBLK:
		e.Type = Block
	case unix.S_IFIFO:
		e.Type = Fifo
	case unix.S_IFSOCK:
		return e, false, nil
	default:
		return e, false, fmt.Errorf("unknown type of file %o", st.Mode&unix.S_IFMT)
	}
	if e.Type == Regular || e.Type == Dir {
		if err := w.attributes(w.hostPath(fd, name, path), &e, st.Uid == w.uid); err != nil {
			return e, false, err
		}
		if e.Type == Whiteout {
			return e, true, nil
		}
	}
	if st.Nlink > 1 && e.Type != Dir {
		id := inode{uint64(st.Dev), st.Ino}
		if first, seen := w.links[id]; seen {
			e.Type, e.Link, e.Size = Hardlink, first, 0
			return e, true, nil
		}
		w.links[id] = path
	}
	switch e.Type {
	case Symlink:
		e.Link, err = readlinkat(fd, name, st.Size)
	case Char, Block:
		e.Major, e.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	}
	return e, true, err
}

// hostPath is a path of the file for calls that take no directory. Deep trees
// have files whose full paths are longer than the kernel takes.
func (w *walker) hostPath(fd int, name, path string) string {
	if len(w.dir)+1+len(path) < unix.PathMax {
		return w.dir + "/" + path
	}
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

// attributes reads the extended attributes and what they say about e.
func (w *walker) attributes(host string, e *Entry, mine bool) error {
	names, err := w.xattr.names(host)
	if err != nil {
		return err
	}
	for len(names) > 0 {
		raw, rest, _ := bytes.Cut(names, []byte{0})
		names = rest
		switch name := string(raw); {
		case name == OwnerXattr:
			v, _, err := w.xattr.get(host, name)
			if err != nil {
				return err
			}
			if o, ok := parseOwner(v); ok && mine {
				e.UID, e.GID, e.Mode = o.uid, o.gid, o.mode
			}
		case name == trustedOverlay+"opaque" || name == userOverlay+"opaque":
			v, _, err := w.xattr.get(host, name)
			if err != nil {
				return err
			}
			if e.Type == Dir && v == "y" {
				e.Opaque = true
			}
		case name == trustedOverlay+"whiteout" || name == userOverlay+"whiteout":
			if e.Type == Regular && e.Size == 0 {
				*e = Entry{Path: e.Path, Type: Whiteout, ModTime: e.ModTime}
				return nil
			}
		case keepXattr(name):
			v, ok, err := w.xattr.get(host, name)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[name] = v
		}
	}
	return nil
}

func readlinkat(fd int, name string, size int64) (string, error) {
	buf := make([]byte, max(size+1, 128))
	for {
		n, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			return "", fmt.Errorf("read link: %w", err)
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}
