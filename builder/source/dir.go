// Package source gives the trees that builds start from: directories of the
// user, git repositories, files fetched by http.
//
// A Dir is the important one. It never copies the user's directory: it is
// walked with one statx per file, an Index tells the digests of the files that
// did not change since they were last hashed, and contents are read where
// they lie when somebody wants them.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
)

// ErrChanged: a file is not what it was when the build first looked at it.
var ErrChanged = errors.New("changed while the build was reading it")

// Dir is a directory of the user as a read-only tree. Each directory in it is
// read once, when it is first looked at, and Preload reads many in parallel.
// Nothing outside of it is read, whatever symlinks it has. Owners are 0:0, and
// times are layers.DefaultModTime, since neither says anything about the
// content. Sockets are not in the tree; of the extended attributes only
// security.capability is. Hard links are files of their own.
//
// A Dir may be used by many goroutines.
type Dir struct {
	path string
	root *os.File
	o    DirOptions
	tree node
	// slots bounds goroutines that read directories.
	slots   chan struct{}
	filesys filesystems
	opened  atomic.Int64
	saving  sync.WaitGroup // of the index

	oldKernel atomic.Bool // has no getxattrat

	awaited atomic.Bool // somebody waits for a file that is being hashed
	mu      sync.Mutex
	over    chan struct{} // closed when any of them is not hashed any more
}

// DirOptions says what is in the tree.
type DirOptions struct {
	// Ignored reports whether an ignore rule drops a path (relative, with
	// slashes); for directories skip tells that nothing below can be kept.
	// nil: nothing is dropped.
	Ignored func(path string, dir bool) (ignored, skip bool)
	Index   *Index
	Workers int // 0: GOMAXPROCS
}

// OpenDir opens a directory. The error says what a person can do about one that
// is missing or unreadable.
func OpenDir(path string, o DirOptions) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no such directory", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: permission denied on the way to it; make its parent directories accessible (chmod +x) or run as a user who may read them", path)
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("%s: not a directory", path)
	}
	root, err := os.Open(abs)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%s: permission denied; make it readable (chmod u+rx) or run as a user who may read it", path)
	} else if err != nil {
		return nil, err
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	d := &Dir{path: abs, root: root, o: o, slots: make(chan struct{}, o.Workers)}
	var sx unix.Statx_t
	if err := statx(int(root.Fd()), emptyPath, unix.AT_EMPTY_PATH, &sx); err != nil {
		root.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.tree.set(&sx)
	return d, nil
}

// Close frees what the Dir holds. Files that are open stay so.
func (d *Dir) Close() error {
	d.saving.Wait()
	return d.root.Close()
}

// Path is the directory's absolute path on the host.
func (d *Dir) Path() string { return d.path }

// FilesRead counts the files whose content was read, by Open or to hash them.
func (d *Dir) FilesRead() int64 { return d.opened.Load() }

// Lookup returns the entry at path, not following a symlink there; symlinks in
// its parents are not followed either (the error is fs.ErrNotExist then, or if
// there is nothing).
func (d *Dir) Lookup(path string) (layers.Entry, error) {
	n, err := d.find(path)
	if err != nil {
		return layers.Entry{}, err
	}
	e := n.entry(path)
	if n.typ == layers.Regular && n.isHashed() {
		e.Digest = n.sum()
	}
	return e, nil
}

// ReadDir returns the entries of a directory, sorted by name. Files whose digest
// is known have it.
func (d *Dir) ReadDir(dir string) ([]layers.Entry, error) {
	n, err := d.find(dir)
	if err != nil {
		return nil, err
	}
	if n.typ != layers.Dir {
		return nil, &fs.PathError{Op: "readdir", Path: dir, Err: unix.ENOTDIR}
	}
	children, err := d.children(context.Background(), n, dir)
	if err != nil {
		return nil, err
	}
	return entries(dir, children), nil
}

// Preload reads the directories at and below path, in parallel, so that Lookup
// and ReadDir have them at hand. Directories that can't be read are for ReadDir
// to tell.
func (d *Dir) Preload(ctx context.Context, path string) error {
	n, err := d.find(path)
	if err != nil || n.typ != layers.Dir {
		return err
	}
	d.preload(ctx, n, path)
	return context.Cause(ctx)
}

// Open opens the regular file at path. It, or reading to the end, fails with
// ErrChanged if the file is no longer what Lookup saw: what was read is good when
// io.EOF is there.
func (d *Dir) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	n, err := d.regular(path)
	if err != nil {
		return nil, err
	}
	f, err := d.open(path)
	if err != nil {
		return nil, err
	}
	return &reader{ctx: ctx, f: f, path: path, id: n.id, left: n.id.size}, nil
}

// Digest is the digest of the regular file at path. It is computed once.
func (d *Dir) Digest(ctx context.Context, path string) (digest.Digest, error) {
	n, err := d.regular(path)
	if err != nil {
		return "", err
	}
	if err := d.ensureSum(ctx, n, path); err != nil {
		return "", err
	}
	return n.sum(), nil
}

