package snapshottest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// step does something in a file system with the given root.
type step func(root string) error

func all(steps []step, root string) error {
	for i, s := range steps {
		if err := s(root); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func mkdir(path string, mode uint32) step {
	return func(root string) error {
		host := filepath.Join(root, path)
		return errors.Join(os.Mkdir(host, 0o700), unix.Chmod(host, mode))
	}
}

func write(path, content string) step {
	return func(root string) error { return os.WriteFile(filepath.Join(root, path), []byte(content), 0o644) }
}

func appendTo(path, content string) step {
	return func(root string) error {
		f, err := os.OpenFile(filepath.Join(root, path), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(content)
		return errors.Join(err, f.Close())
	}
}

func chmod(path string, mode uint32) step {
	return func(root string) error { return unix.Chmod(filepath.Join(root, path), mode) }
}

func chown(path string, uid, gid int) step {
	return func(root string) error { return os.Lchown(filepath.Join(root, path), uid, gid) }
}

func remove(path string) step {
	return func(root string) error { return os.Remove(filepath.Join(root, path)) }
}

func removeAll(path string) step {
	return func(root string) error {
		_, err := os.Lstat(filepath.Join(root, path))
		return errors.Join(err, os.RemoveAll(filepath.Join(root, path)))
	}
}

func hardlink(target, path string) step {
	return func(root string) error { return os.Link(filepath.Join(root, target), filepath.Join(root, path)) }
}

func symlink(target, path string) step {
	return func(root string) error { return os.Symlink(target, filepath.Join(root, path)) }
}

func xattr(path, name, value string) step {
	return func(root string) error {
		return unix.Lsetxattr(filepath.Join(root, path), name, []byte(value), 0)
	}
}

func removeXattr(path, name string) step {
	return func(root string) error { return unix.Lremovexattr(filepath.Join(root, path), name) }
}

func touch(path string, t time.Time) step {
	return func(root string) error { return os.Chtimes(filepath.Join(root, path), t, t) }
}

func mkfifo(path string) step {
	return func(root string) error { return unix.Mkfifo(filepath.Join(root, path), 0o600) }
}

func socket(path string) step {
	return func(root string) error {
		return unix.Mknod(filepath.Join(root, path), unix.S_IFSOCK|0o600, 0)
	}
}

// move does what mv does: overlayfs can't rename directories of lower layers.
func move(from, to string) step {
	return func(root string) error {
		from, to := filepath.Join(root, from), filepath.Join(root, to)
		err := os.Rename(from, to)
		if !errors.Is(err, unix.EXDEV) {
			return err
		}
		return errors.Join(copyTree(from, to), os.RemoveAll(from))
	}
}

// copyTree copies directories and regular files with modes and times.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		dst := to + strings.TrimPrefix(path, from)
		if d.IsDir() {
			err = os.Mkdir(dst, 0o700)
		} else {
			var data []byte
			if data, err = os.ReadFile(path); err == nil {
				err = os.WriteFile(dst, data, 0o600)
			}
		}
		if err != nil {
			return err
		}
		return errors.Join(os.Chmod(dst, info.Mode()), os.Chtimes(dst, info.ModTime(), info.ModTime()))
	})
}

// deep makes n directories inside each other, and a file at the end.
func deep(n int) step {
	return func(root string) error {
		dir := filepath.Join(root, strings.Repeat("d/", n))
		return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "f"), []byte("deep"), 0o644))
	}
}

// age gives all files of a tree the same old time.
func age(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		ts := unix.NsecToTimespec(old.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

var (
	old     = time.Date(2001, 2, 3, 4, 5, 6, 700, time.UTC)
	touched = time.Date(2011, 1, 1, 0, 0, 0, 5, time.UTC)
)
