package snapshottest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers/snapshot"
)

// errNotAllowed: this process may not mount.
var errNotAllowed = errors.New("mounting an overlay needs root, or a user namespace")

// Mounted calls fn with a directory that shows m, in a mount namespace that
// only the calling goroutine of fn is in: fn starts no other. It skips the test
// where mounts are not allowed.
func Mounted(t testing.TB, m snapshot.Mount, fn func(root string) error) {
	t.Helper()
	err := mounted(m, t.TempDir(), fn)
	if errors.Is(err, errNotAllowed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func mounted(m snapshot.Mount, dir string, fn func(root string) error) error {
	if m.Bind != "" {
		return fn(m.Bind)
	}
	result := make(chan error)
	go func() {
		// The thread ends with the goroutine, and the mount with both.
		runtime.LockOSThread()
		result <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("%w: %w", errNotAllowed, err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			if err := mountOverlay(m, dir); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
			return fn(dir)
		}()
	}()
	return <-result
}

// mountOverlay mounts m on dir.
func mountOverlay(m snapshot.Mount, dir string) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%w: fsopen: %w", errNotAllowed, err)
	}
	defer unix.Close(fsfd)
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fsfd, key, value); err != nil {
				err = fmt.Errorf("overlay %s=%s: %w", key, value, err)
			}
		}
	}
	for i := len(m.Lower) - 1; i >= 0; i-- {
		set("lowerdir+", m.Lower[i])
	}
	if m.Upper != "" {
		set("upperdir", m.Upper)
		set("workdir", m.Work)
	}
	set("redirect_dir", "nofollow")
	set("metacopy", "off")
	set("index", "off")
	if m.UserXattr && err == nil {
		err = unix.FsconfigSetFlag(fsfd, "userxattr")
	}
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move mount: %w", err)
	}
	return nil
}

// CanMount reports whether Mounted works for overlays here.
func CanMount() bool {
	dir, err := os.MkdirTemp("", "canmount")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(dir+"/"+name, 0o755); err != nil {
			return false
		}
	}
	m := snapshot.Mount{Lower: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w", UserXattr: true}
	return mounted(m, dir+"/m", func(string) error { return nil }) == nil
}
