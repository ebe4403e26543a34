package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/state"
)

var (
	linux   = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm     = ocispec.Platform{OS: "linux", Architecture: "arm64"}
	created = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
)

// store is a store root with all that is on it.
type store struct {
	root   *state.Root
	layers *snapshot.Store
	blobs  *blob.Store
	images *Store
	packer *Packer
}

func newStore(t testing.TB) *store { return openStore(t, t.TempDir()) }

func openStore(t testing.TB, dir string) *store {
	t.Helper()
	root, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	rootless := os.Geteuid() != 0
	snaps, err := snapshot.Open(root, snapshot.Options{
		Driver: &copydir.Driver{UserXattr: rootless, RecordOwners: rootless}, UserXattr: rootless, RecordOwners: rootless,
	})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := blob.Open(root.Path("blobs"), blob.TempIn(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	images, err := OpenStore(root, blobs)
	if err != nil {
		t.Fatal(err)
	}
	return &store{root, snaps, blobs, images, &Packer{Layers: snaps, Blobs: blobs}}
}

func regular(path, content string) layers.Entry {
	return layers.Entry{
		Path: path, Type: layers.Regular, Mode: 0o644, Size: int64(len(content)), UID: os.Geteuid(), GID: os.Getegid(),
		ModTime: time.Unix(1e9, 0), Data: []byte(content), Inline: true, Digest: digest.FromString(content),
	}
}

// dir makes a layer directory of files.
func (s *store) dir(t testing.TB, files ...layers.Entry) layers.ID {
	t.Helper()
	id, err := s.layers.AddEntries(t.Context(), files, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// recipe makes a layer of one file whose content is elsewhere, and counts how
// often it is asked for.
func (s *store) recipe(t testing.TB, path, content string) (layers.ID, snapshot.Sources, *atomic.Int32) {
	t.Helper()
	e := regular(path, content)
	e.Data, e.Inline = nil, false
	id, err := s.layers.AddRecipe([]layers.Entry{e})
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int32
	return id, snapshot.Sources{File: func(context.Context, layers.ID, layers.Entry) (io.ReadCloser, error) {
		n.Add(1)
		return io.NopCloser(strings.NewReader(content)), nil
	}}, &n
}

// pulled makes a layer that came as a blob: compressed as a, of a tar with one
// file. The blob is only where the sources have it unless here is set.
func (s *store) pulled(t testing.TB, a compress.Algorithm, content string, here bool) (layers.ID, ocispec.Descriptor, snapshot.Sources) {
	t.Helper()
	var tar, packed bytes.Buffer
	entries := func(yield func(layers.Entry, error) bool) { yield(regular("pulled", content), nil) }
	if err := layers.WriteTar(t.Context(), &tar, entries, nil, layers.TarOptions{}); err != nil {
		t.Fatal(err)
	}
	level := 1 // gives other bytes than ours
	if a == compress.None {
		level = 0
	}
	w, err := compress.NewWriter(&packed, compress.Options{Algorithm: a, Level: level})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(tar.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: a.MediaType(), Digest: digest.FromBytes(packed.Bytes()), Size: int64(packed.Len())}
	if here {
		if _, _, err := s.blobs.Put(bytes.NewReader(packed.Bytes()), desc.Digest, desc.Size); err != nil {
			t.Fatal(err)
		}
	}
	id, err := s.layers.AddBlob(digest.FromBytes(tar.Bytes()), desc, "registry.example.com/base")
	if err != nil {
		t.Fatal(err)
	}
	return id, desc, snapshot.Sources{Blob: func(_ context.Context, _ snapshot.Layer, d ocispec.Descriptor) (io.ReadCloser, error) {
		if d.Digest != desc.Digest {
			return nil, blob.ErrNotFound
		}
		return io.NopCloser(bytes.NewReader(packed.Bytes())), nil
	}}
}

func config(p ocispec.Platform, cmd string) dockerspec.DockerOCIImage {
	var img dockerspec.DockerOCIImage
	img.Platform = p
	img.Config.Cmd = []string{cmd}
	img.Config.OnBuild = []string{"RUN x"}
	img.History = []ocispec.History{{CreatedBy: "RUN one"}, {CreatedBy: "ENV a=b", EmptyLayer: true}}
	return img
}

func (s *store) build(t testing.TB, p ocispec.Platform, o PackOptions, tree ...layers.ID) *Packed {
	t.Helper()
	return s.buildFrom(t, p, o, snapshot.Sources{}, tree...)
}

func (s *store) buildFrom(t testing.TB, p ocispec.Platform, o PackOptions, src snapshot.Sources, tree ...layers.ID) *Packed {
	t.Helper()
	packed, err := s.packer.Build(t.Context(), config(p, "/bin/app"), tree, o, created, nil, src)
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

// put stores an image as a build does, and returns it.
func (s *store) put(t testing.TB, cmd string, refs []string, tree ...layers.ID) Image {
	t.Helper()
	raw, err := s.packer.Config(t.Context(), config(linux, cmd), tree, PackOptions{}, created, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	img := Image{ID: digest.FromBytes(raw), Platform: linux, Tree: tree}
	if err := s.images.Put(refs, []Image{img}, [][]byte{raw}, ""); err != nil {
		t.Fatal(err)
	}
	return img
}

func bytesOf(t testing.TB, r blob.Ref) []byte {
	t.Helper()
	rc, err := r.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	if d := digest.FromBytes(b); d != r.Desc.Digest || int64(len(b)) != r.Desc.Size {
		t.Errorf("blob %s of %d bytes has %d and the digest %s", r.Desc.Digest, r.Desc.Size, len(b), d)
	}
	return b
}

// valid checks an image as go-containerregistry does.
func valid(t testing.TB, bundles ...Bundle) {
	t.Helper()
	dir := t.TempDir()
	if err := WriteLayout(t.Context(), dir, bundles); err != nil {
		t.Fatal(err)
	}
	x, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(x); err != nil {
		t.Error(err)
	}
}

func manifestOf(t testing.TB, p *Packed) ocispec.Manifest {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(p.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func configOf(t testing.TB, p *Packed) dockerspec.DockerOCIImage {
	t.Helper()
	var img dockerspec.DockerOCIImage
	if err := json.Unmarshal(bytesOf(t, p.Config), &img); err != nil {
		t.Fatal(err)
	}
	return img
}

func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one that says %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error does not say %q: %v", p, err)
		}
	}
}
