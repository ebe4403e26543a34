package state

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RemoveAll removes a tree, like os.RemoveAll, even if the permissions of
// directories in it are in the way of their owner, or it is deeper than this
// process may open files. A step of a build can leave both.
func RemoveAll(path string) error {
	permitted := false
	for {
		err := os.RemoveAll(path)
		switch {
		case errors.Is(err, fs.ErrPermission) && !permitted:
			permitted = true
			permit(path)
		case errors.Is(err, unix.EMFILE):
			if herr := hoist(path, err); herr != nil {
				return errors.Join(err, herr)
			}
		default:
			return err
		}
	}
}

// maxLater is how many trees may wait to be removed by RemoveLater.
const maxLater = 64

// RemoveLater removes a tree that TempDir made, while its caller goes on. What
// can't be removed, Close tries again and tells. One who makes trees faster than
// they are removed, removes them itself.
func (r *Root) RemoveLater(path string) {
	r.mu.Lock()
	wait := !r.closed && len(r.later) < maxLater
	if wait {
		r.later = append(r.later, path)
		if !r.removing {
			r.removing = true
			r.removers.Go(r.removeAllLater)
		}
	}
	r.mu.Unlock()
	if !wait {
		_ = RemoveAll(path)
	}
}

// removeAllLater removes what RemoveLater left, until there is nothing more.
func (r *Root) removeAllLater() {
	for {
		r.mu.Lock()
		paths := r.later
		r.later = nil
		r.removing = len(paths) > 0
		r.mu.Unlock()
		if len(paths) == 0 {
			return
		}
		for _, p := range paths {
			_ = RemoveAll(p)
		}
	}
}

// permit lets the owner into all directories of a tree, and into nothing else,
// whatever takes their place meanwhile.
func permit(path string) {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrPermission) && os.Chmod(path, 0o700) == nil {
		root, err = os.OpenRoot(path)
	}
	if err != nil {
		return
	}
	defer root.Close()
	// WalkDir calls back before it reads a directory, and follows no links.
	_ = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || len(p) >= unix.PathMax {
			return fs.SkipDir
		}
		if d.IsDir() {
			_ = root.Chmod(p, 0o700)
		}
		return nil
	})
}

// hoistDepth is where a tree that is too deep is cut.
const hoistDepth = 32

// hoist moves a part of a tree that is too deep, which removing it failed at,
// to the top of the tree.
func hoist(root string, failed error) error {
	var at *fs.PathError
	if !errors.As(failed, &at) {
		return errors.New("too deep")
	}
	names := strings.Split(strings.TrimPrefix(at.Path, root+"/"), "/")
	if !strings.HasPrefix(at.Path, root+"/") || len(names) <= hoistDepth {
		return errors.New("too many open files")
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	top, err := unix.Open(root, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	dir, err := unix.Dup(top)
	for _, name := range names[:hoistDepth] {
		if err != nil {
			return err
		}
		var sub int
		sub, err = unix.Openat(dir, name, flags, 0)
		unix.Close(dir)
		dir = sub
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	for i := 0; ; i++ {
		err := unix.Renameat2(dir, names[hoistDepth], top, ".hoisted-"+strconv.Itoa(i), unix.RENAME_NOREPLACE)
		if err != unix.EEXIST {
			return err
		}
	}
}
