package state_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/state"
)

// TestMain lets tests start other processes on a store: this binary again.
func TestMain(m *testing.M) {
	if args := os.Getenv("STATE_TEST_CHILD"); args != "" {
		if err := child(strings.Split(args, ",")); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child does things in a store, says "ready" and waits until stdin ends.
func child(args []string) error {
	r, err := state.Open(args[0])
	if err != nil {
		return err
	}
	for _, arg := range args[1:] {
		verb, what, _ := strings.Cut(arg, "=")
		switch verb {
		case "temp":
			dir, err := r.TempDir(what)
			if err != nil {
				return err
			}
			// What a step may leave behind.
			if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "a", "b", "f"), nil, 0o400); err != nil {
				return err
			}
			if err := os.Chmod(filepath.Join(dir, "a"), 0o500); err != nil {
				return err
			}
		case "keep":
			if err := r.Keep(state.KindLayer, what); err != nil {
				return err
			}
		case "lock", "share":
			if _, err := r.Lock(context.Background(), what, verb == "lock"); err != nil {
				return err
			}
		case "deep":
			return removeDeep(what)
		case "count":
			return count(r, what)
		}
	}
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return r.Close()
}

// removeDeep removes a tree that is deeper than it may open files.
func removeDeep(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	for range 500 {
		if err := errors.Join(os.WriteFile("f", nil, 0o600), os.Mkdir("d", 0o700), os.Chdir("d")); err != nil {
			return err
		}
	}
	limit := unix.Rlimit{Cur: 100, Max: 100}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	return state.RemoveAll(dir)
}

// count adds 1 to the number in a file 50 times, under a lock.
func count(r *state.Root, path string) error {
	for range 50 {
		unlock, err := r.Lock(context.Background(), "count", true)
		if err != nil {
			return err
		}
		if err := increment(path); err != nil {
			return err
		}
		unlock()
	}
	return nil
}

func increment(path string) error {
	var n int
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if _, err := fmt.Sscan(string(data), &n); err != nil {
		return err
	}
	return state.WriteFile(path, fmt.Append(nil, n+1), 0o600, false)
}

// process is a child that is ready.
type process struct {
	*exec.Cmd
	stdin interface{ Close() error }
}

func start(t *testing.T, args ...string) process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STATE_TEST_CHILD="+strings.Join(args, ","))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	return process{cmd, stdin}
}

func (p process) kill(t *testing.T) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
}

func open(t testing.TB, dir string) *state.Root {
	t.Helper()
	r, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// files lists what is in the store, but for empty directories of its own.
func files(t *testing.T, r *state.Root) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(r.Dir(), func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, r.Dir())
		if strings.Count(rel, "/") > 1 || err == nil && !d.IsDir() {
			list = append(list, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir, "temp=x", "keep=l1", "lock=a", "share=b")
	r := open(t, dir)
	if got := files(t, r); !strings.Contains(got, "/a/b/f") {
		t.Fatalf("a living process lost its files: %s", got)
	}
	p.kill(t)
	r2 := open(t, dir)
	if got, want := files(t, r2), "/locks/gc /version"; got != want {
		t.Errorf("store has %s, want %s", got, want)
	}
	for _, name := range []string{"a", "b"} {
		unlock, err := r2.Lock(t.Context(), name, true)
		if err != nil {
			t.Fatal(err)
		}
		unlock()
	}
	if got := files(t, r2); strings.Contains(got, "locks/a") || strings.Contains(got, "locks/b") {
		t.Errorf("locks pile up: %s", got)
	}
}

func TestEndedProcessLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir, "temp=x", "keep=l1")
	if err := p.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(entries) != 0 {
		t.Errorf("tmp has %v, %v", entries, err)
	}
	entries, err = os.ReadDir(filepath.Join(dir, "leases"))
	if err != nil || len(entries) != 0 {
		t.Errorf("leases has %v, %v", entries, err)
	}
}

func TestLeased(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir)
	dead := start(t, dir, "keep=dead")
	start(t, dir, "keep=l1", "keep=l2")
	if err := r.Keep(state.KindBlob, "sha256:1", "sha256:2"); err != nil {
		t.Fatal(err)
	}
	if err := r.Keep(state.KindBlob, "sha256:2", "sha256:3"); err != nil {
		t.Fatal(err)
	}
	dead.kill(t)
	unlock, err := r.Lock(t.Context(), "gc", true)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	got, err := r.Leased()
	if err != nil {
		t.Fatal(err)
	}
	want := "map[blob:map[sha256:1:true sha256:2:true sha256:3:true] layer:map[l1:true l2:true]]"
	if fmt.Sprint(got) != want {
		t.Errorf("leased %v, want %s", got, want)
	}
}

