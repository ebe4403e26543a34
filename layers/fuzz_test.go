package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
)

// FuzzApply gives Apply any bytes. Nothing outside is touched (layerDir sees to
// that), and what was unpacked comes back from its own tar stream.
func FuzzApply(f *testing.F) {
	f.Add(stream(f, file("a/b", "1"), link("l", "../outside"), file("l/c", "1"), hard("h", "a/b"), file(".wh.x", ""), file("a/.wh..wh..opq", "")))
	f.Add(stream(f, dir("a"), link("a", "/"), file("a/x", "1"), file("../outside/canary", "dead")))
	f.Add(stream(f, tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "1", "TEST.body": "y"}}))
	f.Fuzz(func(t *testing.T, in []byte) {
		needRoot(t)
		dir := layerDir(t)
		if Apply(context.Background(), dir, bytes.NewReader(in), ApplyOptions{MaxEntries: 1000, MaxSize: 10 << 20}) == nil {
			roundTrip(t, dir)
		}
	})
}

// FuzzApplyEntries makes streams of entries that are likely to be in each
// other's way: three bytes are one entry of a few names.
func FuzzApplyEntries(f *testing.F) {
	f.Add([]byte("0a.5bc2dc0de1fg"))
	f.Add([]byte("\x00\x01\x02\x05\x01\x00\x02\x01\x03\x07\x11\x00\x01\x02\x01"))
	f.Add([]byte("2\x01\x0c0\x0a\x002\x01\x0d0\x0a\x005\x01\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		needRoot(t)
		names := []string{"a", "b", "a/a", "a/b", "b/a", "a/b/c", ".", "c/../a", "a/a/a", "l", "l/a", "l/b/c", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", ".wh.l", "/b/b", ".wh..wh..opq"}
		targets := []string{"a", "b", "/", "..", "../outside", "/a/b", "a/../../outside", ".", "l", "b/../b", "l/..", "nowhere/x"}
		flags := []byte{tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar, tar.TypeReg}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for ; len(in) >= 3; in = in[3:] {
			h := tar.Header{
				Typeflag: flags[int(in[0])%len(flags)],
				Name:     names[int(in[1])%len(names)],
				Mode:     int64(in[2]) << 2,
				Uid:      int(in[2] % 3),
				ModTime:  someTime,
			}
			body := ""
			switch h.Typeflag {
			case tar.TypeReg:
				body = strings.Repeat("x", int(in[2])*300)
				h.Size = int64(len(body))
			case tar.TypeSymlink:
				h.Linkname = targets[int(in[2])%len(targets)]
			case tar.TypeLink:
				h.Linkname = names[int(in[2])%len(names)]
			case tar.TypeChar:
				h.Devmajor, h.Devminor = int64(in[2]%2), int64(in[2]/2%2)
			}
			if w.WriteHeader(&h) != nil {
				return
			}
			io.WriteString(w, body)
		}
		w.Close()
		dir := layerDir(t)
		if Apply(context.Background(), dir, &b, ApplyOptions{MaxEntries: 1000}) == nil {
			roundTrip(t, dir)
		}
	})
}

// FuzzReadTar checks that whatever is read without an error can be written, and
// is then read the same.
func FuzzReadTar(f *testing.F) {
	f.Add(stream(f, file("a/b", "1"), link("l", "x"), hard("h", "a/b"), file(".wh.x", ""), file("a/.wh..wh..opq", ""), dir(".")))
	f.Add(stream(f, tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 5, Devminor: 1, Uid: 5_000_000}))
	f.Add(stream(f, tar.Header{Name: strings.Repeat("ü/", 200) + "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "\x00"}}))
	f.Fuzz(func(t *testing.T, in []byte) {
		entries, body := ReadTar(bytes.NewReader(in))
		var all []Entry
		for e, err := range entries {
			if err != nil {
				return
			}
			if e.Path == ".." || strings.HasPrefix(e.Path, "../") || strings.HasPrefix(e.Path, "/") || e.Path == "" {
				t.Fatalf("name %q", e.Path)
			}
			if e.Type == Regular {
				if e.Size > 1<<20 {
					return
				}
				var err error
				if e.Data, err = io.ReadAll(body); err != nil {
					return
				}
				e.Inline = true
			}
			all = append(all, e)
		}
		var b bytes.Buffer
		if err := WriteTar(context.Background(), &b, seq(all...), nil, TarOptions{}); err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		var first strings.Builder
		for _, e := range all {
			fmt.Fprintln(&first, line(e), e.ModTime.Unix())
		}
		var second strings.Builder
		entries, _ = ReadTar(bytes.NewReader(b.Bytes()))
		for e, err := range entries {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&second, line(e), e.ModTime.Unix())
		}
		if first.String() != second.String() {
			t.Errorf("read again:\n%s\nwas:\n%s", second.String(), first.String())
		}
	})
}
