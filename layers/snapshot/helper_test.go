package snapshot_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/state"
)

// store is a store in a directory of its own, or in that of another.
type store struct {
	*snapshot.Store
	root *state.Root
}

func newStore(t testing.TB) store { return openStore(t, t.TempDir()) }

func openStore(t testing.TB, dir string) store {
	t.Helper()
	root, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	rootless := os.Geteuid() != 0
	s, err := snapshot.Open(root, snapshot.Options{
		Driver:       &copydir.Driver{UserXattr: rootless, RecordOwners: rootless},
		UserXattr:    rootless,
		RecordOwners: rootless,
	})
	if err != nil {
		t.Fatal(err)
	}
	return store{s, root}
}

// noTemp checks that nothing temporary is left.
func (s store) noTemp(t testing.TB) {
	t.Helper()
	left, err := filepath.Glob(s.root.Path("tmp", "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// The entries that tests make layers of.

func file(path, content string) layers.Entry {
	return layers.Entry{
		Path: path, Type: layers.Regular, Mode: 0o644, Size: int64(len(content)),
		UID: os.Geteuid(), GID: os.Getegid(),
		Data: []byte(content), Inline: true, Digest: digest.FromString(content),
	}
}

// from is a file whose content is elsewhere: at the origin that is its name.
func from(path, content string) layers.Entry {
	e := file(path, content)
	e.Data, e.Inline = nil, false
	e.Origin = layers.Origin{Input: 1, Path: "src/" + path}
	return e
}

func dir(path string) layers.Entry {
	return layers.Entry{Path: path, Type: layers.Dir, Mode: 0o755, UID: os.Geteuid(), GID: os.Getegid()}
}

func symlink(path, target string) layers.Entry {
	return layers.Entry{Path: path, Type: layers.Symlink, Mode: 0o777, Link: target, UID: os.Geteuid(), GID: os.Getegid()}
}

func hardlink(path, target string) layers.Entry {
	return layers.Entry{Path: path, Type: layers.Hardlink, Link: target}
}

func whiteout(path string) layers.Entry { return layers.Entry{Path: path, Type: layers.Whiteout} }

func opaque(path string) layers.Entry {
	e := dir(path)
	e.Opaque = true
	return e
}

// contents gives the contents of entries by their origins, and counts.
type contents struct {
	mu    sync.Mutex
	files map[string]string
	blobs map[digest.Digest][]byte
	opens int
}

func (c *contents) sources() snapshot.Sources {
	return snapshot.Sources{
		File: func(ctx context.Context, id layers.ID, e layers.Entry) (io.ReadCloser, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.opens++
			content, ok := c.files[e.Origin.Path]
			if !ok {
				return nil, fmt.Errorf("no file %s", e.Origin.Path)
			}
			return io.NopCloser(strings.NewReader(content)), nil
		},
		Blob: func(ctx context.Context, l snapshot.Layer, desc ocispec.Descriptor) (io.ReadCloser, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.opens++
			data, ok := c.blobs[desc.Digest]
			if !ok {
				return nil, fmt.Errorf("no blob %s", desc.Digest)
			}
			return io.NopCloser(bytes.NewReader(data)), nil
		},
	}
}

// packed is a layer as a blob.
type packed struct {
	diffID digest.Digest
	desc   ocispec.Descriptor
	data   []byte
}

func pack(t testing.TB, a compress.Algorithm, entries ...layers.Entry) packed {
	t.Helper()
	var tar bytes.Buffer
	open := func(e layers.Entry) (io.ReadCloser, error) {
		return nil, fmt.Errorf("%s has no content", e.Path)
	}
	if err := layers.WriteTar(t.Context(), &tar, seq(entries), open, layers.TarOptions{}); err != nil {
		t.Fatal(err)
	}
	return packTar(t, a, tar.Bytes())
}

func packTar(t testing.TB, a compress.Algorithm, tar []byte) packed {
	t.Helper()
	var blob bytes.Buffer
	w, err := compress.NewWriter(&blob, compress.Options{Algorithm: a})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(tar); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed{
		diffID: digest.FromBytes(tar),
		desc:   ocispec.Descriptor{MediaType: a.MediaType(), Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len())},
		data:   blob.Bytes(),
	}
}

func seq(entries []layers.Entry) iter.Seq2[layers.Entry, error] {
	return func(yield func(layers.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// add adds the layer of a blob, with the source that has it.
func (s store) add(t testing.TB, p packed) (layers.ID, snapshot.Sources) {
	t.Helper()
	id, err := s.AddBlob(p.diffID, p.desc, "example.com/repo")
	if err != nil {
		t.Fatal(err)
	}
	c := &contents{blobs: map[digest.Digest][]byte{p.desc.Digest: p.data}}
	return id, c.sources()
}

// addEntries makes a layer of inline entries.
func (s store) addEntries(t testing.TB, entries ...layers.Entry) layers.ID {
	t.Helper()
	id, err := s.AddEntries(t.Context(), entries, func(e layers.Entry) (string, error) {
		return "", fmt.Errorf("%s is nowhere", e.Path)
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// ensure returns the directory of a layer.
func (s store) ensure(t testing.TB, id layers.ID, src snapshot.Sources) string {
	t.Helper()
	dirs, err := s.Ensure(t.Context(), layers.Tree{id}, src)
	if err != nil {
		t.Fatal(err)
	}
	return dirs[0]
}

// describe tells entries in a line each.
func describe(entries iter.Seq2[layers.Entry, error]) (string, error) {
	var b strings.Builder
	for e, err := range entries {
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%c %s", e.Type, e.Path)
		switch e.Type {
		case layers.Regular:
			fmt.Fprintf(&b, " %04o %d", e.Mode, e.Size)
		case layers.Dir:
			fmt.Fprintf(&b, " %04o", e.Mode)
		case layers.Symlink, layers.Hardlink:
			fmt.Fprintf(&b, " %s", e.Link)
		}
		names := make([]string, 0, len(e.Xattrs))
		for name := range e.Xattrs {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			fmt.Fprintf(&b, " %s=%s", name, e.Xattrs[name])
		}
		if e.Opaque {
			b.WriteString(" opaque")
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

func described(t testing.TB, entries iter.Seq2[layers.Entry, error]) string {
	t.Helper()
	s, err := describe(entries)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
