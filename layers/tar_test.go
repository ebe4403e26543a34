package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
)

func regular(path, data string) Entry {
	return Entry{Path: path, Type: Regular, Mode: 0o644, Size: int64(len(data)), Data: []byte(data), Inline: true}
}

// The bytes of a layer are what caches and registries know it by. This must not
// change without a good reason.
func TestGolden(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	err := WriteTar(context.Background(), &b, seq(
		Entry{Path: "etc", Type: Dir, Mode: 0o755, Opaque: true},
		regular("etc/motd", "welcome\n"),
		Entry{Path: "etc/motd2", Type: Hardlink, Link: "etc/motd", Mode: 0o644},
		Entry{Path: "etc/old", Type: Whiteout},
		Entry{Path: "sbin", Type: Symlink, Link: "usr/sbin", Mode: 0o777},
		Entry{Path: "tty", Type: Char, Major: 5, Minor: 1, Mode: 0o620, GID: 5},
		Entry{Path: strings.Repeat("long/", 60) + "ü", Type: Fifo, UID: 3_000_000, Xattrs: map[string]string{"user.b": "2", "user.a": "1"}},
	), nil, TarOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, readTar(t, b.Bytes()), `
		dir etc 0755
		gone etc/*
		file etc/motd 8 0644
		hard etc/motd2 = etc/motd
		gone etc/old
		link sbin -> usr/sbin
		char tty 5:1 0620 0:5
		fifo `+strings.Repeat("long/", 60)+`ü 0000 3000000:0 user.a="1" user.b="2"`)
	sum := sha256.Sum256(b.Bytes())
	if got := hex.EncodeToString(sum[:8]); got != "8157009ff0c5441a" {
		t.Errorf("got other bytes than ever before: %s", got)
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	n100, n99 := strings.Repeat("n", 100), strings.Repeat("n", 99)
	p155 := strings.Repeat("p", 155)
	for _, c := range []struct {
		name string
		h    header
		pax  string // keys of the PAX records
	}{
		{"plain", header{name: "a", flag: '0', mode: 0o4755, uid: maxOctal8, gid: maxOctal8, size: maxOctal12, mtime: maxOctal12}, ""},
		{"name of 100", header{name: n100, flag: '0'}, ""},
		{"name of 101", header{name: n100 + "n", flag: '0'}, "path"},
		{"prefix of 155", header{name: p155 + "/" + n100, flag: '0'}, ""},
		{"prefix of 156", header{name: p155 + "p/" + n100, flag: '0'}, "path"},
		{"directory that fits", header{name: p155 + "/" + n99 + "/", flag: '5'}, ""},
		{"directory that doesn't", header{name: p155 + "/" + n100 + "/", flag: '5'}, "path"},
		{"directory of 120", header{name: strings.Repeat("d", 120) + "/", flag: '5'}, "path"},
		{"not ASCII", header{name: "grün", flag: '0'}, "path"},
		{"not UTF-8", header{name: "\xff\xfe", flag: '0'}, "path"},
		{"long link", header{name: "a", flag: '2', link: n100 + "n"}, "linkpath"},
		{"link of 100", header{name: "a", flag: '2', link: n100}, ""},
		{"large owner", header{name: "a", flag: '0', uid: maxOctal8 + 1, gid: maxID}, "gid uid"},
		{"8 GiB", header{name: "a", flag: '0', size: maxOctal12 + 1}, "size"},
		{"before 1970", header{name: "a", flag: '0', mtime: -1}, "mtime"},
		{"far future", header{name: "a", flag: '0', mtime: maxOctal12 + 1}, "mtime"},
		{"attributes", header{name: "ä", flag: '0', xattrs: map[string]string{"user.z": "\x00\n=", "security.capability": "\x01", "user.a": strings.Repeat("x", 5000)}},
			"SCHILY.xattr.security.capability SCHILY.xattr.user.a SCHILY.xattr.user.z path"},
		{"device", header{name: "a", flag: '3', major: 4095, minor: 1<<20 - 1}, ""},
		{"record of 99 bytes", header{name: "a", flag: '0', xattrs: map[string]string{"user.a": strings.Repeat("x", 99-24)}}, "SCHILY.xattr.user.a"},
		{"record of 100 bytes", header{name: "a", flag: '0', xattrs: map[string]string{"user.a": strings.Repeat("x", 100-24)}}, "SCHILY.xattr.user.a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b, err := c.h.appendTo(nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(b)%blockSize != 0 {
				t.Errorf("%d bytes", len(b))
			}
			if c.pax == "" && len(b) != blockSize {
				t.Errorf("%d bytes where one block can hold it", len(b))
			}
			got, err := tar.NewReader(bytes.NewReader(b)).Next()
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != c.h.name || got.Linkname != c.h.link || got.Mode != int64(c.h.mode) || got.Uid != c.h.uid || got.Gid != c.h.gid ||
				got.Size != c.h.size || got.ModTime.Unix() != c.h.mtime || got.Devmajor != int64(c.h.major) || got.Devminor != int64(c.h.minor) {
				t.Errorf("read as %+v", got)
			}
			for k, v := range c.h.xattrs {
				if got.PAXRecords["SCHILY.xattr."+k] != v {
					t.Errorf("%s read as %q", k, got.PAXRecords["SCHILY.xattr."+k])
				}
			}
			var keys []string
			if len(b) > blockSize {
				keys = paxKeys(b[blockSize : len(b)-blockSize])
			}
			if strings.Join(keys, " ") != c.pax {
				t.Errorf("records %q, want %q", keys, c.pax)
			}
		})
	}
	if _, err := (&header{name: "a", xattrs: map[string]string{"user.a=b": ""}}).appendTo(nil); err == nil {
		t.Error("an attribute whose name has a = is written")
	}
}

