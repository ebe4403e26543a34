package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
)

// write makes files under dir: "-> x" is a symlink, a name that ends in "/" a
// directory.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch to, link := strings.CutPrefix(data, "-> "); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case link:
			err = os.Symlink(to, p)
		default:
			err = os.WriteFile(p, []byte(data), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// age makes files old enough for the index to trust their times: it waits until
// the clock of the file system has moved on.
func age(t testing.TB, dir string) {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			err = os.Chtimes(p, old, old)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func openDir(t testing.TB, path string, o DirOptions) *Dir {
	t.Helper()
	d, err := OpenDir(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// paths lists a tree.
func paths(t testing.TB, d *Dir, dir string) []string {
	t.Helper()
	entries, err := d.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Path)
		if e.Type == layers.Dir {
			list = append(list, paths(t, d, e.Path)...)
		}
	}
	return list
}

func TestDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"a/b/file": "hello", "a-b": "x", "empty": "", "dir/": "", "link": "-> ../../etc/passwd", "a/dirlink": "-> b",
	})
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "sock")}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "a/b/file"), 0o751|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for _, preload := range []bool{false, true} {
		d := openDir(t, dir, DirOptions{})
		if preload {
			if err := d.Preload(ctx, "."); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{"a", "a/b", "a/b/file", "a/dirlink", "a-b", "dir", "empty", "fifo", "link"}
		if diff := cmp.Diff(want, paths(t, d, ".")); diff != "" {
			t.Errorf("preload %v: paths (-want +got):\n%s", preload, diff)
		}
		e, err := d.Lookup("a/b/file")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(layers.Entry{Path: "a/b/file", Type: layers.Regular, Mode: 0o4751, Size: 5, ModTime: layers.DefaultModTime}, e); diff != "" {
			t.Errorf("entry (-want +got):\n%s", diff)
		}
		if e, err := d.Lookup("link"); err != nil || e.Type != layers.Symlink || e.Link != "../../etc/passwd" {
			t.Errorf("link: %+v, %v", e, err)
		}
		if e, err := d.Lookup("."); err != nil || e.Type != layers.Dir || e.Path != "." {
			t.Errorf("root: %+v, %v", e, err)
		}
		for _, p := range []string{"none", "a/none", "a/dirlink/file", "a-b/x", "..", "a/../a", "a//b", "sock", "link/x"} {
			if _, err := d.Lookup(p); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("lookup %q: %v", p, err)
			}
			if _, err := d.Open(ctx, p); err == nil {
				t.Errorf("open %q succeeded", p)
			}
		}
		for _, p := range []string{"link", "fifo", "dir"} {
			if _, err := d.Open(ctx, p); err == nil {
				t.Errorf("open %q succeeded", p)
			}
		}
		r, err := d.Open(ctx, "a/b/file")
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || string(data) != "hello" {
			t.Errorf("content %q, %v", data, err)
		}
		r.Close()
		if got, err := d.Digest(ctx, "a/b/file"); err != nil || got != digest.FromString("hello") {
			t.Errorf("digest %s, %v", got, err)
		}
		if got, err := d.Digest(ctx, "empty"); err != nil || got != digest.FromString("") {
			t.Errorf("digest of nothing %s, %v", got, err)
		}
		if got, err := d.HostPath("a/b/file"); err != nil || got != filepath.Join(dir, "a/b/file") {
			t.Errorf("host path %s, %v", got, err)
		}
	}
}

func TestOpenDirErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": "x"})
	for path, want := range map[string]string{"none": "no such directory", "file": "not a directory"} {
		_, err := OpenDir(filepath.Join(dir, path), DirOptions{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestIgnored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"keep": "", "drop": "", "node_modules/x/y": "", "only/deep/kept": "", "only/other/z": "", "only/w": "", "gone/a/b": "",
	})
	var mu sync.Mutex
	asked := map[string]bool{}
	d := openDir(t, dir, DirOptions{Ignored: func(p string, dir bool) (bool, bool) {
		mu.Lock()
		asked[p] = true
		mu.Unlock()
		switch {
		case p == "drop", strings.HasPrefix(p, "node_modules"):
			return true, true
		case p == "only/deep/kept":
			return false, false
		case strings.HasPrefix(p, "only"), strings.HasPrefix(p, "gone"):
			return true, false // perhaps something below is kept
		}
		return false, false
	}})
	want := []string{"keep", "only", "only/deep", "only/deep/kept"}
	if diff := cmp.Diff(want, paths(t, d, ".")); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
	if asked["node_modules/x"] {
		t.Error("a directory that is skipped was read")
	}
	if _, err := d.Lookup("drop"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lookup of an ignored file: %v", err)
	}
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"secret": "x", "dir/x": "x", "ok": "x"})
	if err := os.Chmod(filepath.Join(dir, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "dir"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "dir"), 0o755) })
	d := openDir(t, dir, DirOptions{})
	if err := d.Preload(context.Background(), "."); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lookup("secret"); err != nil {
		t.Errorf("what is not used need not be readable: %v", err)
	}
	_, err := d.Digest(context.Background(), "secret")
	if err == nil || !strings.Contains(err.Error(), ".dockerignore") {
		t.Errorf("got %v", err)
	}
	if _, err := d.ReadDir("dir"); err == nil || !strings.Contains(err.Error(), ".dockerignore") {
		t.Errorf("got %v", err)
	}
}

func TestChangedWhileRead(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(p string) error{
		"content": func(p string) error { return os.WriteFile(p, []byte("other"), 0o644) },
		"size":    func(p string) error { return os.WriteFile(p, []byte("longer"), 0o644) },
		"replaced": func(p string) error {
			return errors.Join(os.WriteFile(p+"2", []byte("hello"), 0o644), os.Rename(p+"2", p))
		},
		"removed":   os.Remove,
		"fifo":      func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o644)) },
		"directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
		"symlink":   func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) },
		"directory replaced by a symlink": func(p string) error {
			dir := filepath.Dir(p)
			return errors.Join(os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, map[string]string{"d/f": "hello"})
			age(t, dir)
			d := openDir(t, dir, DirOptions{})
			if _, err := d.Lookup("d/f"); err != nil {
				t.Fatal(err)
			}
			if err := change(filepath.Join(dir, "d/f")); err != nil {
				t.Fatal(err)
			}
			r, err := d.Open(context.Background(), "d/f")
			if err == nil {
				_, err = io.ReadAll(r)
				r.Close()
			}
			if !errors.Is(err, ErrChanged) {
				t.Errorf("open and read: %v", err)
			}
			if _, err := d.Digest(context.Background(), "d/f"); !errors.Is(err, ErrChanged) {
				t.Errorf("digest: %v", err)
			}
		})
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"f": strings.Repeat("x", 1000)})
	age(t, dir)
	r, err := openDir(t, dir, DirOptions{}).Open(context.Background(), "f")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "f"), 500); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, ErrChanged) {
		t.Errorf("truncated while it was read: %v", err)
	}
}