func TestKeepRefusesNonsense(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	for _, id := range []string{"", "a\nb", "a b", strings.Repeat("x", 300)} {
		if err := r.Keep(state.KindLayer, id); err == nil {
			t.Errorf("kept %q", id)
		}
	}
}

// TestKeepWaitsForGC: what a garbage collection has not seen as leased is
// checked by its user after the collection.
func TestKeepWaitsForGC(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	unlock, err := r.Lock(t.Context(), "gc", true)
	if err != nil {
		t.Fatal(err)
	}
	var kept atomic.Bool
	done := make(chan error)
	go func() {
		err := r.Keep(state.KindLayer, "l")
		kept.Store(true)
		done <- err
	}()
	// The collector needs directories meanwhile.
	if _, err := r.TempDir("remove"); err != nil {
		t.Fatal(err)
	}
	leased, err := r.Leased()
	if err != nil {
		t.Fatal(err)
	}
	if leased[state.KindLayer]["l"] || kept.Load() {
		t.Error("leased during a garbage collection")
	}
	unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestLockExcludes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, dir)
	path := filepath.Join(t.TempDir(), "n")
	if err := os.WriteFile(path, []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	const processes, goroutines = 4, 4
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "STATE_TEST_CHILD="+dir+",count="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("child: %v: %s", err, out)
			}
		})
	}
	for range goroutines {
		wg.Go(func() {
			if err := count(r, path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint((processes + goroutines) * 50); string(data) != want {
		t.Errorf("counted %s, want %s", data, want)
	}
}

func TestLockIsShared(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	one, err := r.Lock(t.Context(), "x", false)
	if err != nil {
		t.Fatal(err)
	}
	two, err := r.Lock(t.Context(), "x", false)
	if err != nil {
		t.Fatal(err)
	}
	one()
	if locked(r, "x") {
		t.Error("exclusive while one holder is left")
	}
	two()
	if !locked(r, "x") {
		t.Error("not free after the last holder")
	}
}

// locked tries to take a lock, and gives it back.
func locked(r *state.Root, name string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	unlock, err := r.Lock(ctx, name, true)
	if err == nil {
		unlock()
	}
	return err == nil
}

func TestLockEndsWithContext(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	unlock, err := r.Lock(t.Context(), "x", true)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() {
		_, err := r.Lock(ctx, "x", false)
		done <- err
	}()
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("error %v, want the cause", err)
	}
	if _, err := r.Lock(ctx, "y", false); !errors.Is(err, cause) {
		t.Errorf("a free lock: error %v, want the cause", err)
	}
}

func TestLockNames(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a\x00", strings.Repeat("x", 300)} {
		if _, err := r.Lock(t.Context(), name, true); err == nil {
			t.Errorf("took lock %q", name)
		}
	}
}

func TestLockFreedByKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := start(t, dir, "lock=x")
	r := open(t, dir)
	if locked(r, "x") {
		t.Fatal("took a lock that another process has")
	}
	p.kill(t)
	unlock, err := r.Lock(t.Context(), "x", true)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestVersion(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files map[string]string
		err   string
	}{
		{name: "new"},
		{name: "mount point", files: map[string]string{"lost+found/": ""}},
		{name: "ours", files: map[string]string{"version": "strake store 1\n", "layers/": ""}},
		{name: "newer", files: map[string]string{"version": "strake store 2\n"}, err: "layout version 2"},
		{name: "torn", files: map[string]string{"version": "", "leases/": ""}},
		{name: "torn at once", files: map[string]string{"version": ""}},
		{name: "version lost", files: map[string]string{"layers/": "", "blobs/": ""}},
		{name: "somebody's files", files: map[string]string{"photo.jpg": "x"}, err: "not empty and not a strake store"},
		{name: "somebody's project", files: map[string]string{"version": "1.2.3\n", "tmp/": ""}, err: "not empty and not a strake store"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, content := range test.files {
				path := filepath.Join(dir, name)
				var err error
				if strings.HasSuffix(name, "/") {
					err = os.Mkdir(path, 0o755)
				} else {
					err = os.WriteFile(path, []byte(content), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			r, err := state.Open(dir)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), dir) {
					t.Fatalf("error %v, want one with %q and the directory", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			data, err := os.ReadFile(filepath.Join(dir, "version"))
			if string(data) != "strake store 1\n" {
				t.Errorf("version is %q, %v", data, err)
			}
		})
	}
}

// TestOpenTogether: many processes make the same store at once.
func TestOpenTogether(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "store")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, err := state.Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := r.TempDir("x"); err != nil {
				t.Error(err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode %o, want 700", info.Mode().Perm())
	}
}

// TestOthersFilesStay: directories in tmp that are not of the form of ours are
// somebody's.
func TestOthersFilesStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir)
	orphan := filepath.Join(dir, "tmp", strings.Repeat("ab", 16), "x")
	other := filepath.Join(dir, "tmp", "other", "x")
	for _, d := range []string{orphan, other} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if _, err := os.Stat(orphan); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory without a lease is left: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

func TestSymlinkedRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	want, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r := open(t, link); r.Dir() != want || r.Path("a", "b") != filepath.Join(want, "a", "b") {
		t.Errorf("store is at %s, want %s", r.Dir(), want)
	}
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for i, write := range []func(string, []byte, os.FileMode, bool) error{state.WriteFile, r.WriteFile} {
		for _, sync := range []bool{false, true} {
			want := fmt.Sprint(i, sync)
			if err := write(path, []byte(want), 0o640, sync); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			info, serr := os.Stat(path)
			if err != nil || serr != nil || string(got) != want || info.Mode() != 0o640 {
				t.Errorf("read %q, mode %v, %v", got, info.Mode(), errors.Join(err, serr))
			}
		}
		if err := write(filepath.Join(dir, "missing", "f"), nil, 0o600, false); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error %v, want that there is no directory", err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if got := files(t, r); strings.Contains(got, "write-") {
		t.Errorf("left behind: %s", got)
	}
}

