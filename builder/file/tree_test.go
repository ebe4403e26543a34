package file

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
)

// memory is a tree in memory.
type memory map[string]layers.Entry

// newTree makes a tree of lines: "d 755 0:0 path", "f 644 0:0 path content",
// "l 0:0 path -> target", "p 644 0:0 path" (a fifo), "c 644 0:0 path major:minor".
// Parents that are missing are directories 0755 of root.
func newTree(t testing.TB, text string) memory {
	t.Helper()
	m := memory{".": {Path: ".", Type: layers.Dir, Mode: 0o755}}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		e, p := layers.Entry{}, ""
		owner := func(s string) {
			if _, err := fmt.Sscanf(s, "%d:%d", &e.UID, &e.GID); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		if f[0] == "l" {
			owner(f[1])
			e.Type, e.Mode, p, e.Link = layers.Symlink, 0o777, f[2], f[4]
		} else {
			mode, err := strconv.ParseUint(f[1], 8, 32)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			owner(f[2])
			e.Mode, p = uint32(mode), f[3]
			switch f[0] {
			case "d":
				e.Type = layers.Dir
			case "f":
				e.Type = layers.Regular
				e.Data = []byte(strings.Join(f[4:], " "))
				e.Size = int64(len(e.Data))
			case "p":
				e.Type = layers.Fifo
			case "c":
				e.Type = layers.Char
				fmt.Sscanf(f[4], "%d:%d", &e.Major, &e.Minor)
			default:
				t.Fatalf("%q: unknown type", line)
			}
		}
		m.add(p, e)
	}
	return m
}

func (m memory) add(p string, e layers.Entry) {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if _, ok := m[dir]; !ok {
			m[dir] = layers.Entry{Path: dir, Type: layers.Dir, Mode: 0o755}
		}
	}
	e.Path = p
	m[p] = e
}

// with is the tree and a file of arbitrary content.
func (m memory) with(p string, data []byte) memory {
	m.add(p, layers.Entry{Type: layers.Regular, Mode: 0o644, Data: data, Size: int64(len(data))})
	return m
}

func (m memory) Lookup(p string) (layers.Entry, error) {
	e, ok := m[p]
	if !ok {
		return e, notExist("lookup", p)
	}
	e.Data = nil
	return e, nil
}

func (m memory) ReadDir(p string) ([]layers.Entry, error) {
	if e, ok := m[p]; !ok || e.Type != layers.Dir {
		return nil, notExist("readdir", p)
	}
	var list []layers.Entry
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k != "." && path.Dir(k) == p {
			e, _ := m.Lookup(k)
			list = append(list, e)
		}
	}
	return list, nil
}

func (m memory) Open(_ context.Context, p string) (io.ReadCloser, error) {
	e, ok := m[p]
	if !ok || e.Type != layers.Regular {
		return nil, notExist("open", p)
	}
	return io.NopCloser(bytes.NewReader(e.Data)), nil
}

func (m memory) Digest(_ context.Context, p string) (digest.Digest, error) {
	e, ok := m[p]
	if !ok || e.Type != layers.Regular {
		return "", notExist("digest", p)
	}
	return digest.FromBytes(e.Data), nil
}

// format writes entries as lines, like those of newTree; the contents of files
// are told by where they come from.
func format(entries []layers.Entry) string {
	var b strings.Builder
	for _, e := range entries {
		switch e.Type {
		case layers.Whiteout:
			fmt.Fprintf(&b, "w %s", e.Path)
		case layers.Symlink:
			fmt.Fprintf(&b, "l %d:%d %s -> %s", e.UID, e.GID, e.Path, e.Link)
		case layers.Hardlink:
			fmt.Fprintf(&b, "h %s -> %s", e.Path, e.Link)
		default:
			kind := map[layers.Type]string{layers.Regular: "f", layers.Dir: "d", layers.Fifo: "p", layers.Char: "c", layers.Block: "b"}[e.Type]
			fmt.Fprintf(&b, "%s %o %d:%d %s", kind, e.Mode, e.UID, e.GID, e.Path)
		}
		if e.Opaque {
			b.WriteString(" opaque")
		}
		switch {
		case e.Type != layers.Regular:
		case e.Inline:
			fmt.Fprintf(&b, " = %q", e.Data)
		case e.Origin.Staged != "":
			b.WriteString(" < archive")
		default:
			fmt.Fprintf(&b, " < %d:%s", e.Origin.Input, e.Origin.Path)
		}
		for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
			fmt.Fprintf(&b, " %s=%q", k, e.Xattrs[k])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// lines drops the indentation of a test's text.
func lines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}