func TestOpenByParts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"a/b/c": "x", "a/up": "-> ..", "l": "-> /etc"})
	d := openDir(t, dir, DirOptions{})
	for p, ok := range map[string]bool{"a/b/c": true, "a/up/a": false, "l/passwd": false, "l": false, "../x": false, "a/../a/b/c": false, "a/none": false} {
		fd, err := d.openByParts(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		if (err == nil) != ok {
			t.Errorf("%s: %v", p, err)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"ping": "x", "plain": "y"})
	age(t, dir)
	// CAP_NET_RAW, as setcap writes it.
	value := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	if err := unix.Lsetxattr(filepath.Join(dir, "ping"), capabilityXattr, []byte(value), 0); err != nil {
		t.Skip("cannot set capabilities here:", err)
	}
	if err := unix.Lsetxattr(filepath.Join(dir, "plain"), "user.x", []byte("y"), 0); err != nil {
		t.Log("no user attributes:", err)
	}
	for _, oldKernel := range []bool{false, true} {
		x := openIndex(t, t.TempDir())
		for range 2 { // unknown to the index, and known
			d := openDir(t, dir, DirOptions{Index: x})
			d.oldKernel.Store(oldKernel)
			e, err := d.Lookup("ping")
			if err != nil || e.Xattrs[capabilityXattr] != value || len(e.Xattrs) != 1 {
				t.Errorf("ping: %q, %v", e.Xattrs, err)
			}
			if e, err := d.Lookup("plain"); err != nil || len(e.Xattrs) != 0 {
				t.Errorf("plain: %q, %v", e.Xattrs, err)
			}
			got, err := d.Digests(context.Background(), []string{"plain", "ping"})
			if want := []digest.Digest{digest.FromString("y"), digest.FromString("x")}; err != nil || !slices.Equal(got, want) {
				t.Errorf("digests %q, %v", got, err)
			}
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string]string{}
	for i := range 200 {
		files[fmt.Sprintf("%d/%d/%d", i%5, i%7, i)] = fmt.Sprint(i)
	}
	write(t, dir, files)
	d := openDir(t, dir, DirOptions{Index: openIndex(t, t.TempDir()), Workers: 3})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := d.Preload(context.Background(), "."); err != nil {
				t.Error(err)
			}
			for p, data := range files {
				got, err := d.Digest(context.Background(), p)
				if err != nil || got != digest.FromString(data) {
					t.Errorf("%s: %s, %v", p, got, err)
				}
			}
		})
	}
	wg.Wait()
	if n := d.FilesRead(); n != int64(len(files)) {
		t.Errorf("%d files were read, want each once: %d", n, len(files))
	}
}

// TestHashingTakenOver: who waits for a file that another one hashes goes on when
// its own time is over, and hashes the file if the other one gives up.
func TestHashingTakenOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"f": "hello"})
	synctest.Test(t, func(t *testing.T) {
		d := openDir(t, dir, DirOptions{})
		n, err := d.find("f")
		if err != nil {
			t.Fatal(err)
		}
		n.state = beingRead
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := d.Digest(ctx, "f"); !errors.Is(err, why) {
				t.Errorf("cancelled: %v", err)
			}
		})
		wg.Go(func() {
			if got, err := d.Digest(t.Context(), "f"); err != nil || got != digest.FromString("hello") {
				t.Errorf("taken over: %s, %v", got, err)
			}
		})
		synctest.Wait()
		cancel(why)
		synctest.Wait()
		atomic.StoreUint32(&n.state, unknown)
		d.wake()
		wg.Wait()
	})
}

func TestDigestsFail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": "x", "b/": ""})
	d := openDir(t, dir, DirOptions{})
	for _, p := range []string{"none", "b"} {
		if _, err := d.Digests(context.Background(), []string{"a", p}); err == nil {
			t.Errorf("%s: no error", p)
		}
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	if _, err := d.Digests(ctx, []string{"a"}); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if err := d.Preload(ctx, "."); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	// What was cancelled can be done again.
	if got := paths(t, d, "."); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %q", got)
	}
}

func TestStaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"a/f": "x", "l": "-> a"})
	got, err := Staged(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	when := layers.DefaultModTime
	want := []layers.Entry{
		{Path: "a", Type: layers.Dir, Mode: 0o755, ModTime: when},
		{Path: "a/f", Type: layers.Regular, Mode: 0o644, Size: 1, ModTime: when, Digest: digest.FromString("x"), Origin: layers.Origin{Staged: filepath.Join(dir, "a/f")}},
		{Path: "l", Type: layers.Symlink, Mode: 0o777, Link: "a", ModTime: when},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}
