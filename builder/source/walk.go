package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
)

// node is one file of a Dir. There may be a million.
type node struct {
	name   string
	typ    layers.Type
	mode   uint16
	state  uint32 // of the digest; atomic
	id     identity
	digest [32]byte
	rare   *rare    // what few files have
	dir    *listing // of directories
}

// States of a file's digest.
const (
	unknown = iota
	beingRead
	hashed
)

func (n *node) isHashed() bool { return atomic.LoadUint32(&n.state) == hashed }

func (n *node) setDigest(sum [32]byte) {
	n.digest = sum
	atomic.StoreUint32(&n.state, hashed)
}

// sum is the digest of a file that is hashed.
func (n *node) sum() digest.Digest {
	return digest.Digest(n.appendSum(make([]byte, 0, sumSize)))
}

const (
	sumPrefix = "sha256:"
	sumSize   = len(sumPrefix) + 64
)

func (n *node) appendSum(b []byte) []byte {
	return hex.AppendEncode(append(b, sumPrefix...), n.digest[:])
}

type rare struct {
	link         string
	capability   string
	major, minor uint32
}

// listing is what a directory holds, once it was read.
type listing struct {
	mu       sync.Mutex
	done     atomic.Bool
	children []node // sorted by name
	err      error
}

// emptyPath, with AT_EMPTY_PATH, means the file descriptor itself.
const emptyPath = "\x00"

const statxMask = unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_INO | unix.STATX_SIZE | unix.STATX_MTIME | unix.STATX_CTIME

// statx is the system call with a name that ends in 0 and is not copied.
func statx(fd int, name string, flags int, sx *unix.Statx_t) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData(name))),
			uintptr(flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT), statxMask, uintptr(unsafe.Pointer(sx)), 0)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

func identityOf(sx *unix.Statx_t) identity {
	return identity{
		dev:   unix.Mkdev(sx.Dev_major, sx.Dev_minor),
		ino:   sx.Ino,
		size:  int64(sx.Size),
		mtime: sx.Mtime.Sec*1e9 + int64(sx.Mtime.Nsec),
		ctime: sx.Ctime.Sec*1e9 + int64(sx.Ctime.Nsec),
	}
}

// set fills in what statx tells, and reports whether it is a file of a kind
// that a tree can hold.
func (n *node) set(sx *unix.Statx_t) bool {
	n.mode = sx.Mode & 0o7777
	n.id = identityOf(sx)
	switch sx.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.typ = layers.Regular
	case unix.S_IFDIR:
		n.typ = layers.Dir
		n.dir = &listing{}
	case unix.S_IFLNK:
		n.typ = layers.Symlink
	case unix.S_IFIFO:
		n.typ = layers.Fifo
	case unix.S_IFCHR:
		n.typ = layers.Char
		n.rare = &rare{major: sx.Rdev_major, minor: sx.Rdev_minor}
	case unix.S_IFBLK:
		n.typ = layers.Block
		n.rare = &rare{major: sx.Rdev_major, minor: sx.Rdev_minor}
	default:
		return false
	}
	return true
}

// entry is n as an entry without its digest.
func (n *node) entry(path string) layers.Entry {
	e := layers.Entry{Path: path, Type: n.typ, Mode: uint32(n.mode), ModTime: layers.DefaultModTime}
	if path == "" {
		e.Path = "."
	}
	if n.typ == layers.Regular {
		e.Size = n.id.size
	}
	if n.typ == layers.Symlink {
		e.Mode = 0o777
	}
	if r := n.rare; r != nil {
		e.Link, e.Major, e.Minor = r.link, r.major, r.minor
		if r.capability != "" {
			e.Xattrs = map[string]string{capabilityXattr: r.capability}
		}
	}
	return e
}

