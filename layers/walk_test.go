package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestWalk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	needXattrs(t, dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t,
		os.MkdirAll(in("a/b"), 0o755),
		os.WriteFile(in("a/b/file"), []byte("12345"), 0o600),
		os.WriteFile(in("a-b"), nil, 0o644),
		os.Chmod(in("a/b/file"), 0o4711|fs.ModeSetuid),
		os.Chmod(in("a-b"), 0o644),
		os.Chtimes(in("a-b"), someTime, someTime),
		os.Link(in("a/b/file"), in("z")),
		os.Link(in("a/b/file"), filepath.Join(t.TempDir(), "elsewhere")),
		os.WriteFile(in("single"), nil, 0o644),
		os.Chmod(in("single"), 0o644),
		os.Link(in("single"), filepath.Join(t.TempDir(), "elsewhere")),
		os.Symlink(strings.Repeat("long/", 300), in("link")),
		unix.Mkfifo(in("pipe"), 0o600),
		unix.Setxattr(in("a"), "user.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(in("a"), "user.overlay.origin", []byte("x"), 0),
		unix.Setxattr(in("a"), "user.mine", []byte("a\x00b"), 0),
		unix.Setxattr(in("a/b"), "user.overlay.opaque", []byte("x"), 0),
		unix.Setxattr(in("a-b"), "user.overlay.whiteout", nil, 0),
		unix.Setxattr(in("single"), OwnerXattr, []byte("12:34:4755"), 0),
	)
	l, err := net.Listen("unix", in("socket"))
	must(t, err)
	defer l.Close()
	uid := ""
	if os.Geteuid() != 0 {
		uid = fmt.Sprintf(" %d:%d", os.Geteuid(), os.Getegid())
	}
	want(t, list(t, Walk(dir)), `
		dir a 0755`+uid+` opaque user.mine="a\x00b"
		dir a/b 0755`+uid+`
		file a/b/file 5 4711`+uid+`
		gone a-b
		link link -> `+strings.Repeat("long/", 300)+uid+`
		fifo pipe 0600`+uid+`
		file single 0 4755 12:34
		hard z = a/b/file`)
	for e := range Walk(dir) {
		if e.Path == "a-b" && !e.ModTime.Equal(someTime) {
			t.Errorf("time is %v", e.ModTime)
		}
	}
	n := 0
	for range Walk(dir) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("went on to %d", n)
	}
}

func TestWalkRoot(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t,
		os.Mkdir(in("dir"), 0o755),
		unix.Setxattr(in("dir"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Mknod(in("gone"), unix.S_IFCHR, 0),
		unix.Link(in("gone"), in("gone2")), // overlayfs shares them
		unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(in("sda"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 1<<19))),
		os.WriteFile(in("theirs"), nil, 0o644),
		unix.Setxattr(in("theirs"), OwnerXattr, []byte("0:0:4755"), 0),
		unix.Setxattr(in("theirs"), "trusted.overlay.origin", []byte("x"), 0),
		unix.Setxattr(in("theirs"), "trusted.mine", []byte("x"), 0),
		os.Chown(in("theirs"), 1000, 1001),
		os.Chmod(in("null"), 0o666),
		unix.Setxattr(in("theirs"), "security.capability", []byte(capNetRaw), 0),
	)
	want(t, list(t, Walk(dir)), `
		dir dir 0755 opaque
		gone gone
		gone gone2
		char null 1:3 0666
		block sda 259:524288 0600
		file theirs 0 0644 1000:1001 security.capability=`+fmt.Sprintf("%q", capNetRaw))
}

// capNetRaw is cap_net_raw=ep as setcap writes it.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Trees may be deeper than a path that the kernel takes.
func TestWalkDeep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := strings.Repeat("n", 250)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 20 {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	n := 0
	for e, err := range Walk(dir) {
		must(t, err)
		if n++; len(e.Path) != 251*n-1 {
			t.Errorf("entry %d has a path of %d bytes", n, len(e.Path))
		}
	}
	if n != 20 {
		t.Errorf("%d entries", n)
	}
}

func TestWalkMissing(t *testing.T) {
	t.Parallel()
	n := 0
	for e, err := range Walk("/does/not/exist") {
		if n++; !errors.Is(err, fs.ErrNotExist) || e.Path != "." {
			t.Errorf("got %v, %v", e, err)
		}
	}
	if n != 1 {
		t.Errorf("yielded %d times", n)
	}
}

func TestParseOwner(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"0:0:644": true, "4294967294:1:7777": true, "": false, "0:0": false, "0:0:8": false,
		"-1:0:644": false, "0:0:10000": false, "4294967296:0:0": false, "0:0:644:": false,
	} {
		o, ok := parseOwner(s)
		if ok != want || ok && o.String() != s {
			t.Errorf("%q: got %v, %v", s, o, ok)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	entries := make([]Entry, 0, 20_200)
	for i := range 200 {
		dir := fmt.Sprintf("d%03d", i)
		entries = append(entries, Entry{Path: dir, Type: Dir, Mode: 0o755})
		for j := range 100 {
			entries = append(entries, regular(fmt.Sprintf("%s/f%02d", dir, j), strings.Repeat("x", 1024)))
		}
	}
	data := tarOfEntries(b, entries...)
	b.ReportAllocs()
	for b.Loop() {
		dir := b.TempDir()
		start := time.Now()
		applyTo(b, dir, data, ApplyOptions{})
		b.ReportMetric(float64(time.Since(start).Microseconds())/float64(len(entries)), "µs/entry")
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}
