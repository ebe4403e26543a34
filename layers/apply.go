package layers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ApplyOptions says how Apply unpacks.
type ApplyOptions struct {
	// UserXattr: opaque marks go to user.overlay.opaque (rootless).
	UserXattr bool
	// RecordOwners: owners that can't be set are recorded in the extended
	// attribute OwnerXattr instead (a user namespace with a single id).
	RecordOwners bool
	MaxEntries   int64 // 0 is 10 million
	MaxSize      int64 // bytes of content; 0 for no limit
}

// OwnerXattr holds "uid:gid:mode" of an entry whose owner or mode the file
// system can't hold, the mode in octal digits; see ApplyOptions.RecordOwners.
// Regular files and directories can have it.
const OwnerXattr = "user.strake.owner"

const (
	defaultMaxEntries = 10_000_000
	// maxDirBytes bounds what is remembered of directories until the end,
	// when their modes and times are set: enough for a million of them.
	maxDirBytes = 256 << 20
	smallFile   = 64 << 10 // content up to this size is handed to another goroutine
	maxOpenDirs = 64       // directories kept open between entries
	maxLinks    = 40       // followed on the way to one directory, as in Linux
)

// Apply unpacks a layer's tar stream (not compressed) into the empty layer
// directory dir, and reads r to its end. Names are resolved inside dir only,
// whatever links the stream makes; missing parents are made with mode 0755,
// owner 0:0 and DefaultModTime, and the root is one of them if the stream does
// not tell otherwise. See ApplyOptions for what is bounded.
//
// The last entry for a path counts. A whiteout is about lower layers: what the
// same stream has at its path stays, but a directory there is made opaque.
// Whiteouts become what overlayfs takes for one.
//
// Not all can be made everywhere. Left out are device nodes if the kernel
// doesn't permit them and the options are those of a user namespace (UserXattr
// or RecordOwners), extended attributes that the file system doesn't have, and
// file capabilities that may not be set there. With RecordOwners, symbolic
// links, devices and fifos keep the owner they got.
//
// Nothing is synced. After an error dir has any part of the layer; the caller
// removes it. Nobody else may change dir meanwhile.
func Apply(ctx context.Context, dir string, r io.Reader, o ApplyOptions) (err error) {
	if o.MaxEntries == 0 {
		o.MaxEntries = defaultMaxEntries
	}
	a := &applier{
		o:       o,
		dirs:    map[string]*dirMeta{},
		handles: map[string]*handle{},
		jobs:    make(chan fileJob, 64),
	}
	if a.osRoot, err = os.OpenRoot(dir); err != nil {
		return err
	}
	defer a.osRoot.Close()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	a.root = &handle{fd: fd, real: "."}
	defer unix.Close(fd)
	defer a.closeHandles()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	a.own = owner{uid: os.Geteuid(), gid: os.Getegid()}
	a.owned = int(st.Gid) == a.own.gid
	// The modes of directories come last. Until then no set-group-ID bit of
	// the root gives files its group.
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	if err := a.remember(".", missingDir(), false); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range min(4, runtime.GOMAXPROCS(0)) {
		wg.Go(a.work)
	}
	err = a.apply(ctx, bufio.NewReaderSize(r, 256<<10))
	close(a.jobs)
	wg.Wait()
	if err == nil {
		err = a.failed()
	}
	if err == nil {
		err = a.finishDirs(ctx)
	}
	return err
}

// applier unpacks one stream. Names are made in the order of the stream by one
// goroutine; the contents and attributes of small files are written by others,
// who know nothing but the open file.
type applier struct {
	o      ApplyOptions
	osRoot *os.Root // for removing trees
	root   *handle

	own owner // of this process
	// owned: what is made here has that owner. (Otherwise the file system may
	// give files the group of their directory.)
	owned bool

	entries, size int64
	buf           []byte // for content that is not handed over
	bufs          sync.Pool

	// dirs are the directories by their real paths. All that exist are there;
	// some may not exist any more.
	dirs     map[string]*dirMeta
	dirBytes int

	handles map[string]*handle // by the paths they were reached by
	opened  []*handle          // each once

	jobs chan fileJob
	mu   sync.Mutex
	err  error // the first of a job
}

// meta is what a file gets after its content.
type meta struct {
	mode     uint32
	uid, gid int
	xattrs   map[string]string
	mtime    time.Time
}

func metaOf(e *Entry) meta { return meta{e.Mode, e.UID, e.GID, e.Xattrs, e.ModTime} }

