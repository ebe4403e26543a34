package linux

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

// fds are descriptors to be closed together. They are plain numbers: os.File
// would make them non-blocking or close them when collected.
type fds []int

func (f *fds) add(fd int) int {
	*f = append(*f, fd)
	return fd
}

// take adds the result of a call that opens something.
func (f *fds) take(fd int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	return f.add(fd), nil
}

func (f *fds) close() {
	for _, fd := range *f {
		_ = unix.Close(fd)
	}
	*f = nil
}

// retry calls f until it isn't interrupted.
func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// rootDir is a directory that paths are resolved in as if it were the root:
// neither symlinks nor .. leave it.
type rootDir int

const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

func (r rootDir) open(name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve | inRoot}
	name = strings.TrimLeft(path.Clean("/"+name), "/")
	if name == "" {
		name = "."
	}
	for range 1000 {
		fd, err := unix.Openat2(int(r), name, &how)
		// EAGAIN: something was renamed meanwhile, on any file system.
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// target opens name (O_PATH) as something to be mounted on. If it doesn't
// exist it is made, as a directory or an empty file, where symlinks lead to.
func (r rootDir) target(name string, dir bool) (int, error) {
	fd, err := r.open(name, unix.O_PATH, 0)
	if err != unix.ENOENT {
		return fd, err
	}
	found, missing, err := r.walk(name)
	if err != nil {
		return -1, err
	}
	parent, err := r.open(found, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return -1, err
	}
	for i, c := range missing {
		var next int
		if i == len(missing)-1 && !dir {
			next, err = unix.Openat(parent, c, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
			if err == nil {
				// What was opened for reading can't be mounted on.
				_ = unix.Close(next)
			} else if err != unix.EEXIST {
				_ = unix.Close(parent)
				return -1, err
			}
		} else if err = unix.Mkdirat(parent, c, 0o755); err != nil && err != unix.EEXIST {
			_ = unix.Close(parent)
			return -1, err
		}
		next, err = rootDir(parent).open(c, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
		_ = unix.Close(parent)
		if err != nil {
			return -1, err
		}
		parent = next
	}
	return parent, nil
}

// walk follows name as far as it exists. It returns the path of the last
// directory that does, which has no symlinks, and the components behind it.
func (r rootDir) walk(name string) (found string, missing []string, err error) {
	found = "/"
	todo := strings.Split(path.Clean("/" + name)[1:], "/")
	links := 0
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		if c == "" || c == "." {
			continue
		}
		if c == ".." {
			if len(missing) > 0 {
				missing = missing[:len(missing)-1]
			} else {
				found = path.Dir(found)
			}
			continue
		}
		if len(missing) > 0 {
			missing = append(missing, c)
			continue
		}
		fd, err := r.open(path.Join(found, c), unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err == unix.ENOENT {
			missing = append(missing, c)
			continue
		}
		if err != nil {
			return "", nil, err
		}
		var st unix.Stat_t
		var buf [unix.PathMax]byte
		n := 0
		err = unix.Fstat(fd, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			n, err = unix.Readlinkat(fd, "", buf[:])
			links++
		}
		_ = unix.Close(fd)
		if err != nil {
			return "", nil, err
		}
		if links > 255 {
			return "", nil, unix.ELOOP
		}
		if n == 0 {
			found = path.Join(found, c)
			continue
		}
		link := string(buf[:n])
		if path.IsAbs(link) {
			found = "/"
		}
		todo = append(strings.Split(link, "/"), todo...)
	}
	return found, missing, nil
}

// newFS makes a file system and returns its unattached mount. Options are
// key=value or a flag.
func newFS(kind, source string, options []string, attrs int) (int, error) {
	ctx, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ctx)
	if source != "" {
		if err := unix.FsconfigSetString(ctx, "source", source); err != nil {
			return -1, explain(ctx, err)
		}
	}
	for _, o := range options {
		if err := configure(ctx, o); err != nil {
			return -1, fmt.Errorf("option %q: %w", o, explain(ctx, err))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, explain(ctx, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, explain(ctx, err)
	}
	return fd, nil
}

func configure(ctx int, option string) error {
	if k, v, ok := strings.Cut(option, "="); ok {
		return unix.FsconfigSetString(ctx, k, v)
	}
	return unix.FsconfigSetFlag(ctx, option)
}

// explain adds what the kernel logged about a file system context.
func explain(ctx int, err error) error {
	var buf [1024]byte
	var said []string
	for range 8 {
		n, rerr := unix.Read(ctx, buf[:])
		if rerr != nil || n < 2 {
			break
		}
		if buf[0] == 'e' || buf[0] == 'w' {
			said = append(said, strings.TrimSpace(string(buf[2:n])))
		}
	}
	if len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(said, "; "))
}

// mountRoot makes r's file system and returns its unattached mount, and a
// directory of the host that it may be attached to.
func mountRoot(r sandbox.Root, attrs int) (fd int, at string, err error) {
	if r.Bind != "" {
		fd, err := unix.OpenTree(unix.AT_FDCWD, r.Bind, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return -1, "", fmt.Errorf("%s: %w", r.Bind, err)
		}
		if err := setAttrs(fd, uint64(attrs), 0, true); err != nil {
			_ = unix.Close(fd)
			return -1, "", fmt.Errorf("%s: %w", r.Bind, err)
		}
		return fd, r.Bind, nil
	}
	if len(r.Lower) == 0 {
		return -1, "", errors.New("a root file system without layers")
	}
	if r.Upper == "" {
		at = r.Lower[len(r.Lower)-1]
		if len(r.Lower) == 1 {
			// Overlayfs wants two layers; one that may not be written to
			// needs none.
			return bindReadonly(r.Lower[0], attrs)
		}
	} else {
		at = r.Upper
	}
	if appendsLayers() {
		fd, err = overlay(r, attrs)
	} else {
		fd, err = overlayByPath(r, attrs)
	}
	return fd, at, err
}

// appendsLayers says whether overlayfs takes its layers one by one (lowerdir+,
// Linux 6.7).
var appendsLayers = sync.OnceValue(func() bool {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(ctx)
	// Old kernels take any option until the file system is made.
	return unix.FsconfigSetString(ctx, "lowerdir+", "/") == nil &&
		unix.FsconfigSetString(ctx, "no-such-option", "/") != nil
})

func bindReadonly(dir string, attrs int) (int, string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, "", fmt.Errorf("%s: %w", dir, err)
	}
	if err := setAttrs(fd, uint64(attrs)|unix.MOUNT_ATTR_RDONLY, 0, false); err != nil {
		_ = unix.Close(fd)
		return -1, "", fmt.Errorf("%s: %w", dir, err)
	}
	return fd, dir, nil
}

// overlayFlags are the options of every overlay: its upper directory must be
// readable as a layer without overlayfs, and no layer may redirect to another
// directory.
func overlayFlags(r sandbox.Root) []string {
	if r.UserXattr {
		// It means no redirections, and refuses to be told so.
		return []string{"index=off", "userxattr"}
	}
	return []string{"redirect_dir=nofollow", "metacopy=off", "index=off"}
}

func overlay(r sandbox.Root, attrs int) (int, error) {
	var open fds
	defer open.close()
	lower := make([]string, len(r.Lower))
	for i, dir := range r.Lower {
		var err error
		if lower[i], err = short(dir, &open); err != nil {
			return -1, err
		}
	}
	options := func(more ...string) []string {
		o := overlayFlags(r)
		for _, dir := range slices.Backward(lower) {
			o = append(o, "lowerdir+="+dir)
		}
		return append(o, more...)
	}
	if r.Upper == "" {
		fd, err := newFS("overlay", "overlay", options(), attrs)
		if err != nil {
			return -1, fmt.Errorf("overlay of %d layers: %w", len(r.Lower), err)
		}
		return fd, nil
	}
	upper, err := short(r.Upper, &open)
	if err != nil {
		return -1, err
	}
	work, err := short(r.Work, &open)
	if err != nil {
		return -1, err
	}
	upper, work = "upperdir="+escape(upper), "workdir="+escape(work)
	if err := forgetVolatile(r); err != nil {
		return -1, err
	}
	// Volatile keeps the kernel from syncing the whole disk when the mount
	// goes away; what needs to be durable is synced by who keeps it.
	fd, err := newFS("overlay", "overlay", options(upper, work, "volatile"), attrs)
	if err != nil {
		return -1, fmt.Errorf("overlay of %d layers: %w", len(r.Lower), err)
	}
	return fd, nil
}

// forgetVolatile removes the mark of an earlier volatile mount that ended with
// its machine or just like that. What was written is there or it isn't; which of
// them is for the layer store to know.
func forgetVolatile(r sandbox.Root) error {
	return os.RemoveAll(filepath.Join(r.Work, "work", "incompat"))
}

// short returns a name for dir that fits into one option of fsconfig.
func short(dir string, open *fds) (string, error) {
	if len(dir) < 240 {
		return dir, nil
	}
	fd, err := open.take(unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0))
	if err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}

// overlayByPath makes an overlay with one lowerdir option, whose length is
// limited: the layers go by short names in /proc.
func overlayByPath(r sandbox.Root, attrs int) (int, error) {
	var open fds
	defer open.close()
	var lower strings.Builder
	for i := len(r.Lower) - 1; i >= 0; i-- {
		fd, err := open.take(unix.Open(r.Lower[i], unix.O_PATH|unix.O_CLOEXEC, 0))
		if err != nil {
			return -1, fmt.Errorf("%s: %w", r.Lower[i], err)
		}
		if lower.Len() > 0 {
			lower.WriteByte(':')
		}
		lower.WriteString("/proc/self/fd/" + strconv.Itoa(fd))
	}
	data := strings.Join(overlayFlags(r), ",") + ",lowerdir=" + lower.String()
	at := r.Lower[len(r.Lower)-1]
	if r.Upper != "" {
		at = r.Upper
		data += ",upperdir=" + escape(r.Upper) + ",workdir=" + escape(r.Work) + ",volatile"
		if err := forgetVolatile(r); err != nil {
			return -1, err
		}
	}
	if len(data) > unix.PathMax-2 {
		return -1, fmt.Errorf("overlay of %d layers: this kernel takes about 200: %w", len(r.Lower), unix.ENAMETOOLONG)
	}
	// Only mount(2) takes options this long; the mount is picked up where it
	// was made, in our own mount namespace.
	if err := unix.Mount("overlay", at, "overlay", 0, data); err != nil {
		return -1, fmt.Errorf("overlay of %d layers: %w", len(r.Lower), err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH)); err != nil {
		return -1, err
	}
	return fd, setAttrs(fd, uint64(attrs), 0, false)
}

// escape makes a path safe in an option string.
func escape(p string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`).Replace(p)
}

func setAttrs(fd int, set, clr uint64, recursive bool) error {
	if set|clr == 0 {
		return nil
	}
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clr}
	if set&unix.MOUNT_ATTR__ATIME != 0 || clr&unix.MOUNT_ATTR__ATIME != 0 || set&unix.MOUNT_ATTR_STRICTATIME != 0 {
		attr.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(fd, "", flags, &attr); err != nil {
		return fmt.Errorf("set mount attributes: %w", err)
	}
	return nil
}

// attach moves an unattached mount to a directory or file opened with O_PATH.
func attach(mount, target int) error {
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