// Digests returns the digests of the regular files at the paths given, which it
// hashes in parallel. What the index learns of it is being saved when Digests
// returns, whatever becomes of the build.
func (d *Dir) Digests(ctx context.Context, paths []string) ([]digest.Digest, error) {
	nodes := make([]*node, len(paths))
	read := d.opened.Load()
	err := parallel(ctx, d.o.Workers, len(paths), func(ctx context.Context, i int) (err error) {
		if nodes[i], err = d.regular(paths[i]); err != nil {
			return err
		}
		return d.ensureSum(ctx, nodes[i], paths[i])
	})
	if d.o.Index != nil && d.opened.Load() != read {
		// An error is met again, and told, by who saves the index in the end.
		d.saving.Go(func() { _ = d.o.Index.Save() })
	}
	if err != nil {
		return nil, err
	}
	// One piece of memory for all.
	var texts strings.Builder
	texts.Grow(len(nodes) * sumSize)
	digests := make([]digest.Digest, len(nodes))
	for i, n := range nodes {
		var b [sumSize]byte
		texts.Write(n.appendSum(b[:0]))
		digests[i] = digest.Digest(texts.String()[i*sumSize:])
	}
	return digests, nil
}

// HostPath is the path on the host of the regular file at path. It is for
// reading only: the file is the user's, who may change it at any time, so it
// must never be hard-linked into a layer.
func (d *Dir) HostPath(path string) (string, error) {
	if _, err := d.regular(path); err != nil {
		return "", err
	}
	return filepath.Join(d.path, filepath.FromSlash(path)), nil
}

func (d *Dir) regular(path string) (*node, error) {
	n, err := d.find(path)
	if err == nil && n.typ != layers.Regular {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	return n, err
}

// find goes down to path by the tree, reading directories where nobody did.
func (d *Dir) find(p string) (*node, error) {
	n := &d.tree
	if p == "." || p == "" {
		return n, nil
	}
	for start := 0; start <= len(p); {
		end := len(p)
		if i := strings.IndexByte(p[start:], '/'); i >= 0 {
			end = start + i
		}
		if n.typ != layers.Dir {
			return nil, &fs.PathError{Op: "lookup", Path: p, Err: fs.ErrNotExist}
		}
		dir := "."
		if start > 0 {
			dir = p[:start-1]
		}
		children, err := d.children(context.Background(), n, dir)
		if err != nil {
			return nil, err
		}
		if n = lookup(children, p[start:end]); n == nil {
			return nil, &fs.PathError{Op: "lookup", Path: p, Err: fs.ErrNotExist}
		}
		start = end + 1
	}
	return n, nil
}

func join(dir, name string) string {
	if dir == "." || dir == "" {
		return name
	}
	return dir + "/" + name
}

// open opens a file. Whether it is the one at hand, and regular, is known when it
// was read.
func (d *Dir) open(p string) (file, error) {
	fd, err := d.openBeneath(p, unix.O_RDONLY|unix.O_NONBLOCK)
	switch {
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return file{}, fmt.Errorf("%s: permission denied; make the file readable, or leave it out by a line %q in .dockerignore", p, p)
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR):
		return file{}, fmt.Errorf("%s: %w", p, ErrChanged)
	case err != nil:
		return file{}, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	d.opened.Add(1)
	return file{fd}, nil
}

// openBeneath opens a path without leaving the root and without following any
// symlink.
func (d *Dir) openBeneath(p string, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	how := &unix.OpenHow{Flags: uint64(flags), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(d.root.Fd()), p, how)
		switch err {
		case unix.EINTR, unix.EAGAIN:
			continue
		case unix.ENOSYS:
			return d.openByParts(p, flags)
		}
		return fd, err
	}
}

// openByParts is openBeneath where there is no openat2 (kernels before 5.6,
// sandboxes).
func (d *Dir) openByParts(p string, flags int) (int, error) {
	dir, close := int(d.root.Fd()), func() {}
	for {
		name, rest, more := strings.Cut(p, "/")
		if name == ".." {
			close()
			return -1, unix.EXDEV
		}
		f := flags
		if more {
			f = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := unix.Openat(dir, name, f, 0)
		if err == unix.EINTR {
			continue
		}
		close()
		if err != nil || !more {
			return fd, err
		}
		dir, close, p = fd, func() { unix.Close(fd) }, rest
	}
}

// file is an open regular file. An os.File would ask the kernel three times
// more about each, to find out that it can't be polled.
type file struct{ fd int }

func (f *file) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(f.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Close may be called twice.
func (f *file) Close() error {
	if f.fd < 0 {
		return fs.ErrClosed
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

func (f *file) unchanged(want identity, p string) error {
	var sx unix.Statx_t
	if err := statx(f.fd, emptyPath, unix.AT_EMPTY_PATH, &sx); err != nil {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	if sx.Mode&unix.S_IFMT != unix.S_IFREG || identityOf(&sx) != want {
		return fmt.Errorf("%s: %w", p, ErrChanged)
	}
	return nil
}

// reader reads a file and fails at its end, before it gives the last bytes, if
// it changed meanwhile.
type reader struct {
	ctx  context.Context
	f    file
	path string
	id   identity
	left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.f.Read(p[:min(int64(len(p)), r.left)])
	if r.left -= int64(n); err == nil && (r.left > 0 || n == 0) {
		return n, nil
	}
	// One that grew has another size now.
	switch changed := r.f.unchanged(r.id, r.path); {
	case changed != nil:
		return 0, changed
	case err == io.EOF:
		return 0, fmt.Errorf("%s: %w", r.path, ErrChanged)
	case err != nil:
		return 0, &fs.PathError{Op: "read", Path: r.path, Err: err}
	}
	return n, io.EOF
}

func (r *reader) Close() error { return r.f.Close() }
