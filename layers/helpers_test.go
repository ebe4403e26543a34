package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// line describes an entry for a person.
func line(e Entry) string {
	var b strings.Builder
	types := map[Type]string{Regular: "file", Hardlink: "hard", Symlink: "link", Char: "char", Block: "block", Dir: "dir", Fifo: "fifo", Whiteout: "gone"}
	fmt.Fprintf(&b, "%s %s", types[e.Type], e.Path)
	switch e.Type {
	case Hardlink:
		return b.String() + " = " + e.Link
	case Whiteout:
		if e.Opaque {
			b.WriteString("/*")
		}
		return b.String()
	case Symlink:
		fmt.Fprintf(&b, " -> %s", e.Link)
	case Char, Block:
		fmt.Fprintf(&b, " %d:%d", e.Major, e.Minor)
	case Regular:
		fmt.Fprintf(&b, " %d", e.Size)
	}
	if e.Type != Symlink {
		fmt.Fprintf(&b, " %04o", e.Mode)
	}
	if e.UID != 0 || e.GID != 0 {
		fmt.Fprintf(&b, " %d:%d", e.UID, e.GID)
	}
	if e.Opaque {
		b.WriteString(" opaque")
	}
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		fmt.Fprintf(&b, " %s=%q", k, e.Xattrs[k])
	}
	return b.String()
}

func list(t testing.TB, entries iter.Seq2[Entry, error]) string {
	t.Helper()
	var b strings.Builder
	for e, err := range entries {
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(line(e) + "\n")
	}
	return b.String()
}

// want compares listings; want is indented as it stands in a test.
func want(t testing.TB, got, want string) {
	t.Helper()
	var lines []string
	for l := range strings.SplitSeq(strings.TrimSpace(want), "\n") {
		lines = append(lines, strings.TrimSpace(l))
	}
	if want = strings.Join(lines, "\n"); strings.TrimSpace(got) != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// stream makes a tar stream by archive/tar, which knows nothing of our rules.
// The zero mode is 0644, for directories 0755; a name with a slash at the end
// is a directory.
func stream(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := ""
		if strings.HasSuffix(h.Name, "/") && h.Typeflag == 0 {
			h.Typeflag = tar.TypeDir
		}
		switch {
		case h.Typeflag == tar.TypeDir && h.Mode == 0:
			h.Mode = 0o755
		case h.Mode == 0:
			h.Mode = 0o644
		}
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Typeflag = tar.TypeReg
			// Content is told by a record of the test's own.
			body = h.PAXRecords["TEST.body"]
			delete(h.PAXRecords, "TEST.body")
			h.Size = int64(len(body))
		}
		if h.ModTime.IsZero() {
			h.ModTime = DefaultModTime
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) tar.Header {
	return tar.Header{Name: name, PAXRecords: map[string]string{"TEST.body": body}}
}

func dir(name string) tar.Header { return tar.Header{Name: name + "/"} }

func link(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
}

func hard(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
}

// layerDir is an empty directory whose neighbour "outside" must stay as it is.
func layerDir(t testing.TB) string {
	t.Helper()
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	for _, err := range []error{
		os.Mkdir(filepath.Join(top, "layer"), 0o755),
		os.Mkdir(outside, 0o755),
		os.WriteFile(filepath.Join(outside, "canary"), []byte("alive"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := list(t, Walk(outside))
	t.Cleanup(func() {
		if after := list(t, Walk(outside)); after != before {
			t.Errorf("what is outside of the layer was changed:\n%s", after)
		}
		if b, err := os.ReadFile(filepath.Join(outside, "canary")); string(b) != "alive" {
			t.Errorf("a file outside of the layer was changed (%v)", err)
		}
		if files, _ := os.ReadDir(top); len(files) != 2 {
			t.Errorf("something was made outside of the layer: %v", files)
		}
	})
	return filepath.Join(top, "layer")
}

func apply(t testing.TB, data []byte, o ApplyOptions) string {
	t.Helper()
	dir := layerDir(t)
	if err := Apply(context.Background(), dir, bytes.NewReader(data), o); err != nil {
		t.Fatal(err)
	}
	return dir
}

func opener(dir string) func(Entry) (io.ReadCloser, error) {
	return func(e Entry) (io.ReadCloser, error) { return OpenFile(filepath.Join(dir, e.Path)) }
}

// tarOf writes a layer directory.
func tarOf(t testing.TB, dir string, o TarOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteTar(context.Background(), &b, Walk(dir), opener(dir), o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func seq(entries ...Entry) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func readTar(t testing.TB, data []byte) string {
	t.Helper()
	entries, _ := ReadTar(bytes.NewReader(data))
	return list(t, entries)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes files of several owners and device nodes")
	}
}

// needXattrs skips the test where files can't have attributes.
func needXattrs(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Setxattr(dir, "user.test", nil, 0); err != nil {
		t.Skipf("needs user extended attributes: %v", err)
	}
	if err := unix.Removexattr(dir, "user.test"); err != nil {
		t.Fatal(err)
	}
}

var someTime = time.Date(2021, 2, 3, 4, 5, 6, 0, time.UTC)
