package linux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

func openRoot(t testing.TB, dir string) rootDir {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return rootDir(fd)
}

// hostile makes a root full of symlinks and a directory outside of it.
func hostile(t testing.TB) (root, outside string) {
	t.Helper()
	top := t.TempDir()
	root, outside = filepath.Join(top, "root"), filepath.Join(top, "outside")
	for _, d := range []string{outside, filepath.Join(root, "dir/sub")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{
		"abs": outside, "up": "../outside", "far": strings.Repeat("../", 40) + outside,
		"dir/up": "../../outside", "to-dir": "dir", "to-abs-dir": "/dir/sub", "dangling": "dir/none/deep",
		"abs-dangling": "/none/deep", "loop": "loop", "loop1": "loop2", "loop2": "loop1",
		"via": "abs/../dir", "self": "/proc/self/root", "to-file": "file", "chain": "dangling/more",
		"up-dangling": "../../../none",
	} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root, outside
}

// opened is the path of a descriptor, relative to root.
func opened(t testing.TB, root string, fd int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(root, name)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		t.Fatalf("%s is outside of %s", name, root)
	}
	return rel
}

func TestTarget(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		dir  bool
		want string // in the root
		err  error
	}{
		{"/", true, ".", nil},
		{"/dir", true, "dir", nil},
		{"dir/../../../dir/sub", true, "dir/sub", nil},
		{"/new/deep/er", true, "new/deep/er", nil},
		{"/new/file", false, "new/file", nil},
		{"/to-dir/new", true, "dir/new", nil},
		{"/to-abs-dir/new", false, "dir/sub/new", nil},
		{"/dangling", true, "dir/none/deep", nil},
		{"/dangling/x", false, "dir/none/deep/x", nil},
		{"/chain", false, "dir/none/deep/more", nil},
		{"/abs-dangling/x", true, "none/deep/x", nil},
		{"/up-dangling", true, "none", nil},
		{"/up", true, "outside", nil},
		{"/dir/up/x", true, "outside/x", nil},
		{"/dir/new/../../other", true, "other", nil},
		{"/to-file", false, "file", nil},
		{"/loop", true, "", unix.ELOOP},
		{"/loop1/x", true, "", unix.ELOOP},
		{"/file/x", true, "", unix.ENOTDIR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root, outside := hostile(t)
			fd, err := openRoot(t, root).target(tt.name, tt.dir)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			defer unix.Close(fd)
			if got := opened(t, root, fd); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				t.Fatal(err)
			}
			if dir := st.Mode&unix.S_IFMT == unix.S_IFDIR; dir != tt.dir {
				t.Errorf("a directory: %v, want %v", dir, tt.dir)
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("made outside: %v, error %v", left, err)
			}
		})
	}
}

// Whatever is asked for and wherever symlinks lead, nothing is made or opened
// outside.
func FuzzTarget(f *testing.F) {
	f.Add("/link/x", "../../outside", true)
	f.Add("link", "/none/../../x", false)
	f.Add("/a/../link/b", "link/..", true)
	f.Add("/dir/up/link", "/dir/up", true)
	f.Fuzz(func(t *testing.T, name, link string, dir bool) {
		if strings.ContainsRune(name+link, 0) || link == "" || len(name) > 1000 || len(link) > 1000 {
			return
		}
		root, outside := hostile(t)
		if err := os.Symlink(link, filepath.Join(root, "link")); err != nil {
			t.Skip(err)
		}
		fd, err := openRoot(t, root).target(name, dir)
		if err == nil {
			opened(t, root, fd)
			_ = unix.Close(fd)
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Errorf("made outside: %v, error %v", left, err)
		}
		if left, err := os.ReadDir(filepath.Dir(root)); err != nil || len(left) != 2 {
			t.Errorf("made beside the root: %v, error %v", left, err)
		}
	})
}

// The kernels that have no lowerdir+ get the same file system.
func TestOverlayByPath(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root")
	}
	dir := t.TempDir()
	r := sandbox.Root{Upper: filepath.Join(dir, "upper,\\with: marks"), Work: filepath.Join(dir, "work")}
	for i := range 150 {
		r.Lower = append(r.Lower, filepath.Join(dir, fmt.Sprintf("layer-with-a-name-of-some-length-%d", i)))
	}
	for _, d := range append([]string{r.Upper, r.Work}, r.Lower...) {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i, d := range r.Lower {
		if err := os.WriteFile(filepath.Join(d, "top"), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever
		done <- func() error {
			if unix.Gettid() == os.Getpid() {
				return errors.New("on the main thread")
			}
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			fd, err := overlayByPath(r, unix.MOUNT_ATTR_NODEV)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			top, err := unix.Openat(fd, "top", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(top)
			buf := make([]byte, 10)
			n, err := unix.Read(top, buf)
			if err != nil || string(buf[:n]) != "149" {
				return fmt.Errorf("read %q, error %w", buf[:n], err)
			}
			_, err = unix.Write(top, []byte("written"))
			return err
		}()
	}()
	if err := <-done; err != nil {
		if err.Error() == "on the main thread" {
			t.Skip("SKIPPED: no thread to be had")
		}
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(r.Upper, "top")); err != nil || string(got) != "149written" {
		t.Errorf("upper has %q, error %v", got, err)
	}
	r.Lower = append(r.Lower, r.Lower...)
	r.Lower = append(r.Lower, r.Lower...)
	if _, err := overlayByPath(r, 0); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("600 layers: %v", err)
	}
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		options string
		want    mountOptions
	}{
		{"", mountOptions{}},
		{"ro,nosuid,nodev,noexec", mountOptions{set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}},
		{"ro,rw", mountOptions{clr: unix.MOUNT_ATTR_RDONLY}},
		{"rw,ro", mountOptions{set: unix.MOUNT_ATTR_RDONLY}},
		{"rbind,rprivate,ro", mountOptions{set: unix.MOUNT_ATTR_RDONLY, bind: true, recursive: true}},
		{"bind", mountOptions{bind: true}},
		{"size=1,mode=755,newinstance", mountOptions{data: []string{"size=1", "mode=755", "newinstance"}}},
		{"strictatime,relatime", mountOptions{set: unix.MOUNT_ATTR_STRICTATIME}},
	} {
		var m = specMount(tt.options)
		got := parseOptions(m)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(mountOptions{})); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.options, diff)
		}
	}
}