// entries are the nodes of a directory as entries. Their paths and digests are in
// one piece of memory: pieces of their own would cost more than all the rest.
func entries(dir string, children []node) []layers.Entry {
	size := 0
	for i := range children {
		size += len(dir) + 1 + len(children[i].name) + sumSize
	}
	var texts strings.Builder
	texts.Grow(size)
	list := make([]layers.Entry, len(children))
	for i := range children {
		c := &children[i]
		start := texts.Len()
		if dir != "." && dir != "" {
			texts.WriteString(dir)
			texts.WriteByte('/')
		}
		texts.WriteString(c.name)
		list[i] = c.entry(texts.String()[start:])
		if c.typ == layers.Regular && c.isHashed() {
			var b [sumSize]byte
			start = texts.Len()
			texts.Write(c.appendSum(b[:0]))
			list[i].Digest = digest.Digest(texts.String()[start:])
		}
	}
	return list
}

// lookup finds a child. Nodes are not copied for it: their digests may just be
// written.
func lookup(children []node, name string) *node {
	i := sort.Search(len(children), func(i int) bool { return children[i].name >= name })
	if i == len(children) || children[i].name != name {
		return nil
	}
	return &children[i]
}

// preload reads n and everything below it. Where a slot is free another
// goroutine takes a subtree, else this one does.
func (d *Dir) preload(ctx context.Context, n *node, path string) {
	children, err := d.children(ctx, n, path)
	if err != nil || ctx.Err() != nil {
		return
	}
	var wg sync.WaitGroup
	for i := range children {
		c := &children[i]
		if c.typ != layers.Dir {
			continue
		}
		p := join(path, c.name)
		select {
		case d.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-d.slots }()
				d.preload(ctx, c, p)
			})
		default:
			d.preload(ctx, c, p)
		}
	}
	wg.Wait()
}

// children reads a directory if nobody did so far.
func (d *Dir) children(ctx context.Context, n *node, path string) ([]node, error) {
	l := n.dir
	if l.done.Load() {
		return l.children, l.err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done.Load() {
		return l.children, l.err
	}
	children, err := d.list(ctx, path)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // the next one reads it
	}
	l.children, l.err = children, err
	l.done.Store(true)
	return children, err
}

// scratch is what reading a directory needs for a while.
type scratch struct {
	dirents [32 << 10]byte
	names   []byte // each with a 0 behind it
	files   []dirent
}

type dirent struct {
	name string
	typ  byte // DT_UNKNOWN where the file system doesn't tell
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// read reads what is in the directory fd, sorted by name. Names are parts of one
// string, and have a 0 behind them. The result is good until t is used again.
func (t *scratch) read(fd int) ([]dirent, error) {
	t.names, t.files = t.names[:0], t.files[:0]
	for {
		n, err := unix.Getdents(fd, t.dirents[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			break
		}
		for b := t.dirents[:n]; len(b) > 0; {
			size := binary.NativeEndian.Uint16(b[16:])
			typ, name := b[18], b[19:size]
			b = b[size:]
			name = name[:bytes.IndexByte(name, 0)]
			if string(name) == "." || string(name) == ".." || typ == unix.DT_SOCK {
				continue
			}
			t.names = append(append(t.names, name...), 0)
			t.files = append(t.files, dirent{typ: typ})
		}
	}
	names := string(t.names)
	for i := range t.files {
		end := strings.IndexByte(names, 0)
		t.files[i].name, names = names[:end], names[end+1:]
	}
	slices.SortFunc(t.files, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	return t.files, nil
}

// list reads a directory: what is in it and not ignored.
func (d *Dir) list(ctx context.Context, path string) ([]node, error) {
	fd, err := d.openBeneath(path, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%s: permission denied; make the directory readable, or leave it out by a line %q in .dockerignore", path, path)
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%s: %w", path, ErrChanged)
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)

	t := scratches.Get().(*scratch)
	defer scratches.Put(t)
	files, err := t.read(fd)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: err}
	}
	children := make([]node, 0, len(files))
	ignored := map[string]bool{} // directories kept only for what is below
	var near place
	for _, f := range files {
		children = append(children, node{name: f.name})
		child := &children[len(children)-1]
		drop, err := d.stat(fd, path, f.typ, child, &near)
		if err != nil {
			return nil, err
		}
		if child.typ == 0 {
			children = children[:len(children)-1]
			continue
		}
		if drop {
			ignored[child.name] = true
		}
	}
	if len(ignored) > 0 {
		children = d.dropEmpty(ctx, children, path, ignored)
	}
	return children, nil
}

// stat fills in the node of a directory entry; it has no type if it isn't in the
// tree. drop tells of a directory that is ignored but for what may be below it.
// near is where the index is searched.
func (d *Dir) stat(fd int, dir string, typ byte, n *node, near *place) (drop bool, err error) {
	ignore := func(isDir bool) bool {
		if d.o.Ignored == nil {
			return false
		}
		skip := false
		drop, skip = d.o.Ignored(join(dir, n.name), isDir)
		return drop && (skip || !isDir)
	}
	if typ != unix.DT_UNKNOWN && ignore(typ == unix.DT_DIR) {
		return false, nil
	}
	var sx unix.Statx_t
	switch err := statx(fd, n.name, 0, &sx); {
	case errors.Is(err, unix.ENOENT):
		return false, nil // gone since it was listed
	case errors.Is(err, unix.EACCES):
		return false, fmt.Errorf("%s: permission denied; make the directory searchable (chmod +x), or leave it out by a line %q in .dockerignore", dir, dir)
	case err != nil:
		return false, &fs.PathError{Op: "stat", Path: join(dir, n.name), Err: err}
	}
	if !n.set(&sx) {
		return false, nil
	}
	if typ == unix.DT_UNKNOWN && ignore(n.typ == layers.Dir) {
		n.typ = 0
		return false, nil
	}
	switch n.typ {
	case layers.Symlink:
		link, err := readlink(fd, n.name)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
				err = ErrChanged
			}
			return false, fmt.Errorf("%s: %w", join(dir, n.name), err)
		}
		n.rare = &rare{link: link}
	case layers.Regular:
		d.remember(fd, n, near)
	}
	return drop, nil
}