// paxKeys returns the keys of PAX records in their order.
func paxKeys(b []byte) []string {
	var keys []string
	for {
		var n int
		if _, err := fmt.Sscanf(string(b[:min(len(b), 10)]), "%d ", &n); err != nil || n > len(b) {
			return keys
		}
		_, record, _ := strings.Cut(string(b[:n]), " ")
		key, _, _ := strings.Cut(record, "=")
		keys = append(keys, key)
		b = b[n:]
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	late := someTime.Add(time.Hour + 999*time.Millisecond)
	for _, c := range []struct {
		name string
		o    TarOptions
		in   time.Time
		want time.Time
	}{
		{"own, in seconds", TarOptions{}, late, late.Truncate(time.Second)},
		{"none", TarOptions{}, time.Time{}, DefaultModTime},
		{"given", TarOptions{ModTime: someTime}, DefaultModTime, someTime},
	} {
		e := regular("a", "")
		e.ModTime = c.in
		var b bytes.Buffer
		if err := WriteTar(context.Background(), &b, seq(e), nil, c.o); err != nil {
			t.Fatal(err)
		}
		h, err := tar.NewReader(&b).Next()
		if err != nil || !h.ModTime.Equal(c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.name, h.ModTime, err, c.want)
		}
	}
}

func TestNoWhiteouts(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	err := WriteTar(context.Background(), &b, seq(
		Entry{Path: ".", Type: Whiteout, Opaque: true},
		Entry{Path: "a", Type: Dir, Opaque: true},
		Entry{Path: "a/gone", Type: Whiteout},
		regular("b.wh.c", "not one"),
	), nil, TarOptions{NoWhiteouts: true})
	if err != nil {
		t.Fatal(err)
	}
	want(t, readTar(t, b.Bytes()), "dir a 0000\nfile b.wh.c 7 0644")
}