type dirMeta struct {
	meta
	opaque bool
	// marked: it has whiteouts that are files with an attribute, and overlayfs
	// must be told to look for them.
	marked bool
}

func missingDir() meta { return meta{mode: 0o755, mtime: DefaultModTime} }

func (a *applier) apply(ctx context.Context, r io.Reader) error {
	entries, body := ReadTar(r)
	for e, err := range entries {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = a.failed()
		}
		if err != nil {
			return err
		}
		if len(a.opened) > maxOpenDirs {
			a.closeHandles()
		}
		if err := a.count(); err != nil {
			return err
		}
		if err := a.entry(ctx, &e, body); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	// What follows the end of the archive is read for those who verify r.
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(a.buffer())
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.addSize(int64(n)); err != nil {
			return err
		}
	}
}

func (a *applier) buffer() []byte {
	if a.buf == nil {
		a.buf = make([]byte, 256<<10)
	}
	return a.buf
}

func (a *applier) count() error {
	if a.entries++; a.entries > a.o.MaxEntries {
		return fmt.Errorf("more than %d entries", a.o.MaxEntries)
	}
	return nil
}

func (a *applier) addSize(n int64) error {
	if a.o.MaxSize > 0 && n > a.o.MaxSize-a.size {
		return fmt.Errorf("more than %d bytes", a.o.MaxSize)
	}
	a.size += n
	return nil
}

func (a *applier) entry(ctx context.Context, e *Entry, body io.Reader) error {
	if e.Type == Whiteout && e.Opaque {
		h, err := a.handle(e.Path, true)
		if err != nil {
			return err
		}
		a.dirs[h.real].opaque = true
		return nil
	}
	if e.Path == "." {
		if e.Type != Dir {
			return errors.New("the root is not a directory")
		}
		return a.describe(".", metaOf(e))
	}
	dir, base := splitPath(e.Path)
	p, err := a.handle(dir, true)
	if err != nil {
		return err
	}
	switch e.Type {
	case Whiteout:
		return a.whiteout(p, base, e)
	case Dir:
		return a.dir(p, base, e)
	case Regular:
		return a.regular(ctx, p, base, e, body)
	case Hardlink:
		return a.hardlink(p, base, e.Link)
	}
	err = a.replace(p, base, func() error { return a.special(p, base, e) })
	if err == unix.EPERM && (e.Type == Char || e.Type == Block) && (a.o.UserXattr || a.o.RecordOwners) {
		return nil
	}
	return err
}

// replace makes a file by make, and removes what is in its place.
func (a *applier) replace(p *handle, base string, make func() error) error {
	err := make()
	if err != unix.EEXIST {
		return err
	}
	if err := a.remove(p, base); err != nil {
		return err
	}
	return make()
}

func (a *applier) remove(p *handle, base string) error {
	st, err := p.stat(base)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		a.closeHandles(p)
		return a.osRoot.RemoveAll(joinPath(p.real, base))
	case unix.S_IFLNK: // paths that went through it lead elsewhere now
		a.closeHandles(p)
	}
	return unix.Unlinkat(p.fd, base, 0)
}

func (a *applier) whiteout(p *handle, base string, e *Entry) error {
	st, err := p.stat(base)
	if err == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			a.dirs[joinPath(p.real, base)].opaque = true
		}
		return nil
	}
	if err != unix.ENOENT {
		return err
	}
	err = unix.Mknodat(p.fd, base, unix.S_IFCHR, 0)
	if err == unix.EPERM {
		return a.markWhiteout(p, base, e)
	}
	if err != nil {
		return err
	}
	return setTimes(p.fd, base, e.ModTime)
}

// markWhiteout makes a whiteout where device nodes can't be made.
func (a *applier) markWhiteout(p *handle, base string, e *Entry) error {
	fd, err := unix.Openat(p.fd, base, createFlags, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, userOverlay+"whiteout", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark as whiteout: %w", err)
	}
	a.dirs[p.real].marked = true
	return setTimes(p.fd, base, e.ModTime)
}

// isWhiteout tells whether a file of this stream is a whiteout.
func isWhiteout(p *handle, base string, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		if st.Size != 0 {
			return false
		}
		fd, err := unix.Openat(p.fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		_, err = unix.Fgetxattr(fd, userOverlay+"whiteout", nil)
		return err == nil
	}
	return false
}

