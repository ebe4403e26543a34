package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
)

func TestBuild(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	recipe, src, _ := s.recipe(t, "copied", "from the context")
	tree := layers.Tree{s.dir(t, regular("a", "one"), regular("b", strings.Repeat("two", 1e5))), recipe}
	packed := s.buildFrom(t, linux, PackOptions{}, src, tree...)
	valid(t, Single(packed, "docker.io/me/app:1"))

	m := manifestOf(t, packed)
	if m.MediaType != ocispec.MediaTypeImageManifest || m.Config.MediaType != ocispec.MediaTypeImageConfig || len(m.Layers) != 2 {
		t.Errorf("manifest: %s", packed.Manifest)
	}
	if m.Layers[0].MediaType != ocispec.MediaTypeImageLayerGzip || m.Layers[0].Digest != packed.Layers[0].Desc.Digest {
		t.Errorf("layer: %+v", m.Layers[0])
	}
	if packed.Desc.Platform.Architecture != "amd64" || packed.Desc.Digest != digest.FromBytes(packed.Manifest) {
		t.Errorf("descriptor: %+v", packed.Desc)
	}
	img := configOf(t, packed)
	if len(img.RootFS.DiffIDs) != 2 || img.RootFS.Type != "layers" || !img.Created.Equal(created) || img.Config.OnBuild[0] != "RUN x" {
		t.Errorf("config: %+v", img)
	}
	// One history entry was missing.
	if len(img.History) != 3 || img.History[2].EmptyLayer || !img.History[0].Created.Equal(created) {
		t.Errorf("history: %+v", img.History)
	}

	// The same on another root, in another order of doing.
	other := newStore(t)
	recipe2, src2, _ := other.recipe(t, "copied", "from the context")
	tree2 := layers.Tree{other.dir(t, regular("b", strings.Repeat("two", 1e5)), regular("a", "one")), recipe2}
	other.packer.Workers = 1
	raw, err := other.packer.Config(t.Context(), config(linux, "/bin/app"), tree2, PackOptions{}, created, src2)
	if err != nil {
		t.Fatal(err)
	}
	again, err := other.packer.Manifest(t.Context(), raw, tree2, PackOptions{}, nil, src2)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Manifest, packed.Manifest) {
		t.Errorf("manifests differ:\n%s\n%s", packed.Manifest, again.Manifest)
	}
}

func TestEmptyImage(t *testing.T) {
	t.Parallel()
	packed := newStore(t).build(t, linux, PackOptions{})
	if m := manifestOf(t, packed); m.Layers == nil {
		t.Errorf("layers are null: %s", packed.Manifest)
	}
	img := configOf(t, packed)
	if img.RootFS.DiffIDs == nil || !img.History[0].EmptyLayer {
		t.Errorf("config: %+v", img)
	}
	valid(t, Single(packed))
}

func TestDockerTypes(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	base, _, src := s.pulled(t, compress.Gzip, "base", false)
	tree := []layers.ID{base, s.dir(t, regular("a", "one"))}
	oci := s.buildFrom(t, linux, PackOptions{}, src, tree...)
	docker := s.buildFrom(t, linux, PackOptions{Docker: true}, src, tree...)
	m := manifestOf(t, docker)
	if m.MediaType != manifest.DockerManifest || m.Config.MediaType != manifest.DockerConfig || m.Layers[0].MediaType != manifest.DockerLayerGzip {
		t.Errorf("manifest: %s", docker.Manifest)
	}
	for i := range m.Layers {
		if m.Layers[i].Digest != oci.Layers[i].Desc.Digest {
			t.Errorf("layer %d has other bytes", i)
		}
	}
	valid(t, Single(docker))
	desc, raw, err := Index([]*Packed{docker}, true, map[string]string{"a": "b"})
	if err != nil || desc.MediaType != manifest.DockerList || bytes.Contains(raw, []byte("annotations")) {
		t.Errorf("list: %s, %v", raw, err)
	}
}