// remember takes from the index what it knows of a file.
func (d *Dir) remember(fd int, n *node, near *place) {
	known, ok := record{}, false
	if d.o.Index != nil && n.id.size > 0 {
		known, ok = d.o.Index.find(n.id, near)
	}
	if ok {
		n.setDigest(known.sum)
	}
	if n.id.size > 0 && (!ok || known.capability) {
		if c := d.capability(fd, n.name); c != "" {
			n.rare = &rare{capability: c}
		}
	}
}

// dropEmpty removes the directories that are ignored and hold nothing that
// isn't. Whether they do must be known now, so they are read.
func (d *Dir) dropEmpty(ctx context.Context, children []node, path string, ignored map[string]bool) []node {
	var wg sync.WaitGroup
	for i := range children {
		c := &children[i]
		if !ignored[c.name] {
			continue
		}
		p := join(path, c.name)
		select {
		case d.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-d.slots }()
				_, _ = d.children(ctx, c, p)
			})
		default:
			_, _ = d.children(ctx, c, p)
		}
	}
	wg.Wait()
	return slices.DeleteFunc(children, func(c node) bool {
		return ignored[c.name] && len(c.dir.children) == 0
	})
}

func readlink(fd int, name string) (string, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(fd, name, b)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

const capabilityXattr = "security.capability"

// capability reads the attribute of a file in the directory fd. The name has a 0
// behind it.
func (d *Dir) capability(fd int, name string) string {
	var b [64]byte
	if !d.oldKernel.Load() {
		n, err := getxattrat(fd, name, capabilityXattr+"\x00", b[:])
		switch err {
		case 0:
			return string(b[:n])
		case unix.ENOSYS, unix.EPERM: // so do sandboxes refuse what they don't know
			d.oldKernel.Store(true)
		default:
			return ""
		}
	}
	// The link in /proc stands for the directory itself and can't be redirected.
	n, err := unix.Lgetxattr("/proc/self/fd/"+strconv.Itoa(fd)+"/"+name, capabilityXattr, b[:])
	if err == nil {
		return string(b[:n])
	}
	return ""
}

// getxattrat is the system call of Linux 6.13, for a file that may be a symlink
// itself. Names end in 0.
func getxattrat(fd int, name, attribute string, value []byte) (int, unix.Errno) {
	args := struct {
		value *byte
		_     [8 - unsafe.Sizeof(uintptr(0))]byte
		size  uint32
		flags uint32
	}{value: unsafe.SliceData(value), size: uint32(len(value))}
	n, _, errno := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.StringData(name))),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(unsafe.StringData(attribute))), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	return int(n), errno
}
