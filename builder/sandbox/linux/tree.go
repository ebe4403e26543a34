package linux

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

// MountTree mounts t in the caller's mount namespace, which must be a private
// one. t's target, which must not exist, is a path there; it is made.
func MountTree(t sandbox.TreeMount, rootless, devices bool) error {
	attrs := unix.MOUNT_ATTR_NODEV
	if devices {
		attrs = 0
	}
	var open fds
	defer open.close()
	fd, err := openTree(t, rootless, attrs, &open)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(t.Target, 0o700)
	} else {
		err = os.WriteFile(t.Target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := cover(fd, t.Target); err != nil {
		return fmt.Errorf("mount on %s: %w", t.Target, err)
	}
	return nil
}

// openTree makes an unattached mount of a part of a file system.
func openTree(t sandbox.TreeMount, rootless bool, attrs int, open *fds) (int, error) {
	fd, at, err := mountRoot(t.Root, attrs)
	if fd, err = open.take(fd, err); err != nil {
		return -1, err
	}
	if !isRoot(t.Source) {
		// Parts of a mount can only be cloned where it is attached.
		if err := cover(fd, at); err != nil {
			return -1, fmt.Errorf("%s: %w", at, err)
		}
		part, err := open.take(rootDir(fd).open(t.Source, unix.O_PATH, 0))
		if err != nil {
			return -1, fmt.Errorf("source %s: %w", t.Source, err)
		}
		if fd, err = clone(part, "", t.Root.Bind != "", rootless, open); err != nil {
			return -1, fmt.Errorf("source %s: %w", t.Source, err)
		}
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return -1, fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	if t.Readonly {
		if err := setAttrs(fd, unix.MOUNT_ATTR_RDONLY, 0, true); err != nil {
			return -1, err
		}
	}
	return fd, nil
}

// clone makes an unattached copy of the mount at name.
func clone(dir int, name string, recursive, rootless bool, open *fds) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(dir, name, flags)
	if err == unix.EINVAL && !recursive && rootless {
		// In a user namespace a mount can't be shown without what its owner
		// mounted on it.
		fd, err = unix.OpenTree(dir, name, flags|unix.AT_RECURSIVE)
	}
	return open.take(fd, err)
}