// compressionOf tells what a layer's blob is, by its bytes.
func compressionOf(t *testing.T, r blob.Ref) string {
	t.Helper()
	b := bytesOf(t, r)
	return compress.Detect(b[:min(len(b), 16)])
}

func TestCompressions(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := s.dir(t, regular("a", strings.Repeat("one", 1000)))
	var diffIDs []digest.Digest
	for _, tc := range []struct {
		algorithm compress.Algorithm
		mediaType string
		bytes     string
	}{
		{"", ocispec.MediaTypeImageLayerGzip, "gzip"},
		{compress.Zstd, ocispec.MediaTypeImageLayerZstd, "zstd"},
		{compress.None, ocispec.MediaTypeImageLayer, ""},
		{compress.Gzip, ocispec.MediaTypeImageLayerGzip, "gzip"},
	} {
		o := PackOptions{Compression: tc.algorithm}
		ref, diffID, err := s.packer.Pack(t.Context(), id, o, snapshot.Sources{})
		if err != nil {
			t.Fatal(err)
		}
		if ref.Desc.MediaType != tc.mediaType || compressionOf(t, ref) != tc.bytes {
			t.Errorf("%q: got %s", tc.algorithm, ref.Desc.MediaType)
		}
		diffIDs = append(diffIDs, diffID)
		if tc.bytes == "gzip" { // validate knows no other
			valid(t, Single(s.build(t, linux, o, id)))
		}
	}
	l, err := s.layers.Layer(id)
	if err != nil || len(l.Blobs) != 3 || l.DiffID != diffIDs[0] {
		t.Errorf("layer: %+v, %v", l, err)
	}
	for _, d := range diffIDs {
		if d != diffIDs[0] {
			t.Errorf("diffIDs differ: %v", diffIDs)
		}
	}
}

func TestLevelsAndTimesAreVariants(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := s.dir(t, regular("a", strings.Repeat("some text, ", 10000)))
	pack := func(o PackOptions) (blob.Ref, digest.Digest) {
		t.Helper()
		ref, diffID, err := s.packer.Pack(t.Context(), id, o, snapshot.Sources{})
		if err != nil {
			t.Fatal(err)
		}
		if d, err := s.packer.DiffID(t.Context(), id, o, snapshot.Sources{}); err != nil || d != diffID {
			t.Errorf("%+v: DiffID is %s, %v; Pack had %s", o, d, err, diffID)
		}
		return ref, diffID
	}
	usual, diffID := pack(PackOptions{})
	explicit, explicitID := pack(PackOptions{ModTime: layers.DefaultModTime})
	if explicit.Desc.Digest != usual.Desc.Digest || explicitID != diffID {
		t.Error("the default time is a variant")
	}
	best, bestID := pack(PackOptions{Level: 9})
	if best.Desc.Digest == usual.Desc.Digest || bestID != diffID {
		t.Error("a level should change the blob and only the blob")
	}
	later, laterID := pack(PackOptions{ModTime: time.Unix(2e9, 0)})
	if laterID == diffID || later.Desc.Digest == usual.Desc.Digest {
		t.Error("a time should change the diffID")
	}
	again, againID := pack(PackOptions{})
	if again.Desc.Digest != usual.Desc.Digest || againID != diffID {
		t.Error("variants changed the usual")
	}
}

func TestPulledLayersStayAsTheyAre(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, desc, src := s.pulled(t, compress.Gzip, "base", false)
	for _, o := range []PackOptions{{}, {Compression: compress.Zstd}, {ModTime: time.Unix(1, 0)}, {Level: 9}, {Docker: true}, {Force: true}} {
		ref, diffID, err := s.packer.Pack(t.Context(), id, o, src)
		if err != nil {
			t.Fatal(err)
		}
		if ref.Desc.Digest != desc.Digest || diffID.Encoded() != string(id) || len(ref.Origins) != 1 {
			t.Errorf("%+v: got %+v", o, ref)
		}
		bytesOf(t, ref)
	}
	if _, err := s.blobs.Stat(desc.Digest); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("the blob was fetched: %v", err)
	}
	if d, err := s.packer.DiffID(t.Context(), id, PackOptions{ModTime: time.Unix(1, 0)}, snapshot.Sources{}); err != nil || d.Encoded() != string(id) {
		t.Errorf("diffID %s, %v", d, err)
	}

	ref, diffID, err := s.packer.Pack(t.Context(), id, PackOptions{Compression: compress.Zstd, Force: true}, src)
	if err != nil {
		t.Fatal(err)
	}
	if compressionOf(t, ref) != "zstd" || diffID.Encoded() != string(id) {
		t.Errorf("forced: got %+v", ref.Desc)
	}
	l, err := s.layers.Layer(id)
	if err != nil || len(l.Blobs) != 2 {
		t.Errorf("layer: %+v, %v", l, err)
	}
}