func TestWriteTarErrors(t *testing.T) {
	t.Parallel()
	content := func(e Entry, r io.Reader) (iter.Seq2[Entry, error], func(Entry) (io.ReadCloser, error)) {
		e.Data, e.Inline = nil, false
		return seq(regular("before", "x"), e, regular("z", "x")), func(Entry) (io.ReadCloser, error) {
			if r == nil {
				return nil, os.ErrNotExist
			}
			return io.NopCloser(r), nil
		}
	}
	of := func(size int64, d digest.Digest) Entry {
		return Entry{Path: "dir/a", Type: Regular, Size: size, Digest: d}
	}
	inline := regular("dir/a", "abc")
	inline.Size = 4
	wrong := regular("dir/a", "abc")
	wrong.Digest = digest.FromString("abd")
	big := strings.Repeat("x", 3*chunkSize)
	for _, c := range []struct {
		name string
		e    Entry
		r    io.Reader
		want string
	}{
		{"missing", of(3, ""), nil, "dir/a: file does not exist"},
		{"short", of(4, ""), strings.NewReader("abc"), "dir/a: 3 bytes instead of 4"},
		{"empty", of(4, ""), strings.NewReader(""), "dir/a: 0 bytes instead of 4"},
		{"long", of(2, ""), strings.NewReader("abc"), "dir/a: more than 2 bytes"},
		{"not empty", of(0, ""), strings.NewReader("abc"), "dir/a: more than 0 bytes"},
		{"large and short", of(int64(len(big)+1), ""), strings.NewReader(big), "dir/a: 196608 bytes instead of 196609"},
		{"large and long", of(int64(len(big)-1), ""), strings.NewReader(big), "dir/a: more than 196607 bytes"},
		{"read error", of(3, ""), iotest.ErrReader(errors.New("bad disk")), "dir/a: bad disk"},
		{"other content", of(3, digest.FromString("abd")), strings.NewReader("abc"), "dir/a: content has digest sha256:ba78"},
		{"other inline size", inline, nil, "dir/a: 3 bytes instead of 4"},
		{"other inline content", wrong, nil, "dir/a: content has digest sha256:ba78"},
		{"negative size", of(-1, ""), nil, "dir/a: "},
		{"owner", Entry{Path: "dir/a", Type: Fifo, UID: 1 << 32}, nil, "dir/a: owner 4294967296:0"},
		{"type", Entry{Path: "dir/a", Type: 'x'}, nil, `dir/a: unknown type 'x'`},
		{"whiteout's name", Entry{Path: "dir/.wh.a", Type: Fifo}, nil, "dir/.wh.a: a layer can't have a file of this name"},
		{"in a whiteout's name", Entry{Path: ".wh.d/a", Type: Fifo}, nil, ".wh.d/a: a layer can't have a file of this name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			entries, open := content(c.e, c.r)
			if c.e.Inline {
				entries = seq(c.e)
			}
			err := WriteTar(context.Background(), io.Discard, entries, open, TarOptions{})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// Many entries are on their way when something goes wrong; all must end.
func TestWriteTarStops(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	body := strings.Repeat("x", 2*chunkSize)
	many := func(last error) iter.Seq2[Entry, error] {
		return func(yield func(Entry, error) bool) {
			for i := range 2000 {
				if !yield(Entry{Path: fmt.Sprint(i), Type: Regular, Size: int64(len(body))}, nil) {
					return
				}
			}
			yield(Entry{}, last)
		}
	}
	open := func(Entry) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
	if err := WriteTar(context.Background(), io.Discard, many(broken), open, TarOptions{}); err != broken {
		t.Errorf("error of the entries: got %v", err)
	}
	if err := WriteTar(context.Background(), failingWriter{broken}, many(nil), open, TarOptions{}); !errors.Is(err, broken) {
		t.Errorf("error of the writer: got %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	n := 0
	stop := func(e Entry) (io.ReadCloser, error) {
		if e.Path == "500" {
			cancel(broken)
		}
		return open(e)
	}
	w := writerFunc(func(p []byte) (int, error) { n += len(p); return len(p), nil })
	if err := WriteTar(ctx, w, many(nil), stop, TarOptions{}); !errors.Is(err, broken) {
		t.Errorf("cancelled: got %v", err)
	}
	if n > 2000*len(body) {
		t.Errorf("%d bytes were written after the cancellation", n)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// GNU tar understands what we write.
func TestGNUTarReads(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip(err)
	}
	var b bytes.Buffer
	long := strings.Repeat("d/", 140) + "file"
	err := WriteTar(context.Background(), &b, seq(
		Entry{Path: "d", Type: Dir, Mode: 0o755, ModTime: someTime},
		Entry{Path: "e", Type: Symlink, Link: "d", Mode: 0o777, ModTime: someTime},
		regular(long, "deep"),
		regular("x y", "one"),
		Entry{Path: "z", Type: Hardlink, Link: "x y"},
	), nil, TarOptions{ModTime: someTime})
	if err != nil {
		t.Fatal(err)
	}
	dst := t.TempDir()
	cmd := exec.Command("tar", "-x", "--no-same-owner", "-C", dst)
	cmd.Stdin = bytes.NewReader(b.Bytes())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("tar: %v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dst, long)); string(got) != "deep" {
		t.Errorf("got %q, %v", got, err)
	}
	one, err1 := os.Stat(filepath.Join(dst, "x y"))
	two, err2 := os.Stat(filepath.Join(dst, "z"))
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(one, two) || !one.ModTime().Equal(someTime) {
		t.Errorf("hard link: %v, %v", one, err)
	}
}

func TestComparePaths(t *testing.T) {
	t.Parallel()
	sorted := []string{".", "-", "a", "a/b", "a/b/c", "a/c", "a-b", "a.b", "aa", "b", "b/\x01", "b\x01"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := ComparePaths(a, b); got < 0 != (i < j) || got > 0 != (i > j) {
				t.Errorf("ComparePaths(%q, %q) = %d", a, b, got)
			}
		}
	}
}

// BenchmarkWriteTar has 100,000 files of 1 KiB. "raw" reads the files one after
// the other and hashes, and does nothing else.
func BenchmarkWriteTar(b *testing.B) {
	dir := b.TempDir()
	body := bytes.Repeat([]byte("0123456789abcdef"), 64)
	for i := range 1000 {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i))
		if err := os.Mkdir(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range 100 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%02d", j)), body, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("strake", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := WriteTar(context.Background(), sha256.New(), Walk(dir), opener(dir), TarOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("walk", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, err := range Walk(dir) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("raw", func(b *testing.B) {
		for b.Loop() {
			h := sha256.New()
			err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				data, err := os.ReadFile(path)
				h.Write(data)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