func (a *applier) dir(p *handle, base string, e *Entry) error {
	real := joinPath(p.real, base)
	err := unix.Mkdirat(p.fd, base, 0o700)
	if err == nil {
		return a.remember(real, metaOf(e), false)
	}
	if err != unix.EEXIST {
		return err
	}
	st, err := p.stat(base)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return a.describe(real, metaOf(e))
	}
	opaque := isWhiteout(p, base, st)
	if err := a.remove(p, base); err != nil {
		return err
	}
	if err := unix.Mkdirat(p.fd, base, 0o700); err != nil {
		return err
	}
	return a.remember(real, metaOf(e), opaque)
}

// remember notes a directory just made.
func (a *applier) remember(real string, m meta, opaque bool) error {
	if _, ok := a.dirs[real]; !ok {
		a.dirBytes += len(real) + 200
	}
	a.dirs[real] = &dirMeta{opaque: opaque}
	return a.describe(real, m)
}

// describe notes what a directory will be given.
func (a *applier) describe(real string, m meta) error {
	for k, v := range m.xattrs {
		a.dirBytes += len(k) + len(v) + 64
	}
	if a.dirBytes > maxDirBytes {
		return errors.New("too many directories")
	}
	a.dirs[real].meta = m
	return nil
}

func (a *applier) hardlink(p *handle, base, target string) error {
	missing := fmt.Errorf("hard link to %s, which is not in the layer", target)
	dir, name := splitPath(target)
	t, err := a.handle(dir, false)
	if err != nil {
		return missing
	}
	st, err := t.stat(name)
	if err != nil || isWhiteout(t, name, st) {
		return missing
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fmt.Errorf("hard link to %s, which is a directory", target)
	}
	if old, err := p.stat(base); err == nil && old.Ino == st.Ino && old.Dev == st.Dev {
		return nil
	}
	return a.replace(p, base, func() error {
		// Looked up again: replace may have removed it, and closes handles.
		t, err := a.handle(dir, false)
		if err == nil {
			err = unix.Linkat(t.fd, name, p.fd, base, 0)
		}
		if err == unix.ENOENT {
			return missing
		}
		return err
	})
}

// special makes a file that has no content.
func (a *applier) special(p *handle, base string, e *Entry) error {
	var err error
	switch e.Type {
	case Symlink:
		err = unix.Symlinkat(e.Link, p.fd, base)
	case Fifo:
		err = unix.Mknodat(p.fd, base, unix.S_IFIFO|0o600, 0)
	case Char:
		err = unix.Mknodat(p.fd, base, unix.S_IFCHR|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	case Block:
		err = unix.Mknodat(p.fd, base, unix.S_IFBLK|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	default:
		err = fmt.Errorf("unknown type %q", e.Type)
	}
	if err != nil {
		return err
	}
	err = unix.Fchownat(p.fd, base, e.UID, e.GID, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !a.ownerRefused(err) {
		return fmt.Errorf("set owner %d:%d: %w", e.UID, e.GID, err)
	}
	if e.Type != Symlink {
		if err := unix.Fchmodat(p.fd, base, e.Mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return setTimes(p.fd, base, e.ModTime)
}

func (a *applier) ownerRefused(err error) bool {
	return a.o.RecordOwners && (err == unix.EPERM || err == unix.EINVAL)
}

// finishDirs gives directories their modes, owners and times, children before
// parents: until then all could be written to, and changed their times.
func (a *applier) finishDirs(ctx context.Context) error {
	reals := slices.Sorted(maps.Keys(a.dirs))
	for i, real := range slices.Backward(reals) {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if real == "." {
			continue
		}
		if len(a.opened) > maxOpenDirs {
			a.closeHandles()
		}
		if err := a.finishDir(real); err != nil {
			return fmt.Errorf("%s: %w", real, err)
		}
	}
	a.owned = false // the caller made it
	if err := a.setDir(a.root.fd, a.dirs["."]); err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	return nil
}

func (a *applier) finishDir(real string) error {
	d := a.dirs[real]
	dir, base := splitPath(real)
	p, err := a.handle(dir, false)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP || (err == nil && p.real != dir) {
		return nil // replaced
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(p.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return a.setDir(fd, d)
}

func (a *applier) setDir(fd int, d *dirMeta) error {
	value := ""
	switch {
	case d.opaque:
		value = "y"
	case d.marked:
		value = "x"
	}
	if value != "" {
		name := trustedOverlay + "opaque"
		if a.o.UserXattr || !d.opaque {
			name = userOverlay + "opaque"
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return a.setMeta(fd, true, &d.meta)
}