func TestUncompressedBlobsAreCompressed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, desc, src := s.pulled(t, compress.None, "from an archive", true)
	ref, _, err := s.packer.Pack(t.Context(), id, PackOptions{}, src)
	if err != nil || compressionOf(t, ref) != "gzip" {
		t.Errorf("got %+v, %v", ref.Desc, err)
	}
	ref, _, err = s.packer.Pack(t.Context(), id, PackOptions{Compression: compress.None}, src)
	if err != nil || ref.Desc.Digest != desc.Digest {
		t.Errorf("got %+v, %v", ref.Desc, err)
	}
}

func TestBaseManifestChoosesTheBlob(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, gz, src := s.pulled(t, compress.Gzip, "base", true)
	other := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: digest.FromString("other"), Size: 5}
	if _, err := s.layers.AddBlob(digest.Digest("sha256:"+string(id)), other, "elsewhere.example.com/x"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []ocispec.Descriptor{gz, other} {
		ref, _, err := s.packer.Pack(t.Context(), id, PackOptions{Blobs: map[layers.ID]ocispec.Descriptor{id: want}}, src)
		if err != nil || ref.Desc.Digest != want.Digest {
			t.Errorf("got %+v, %v, want %+v", ref.Desc, err, want)
		}
	}
}

func TestLyingBlob(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	_, desc, src := s.pulled(t, compress.Gzip, "what it is", false)
	id, err := s.layers.AddBlob(digest.FromString("what it claims"), desc)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.packer.Pack(t.Context(), id, PackOptions{Compression: compress.Zstd, Force: true}, src)
	wantError(t, err, "has the diffID", "instead of sha256:"+string(id))
}

func TestRecipesArePackedOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, src, n := s.recipe(t, "a", "content")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, _, err := s.packer.Pack(t.Context(), id, PackOptions{}, src); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := s.packer.DiffID(t.Context(), id, PackOptions{}, snapshot.Sources{}); err != nil {
		t.Error(err)
	}
	if n.Load() != 1 {
		t.Errorf("the content was read %d times", n.Load())
	}
	// Another compression later, when the context is gone.
	ref, _, err := s.packer.Pack(t.Context(), id, PackOptions{Compression: compress.Zstd}, snapshot.Sources{})
	if err != nil || compressionOf(t, ref) != "zstd" {
		t.Errorf("zstd: %v", err)
	}
}

func TestDiffIDPacksRecipes(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, src, _ := s.recipe(t, "a", "content")
	d, err := s.packer.DiffID(t.Context(), id, PackOptions{}, src)
	if err != nil {
		t.Fatal(err)
	}
	ref, diffID, err := s.packer.Pack(t.Context(), id, PackOptions{}, snapshot.Sources{})
	if err != nil || diffID != d {
		t.Fatalf("%s, %v, want %s", diffID, err, d)
	}
	bytesOf(t, ref)

	dir := s.dir(t, regular("a", "content"))
	if got, err := s.packer.DiffID(t.Context(), dir, PackOptions{}, snapshot.Sources{}); err != nil || got != d {
		t.Errorf("a directory of the same content: %s, %v, want %s", got, err, d)
	}
	if l, err := s.layers.Layer(dir); err != nil || len(l.Blobs) != 0 || l.DiffID != d {
		t.Errorf("a directory was packed: %+v, %v", l, err)
	}
}

func TestLostBlobsAreMadeAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := s.dir(t, regular("a", "content"))
	ref, _, err := s.packer.Pack(t.Context(), id, PackOptions{}, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.blobs.Remove(ref.Desc.Digest); err != nil {
		t.Fatal(err)
	}
	again, _, err := s.packer.Pack(t.Context(), id, PackOptions{}, snapshot.Sources{})
	if err != nil || again.Desc.Digest != ref.Desc.Digest {
		t.Fatalf("%+v, %v", again.Desc, err)
	}
	bytesOf(t, again)
}

// A layer that was pushed is likely to be where it is to be sent.
func TestFollow(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := s.dir(t, regular("a", "content"))
	followed := 0
	o := PackOptions{Follow: func(_ layers.ID, f *blob.Follower) { followed++; f.Close() }}
	pack := func(why string, want int) {
		ref, _, err := s.packer.Pack(t.Context(), id, o, snapshot.Sources{})
		if err == nil && why != "made" {
			err = s.blobs.Remove(ref.Desc.Digest)
		}
		if err != nil {
			t.Fatal(err)
		}
		if followed != want {
			t.Errorf("%s: %d blobs were followed, want %d", why, followed, want)
		}
	}
	pack("made", 1)
	pack("there", 1)
	pack("lost", 2)
	if err := s.packer.Pushed(layers.Tree{id}, "example.com/app"); err != nil {
		t.Fatal(err)
	}
	pack("pushed and lost", 2)
}

func TestFailedPackLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, src, _ := s.recipe(t, "a", "content")
	src.File = func(context.Context, layers.ID, layers.Entry) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("changed")), nil
	}
	_, err := s.packer.Config(t.Context(), config(linux, "x"), layers.Tree{id}, PackOptions{}, created, src)
	wantError(t, err, string(id), "a")
	if l, err := s.layers.Layer(id); err != nil || l.DiffID != "" || len(l.Blobs) != 0 {
		t.Errorf("layer: %+v, %v", l, err)
	}
	if err := s.blobs.List(func(d digest.Digest, _ int64) error { return errors.New(d.String()) }); err != nil {
		t.Errorf("a blob was left: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := s.packer.Build(ctx, config(linux, "x"), layers.Tree{id}, PackOptions{}, created, nil, src); err != why {
		t.Errorf("after cancel: %v", err)
	}
}

func TestManifestChecksDiffIDs(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	raw, err := s.packer.Config(t.Context(), config(linux, "x"), layers.Tree{s.dir(t, regular("a", "1"))}, PackOptions{}, created, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.packer.Manifest(t.Context(), raw, layers.Tree{s.dir(t, regular("a", "2"))}, PackOptions{}, nil, snapshot.Sources{})
	wantError(t, err, "other diffIDs")
}

func TestIndexDescribesPlatforms(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := s.dir(t, regular("a", "1"))
	images := []*Packed{s.build(t, linux, PackOptions{}, id), s.build(t, arm, PackOptions{}, id)}
	desc, raw, err := Index(images, false, map[string]string{"k": "v"})
	if err != nil {
		t.Fatal(err)
	}
	x, err := manifest.ParseIndex(raw)
	if err != nil || len(x.Manifests) != 2 || x.Manifests[1].Platform.Architecture != "arm64" || x.Annotations["k"] != "v" {
		t.Errorf("index: %s, %v", raw, err)
	}
	valid(t, Bundle{Desc: desc, Raw: raw, Images: images, Names: []string{"docker.io/me/app:1"}})
}

func TestPushedLayersKnowTheirRepository(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id, _, _ := s.pulled(t, compress.Gzip, "x", true)
	for i := range 12 {
		if err := s.packer.Pushed(layers.Tree{id}, "r.example.com/"+string(rune('a'+i))); err != nil {
			t.Fatal(err)
		}
	}
	l, err := s.layers.Layer(id)
	if err != nil || len(l.Origins) != 8 || l.Origins[0] != "registry.example.com/base" || l.Origins[7] != "r.example.com/l" {
		t.Errorf("origins: %v, %v", l.Origins, err)
	}
}
