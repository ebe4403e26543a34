package file

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// archive makes a tar of headers; Size is that of the content, which is the
// name repeated.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{'x'}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpackInto(t *testing.T, base Tree, data []byte, change ...func(*plan.Copy)) ([]layers.Entry, error) {
	t.Helper()
	src := newTree(t, "").with("a.tar", data)
	c := dockerfile("/a.tar", "/to/", append(change, unpacked)...)
	return Apply(context.Background(), &plan.File{Actions: actions(c)}, base, inputsOf(Input{Tree: src}), func() (string, error) { return t.TempDir(), nil })
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	dir := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o700, Uid: 3, Gid: 4}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Size: 3, Uid: 3, Gid: 4} }
	link := func(typ byte, name, to string) tar.Header { return tar.Header{Typeflag: typ, Name: name, Linkname: to} }
	for _, tt := range []struct {
		name    string
		base    string
		change  func(*plan.Copy)
		headers []tar.Header
		want    string
		err     string
	}{
		{"owners and modes are the archive's", "", nil, []tar.Header{dir("./"), dir("d/"), file("d/f"), {Name: "empty", Mode: 0o4711}}, `
			d 755 0:0 to
			d 700 3:4 to/d
			f 644 3:4 to/d/f < archive
			f 4711 0:0 to/empty = ""`, ""},
		{"--chown", "", chown("7", "8"), []tar.Header{file("d/f")}, `
			d 755 7:8 to
			d 755 0:0 to/d
			f 644 7:8 to/d/f < archive`, ""},
		{"files replace what is there", "f 644 0:0 to/f/x y\nf 644 0:0 to/d y", nil, []tar.Header{file("f"), dir("d"), file("d/g")}, `
			d 755 0:0 to
			d 700 3:4 to/d
			f 644 3:4 to/d/g < archive
			f 644 3:4 to/f < archive`, ""},
		{"directories keep what is in them", "d 711 1:1 to\nd 755 1:1 to/d\nf 644 0:0 to/d/x y", nil, []tar.Header{dir("d")}, `
			d 711 1:1 to
			d 700 3:4 to/d`, ""},
		{"a directory in place of a directory that a file was in place of", "f 644 0:0 to/d/x y", nil, []tar.Header{file("d"), dir("d")}, `
			d 755 0:0 to
			d 700 3:4 to/d opaque`, ""},
		{"the same file twice", "", nil, []tar.Header{file("f"), {Name: "f", Mode: 0o600, Size: 1}}, `
			d 755 0:0 to
			f 600 0:0 to/f < archive`, ""},
		{"symlinks stay, and are followed below the destination only", "", nil, []tar.Header{link(tar.TypeSymlink, "l", "/../../etc"), file("l/passwd")}, `
			d 755 0:0 to
			d 755 0:0 to/etc
			f 644 3:4 to/etc/passwd < archive
			l 0:0 to/l -> /../../etc`, ""},
		{"symlinks of the base are followed below the destination only", "l 0:0 to/l -> /etc\nf 644 0:0 etc/passwd x", nil, []tar.Header{file("l/passwd")}, `
			d 755 0:0 to
			d 755 0:0 to/etc
			f 644 3:4 to/etc/passwd < archive`, ""},
		{"hard links", "", nil, []tar.Header{file("b"), link(tar.TypeLink, "a", "b"), link(tar.TypeLink, "c", "./b")}, `
			d 755 0:0 to
			f 644 0:0 to/a < archive
			h to/b -> to/a
			h to/c -> to/a`, ""},
		{"the last name of a file tells its mode and owner", "", nil, []tar.Header{file("b"), {Typeflag: tar.TypeLink, Name: "c", Linkname: "b", Mode: 0o640, Uid: 5, Gid: 6}}, `
			d 755 0:0 to
			f 640 5:6 to/b < archive
			h to/c -> to/b`, ""},
		{"fifo", "", nil, []tar.Header{{Typeflag: tar.TypeFifo, Name: "p"}}, `
			d 755 0:0 to
			p 644 0:0 to/p`, ""},
		{"capabilities, no other attributes", "", nil, []tar.Header{{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "c", "SCHILY.xattr.user.x": "y"}}}, `
			d 755 0:0 to
			f 644 0:0 to/f = "" security.capability="c"`, ""},
		{"absolute names", "", nil, []tar.Header{file("/etc/f")}, `
			d 755 0:0 to
			d 755 0:0 to/etc
			f 644 3:4 to/etc/f < archive`, ""},

		{"the root as something else", "", nil, []tar.Header{{Typeflag: tar.TypeFifo, Name: "."}, {Typeflag: tar.TypeSymlink, Name: ".", Linkname: "/etc"}, file("a")}, `
			d 755 0:0 to
			f 644 3:4 to/a < archive`, ""},

		{"names that leave", "", nil, []tar.Header{file("ok"), file("../../x")}, "", "x"},
		{"hard link that leaves", "", nil, []tar.Header{link(tar.TypeLink, "a", "../../../etc/passwd")}, "", "passwd"},
		{"hard link to nothing", "", nil, []tar.Header{link(tar.TypeLink, "a", "b")}, "", "not there"},
		{"hard link to a file of the base", "f 644 0:0 to/b x", nil, []tar.Header{link(tar.TypeLink, "a", "b")}, "", "not in the archive"},
		{"hard link to a directory", "", nil, []tar.Header{dir("b"), link(tar.TypeLink, "a", "b")}, "", "directory"},
		{"whiteout", "", nil, []tar.Header{file(".wh.x")}, "", "no image can hold"},
		{"file as a directory", "", nil, []tar.Header{file("a"), file("a/b")}, "", "/to/a: not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var base Tree
			if tt.base != "" {
				base = newTree(t, tt.base)
			}
			if tt.change == nil {
				tt.change = func(*plan.Copy) {}
			}
			got, err := unpackInto(t, base, archive(t, tt.headers...), tt.change)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "unpack /a.tar") {
					t.Fatalf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(lines(tt.want), format(got)); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			checkEntries(t, got)
			for _, e := range got {
				if p := e.Origin.Staged; p != "" {
					if data, err := os.ReadFile(p); err != nil || int64(len(data)) != e.Size {
						t.Errorf("%s: staged %q, %v", e.Path, data, err)
					}
				}
			}
		})
	}
}