func TestWriteFiles(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	dir := t.TempDir()
	write := func(content string, ready func() error) error {
		var list []state.File
		for _, name := range []string{"a", "b", "c"} {
			list = append(list, state.File{Path: filepath.Join(dir, name), Data: []byte(name + content)})
		}
		return r.WriteFiles(list, 0o640, ready)
	}
	read := func() (all string) {
		for _, name := range []string{"a", "b", "c"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if info, serr := os.Stat(filepath.Join(dir, name)); err == nil && (serr != nil || info.Mode() != 0o640) {
				t.Errorf("%s: mode %v, %v", name, info.Mode(), serr)
			}
			all += string(b)
		}
		return all
	}
	during := "not called"
	if err := write("1", func() error { during = read(); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := read(); during != "" || got != "a1b1c1" {
		t.Errorf("%q while the others get ready, %q in the end", during, got)
	}
	failed := errors.New("not ready")
	if err := write("2", func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("error %v", err)
	}
	if got := read(); got != "a1b1c1" {
		t.Errorf("%q although not all was ready", got)
	}
	if got := files(t, r); strings.Contains(got, "write-") {
		t.Errorf("left behind: %s", got)
	}
}

func TestWriteFileFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// A directory can't be replaced by a file.
	if err := os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := state.WriteFile(filepath.Join(dir, "d"), []byte("x"), 0o600, true); err == nil {
		t.Error("no error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	r := open(t, t.TempDir())
	if _, err := r.TempFile("x"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.TempDir("x"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v, want that it is closed", err)
	}
	if err := r.Keep(state.KindLayer, "x"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v, want that it is closed", err)
	}
	if got := files(t, r); got != "/version" {
		t.Errorf("left behind: %s", got)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := t.TempDir()
	open(t, dir)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	r := open(t, dir)
	if _, err := r.TempDir("x"); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v, want that %s can't be written", err, dir)
	}
	if _, err := state.Open(filepath.Join(dir, "sub")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error %v, want that it can't be made", err)
	}
}

func TestRemoveAll(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	outside := t.TempDir()
	for _, p := range []string{"a/b/c", "x/y"} {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "a", "link")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"a/b", "a", "x"} {
		if err := os.Chmod(filepath.Join(dir, p), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := state.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if info, err := os.Stat(outside); err != nil || info.Mode().Perm() == 0 {
		t.Errorf("a symlink was followed: %v, %v", info, err)
	}
}

func TestRemoveAllDeep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STATE_TEST_CHILD="+t.TempDir()+",deep="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("child: %v: %s", err, out)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	open(b, dir)
	for b.Loop() {
		r, err := state.Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLock(b *testing.B) {
	r := open(b, b.TempDir())
	for b.Loop() {
		unlock, err := r.Lock(b.Context(), "x", true)
		if err != nil {
			b.Fatal(err)
		}
		unlock()
	}
}