func TestUnpackCompressed(t *testing.T) {
	t.Parallel()
	plain := archive(t, tar.Header{Name: "f", Size: 100_000})
	pack := map[string]func() []byte{
		"plain": func() []byte { return plain },
		"gzip": func() []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, werr := w.Write(plain)
			if err := errors.Join(werr, w.Close()); err != nil {
				t.Error(err)
			}
			return b.Bytes()
		},
		"zstd": func() []byte {
			w, err := zstd.NewWriter(nil)
			if err != nil {
				t.Error(err)
			}
			defer w.Close()
			return w.EncodeAll(plain, nil)
		},
		"xz": func() []byte {
			var b bytes.Buffer
			w, err := xz.NewWriter(&b)
			if err == nil {
				_, err = w.Write(plain)
			}
			if err = errors.Join(err, w.Close()); err != nil {
				t.Error(err)
			}
			return b.Bytes()
		},
	}
	for name, data := range pack {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := data()
			got, err := unpackInto(t, nil, data)
			if err != nil {
				t.Fatal(err)
			}
			if want := "d 755 0:0 to\nf 644 0:0 to/f < archive\n"; format(got) != want {
				t.Errorf("got %s", format(got))
			}
			// What is cut off in the middle is an error, not a shorter tree.
			if _, err := unpackInto(t, nil, data[:len(data)/2]); err == nil && len(data) > 1000 {
				t.Error("half an archive was taken")
			}
		})
	}
}

func TestNoArchives(t *testing.T) {
	t.Parallel()
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write([]byte("no tar")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"text": []byte("hello"), "empty": {}, "gzip of something else": zipped.Bytes(), "only its beginning": {0x1f, 0x8b},
		"no entries": make([]byte, 1024), "zip": []byte("PK\x03\x04rest"),
	} {
		got, err := unpackInto(t, nil, data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(got) != 2 || got[1].Path != "to/a.tar" || got[1].Size != int64(len(data)) {
			t.Errorf("%s: got\n%s", name, format(got))
		}
	}
}
