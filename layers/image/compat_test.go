package image

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
)

// The digests of one image in all forms. If one of them changes, so do those of
// users' images: that needs another Compatibility, and a line in CHANGELOG.md.
func TestCompatibility(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("the same on every machine\n", 50_000)
	entries := []layers.Entry{
		{Path: "a", Type: layers.Regular, Mode: 0o4755, UID: 1, GID: 2, Size: 1, Data: []byte("a"), Inline: true, Digest: digest.FromString("a"), ModTime: created},
		{Path: "b", Type: layers.Hardlink, Link: "a"},
		{Path: "dir", Type: layers.Dir, Mode: 0o1770, GID: 3, Opaque: true},
		{Path: "dir/" + strings.Repeat("long", 40), Type: layers.Regular, Mode: 0o600, Size: int64(len(content)), Data: []byte(content), Inline: true,
			Digest: digest.FromString(content), Xattrs: map[string]string{"user.x": "y"}},
		{Path: "gone", Type: layers.Whiteout},
		{Path: "link", Type: layers.Symlink, Mode: 0o777, Link: "../a"},
	}
	epoch := PackOptions{ModTime: created.AddDate(0, 0, -1)}
	for _, c := range []struct {
		name        string
		o           PackOptions
		annotations map[string]string
		want        digest.Digest
	}{
		{"gzip", PackOptions{}, nil, "sha256:41a0bda9fcd465d914de8433680c7b384e901f6bc705598aa15cc91c6ade4f88"},
		{"gzip 9", PackOptions{Level: 9}, nil, "sha256:084c5aaa0a72f6e42da4840acfa72e0e7a0c28f0548a65788bdf21c976e8a771"},
		{"zstd", PackOptions{Compression: compress.Zstd}, nil, "sha256:837a27481661ce1884867a00ce9761c1d6686b42c36ce75bd375072c32875be9"},
		{"uncompressed", PackOptions{Compression: compress.None}, nil, "sha256:df41bef289a1982a073ee86d942dc8697fe147325fee7c1e0d69198500e4ece7"},
		{"estargz", PackOptions{Compression: compress.Estargz}, nil, "sha256:3b064c7cfd59c33d8c37e2ef5e6e5f819c8c5f692eac5c70133874aa2a2197ad"},
		{"Docker's types", PackOptions{Docker: true}, nil, "sha256:244a0888f1c9dff07e3f5b3a73eb3ee7a67849d31500f5e252bdc4339ad07463"},
		{"times of an epoch", epoch, nil, "sha256:84d2ff8276b66e712884887ba8558a471ad413fea59b1a0885863770459af952"},
		{"annotations", PackOptions{}, map[string]string{"b": "1", "a": "2"}, "sha256:aaf5e03b31d7a120cd0ea962822231929d83a8d159b018f931d4da741b8810cc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			id, err := s.layers.AddRecipe(entries)
			if err != nil {
				t.Fatal(err)
			}
			packed, err := s.packer.Build(t.Context(), config(linux, "/bin/app"), layers.Tree{id}, c.o, created, c.annotations, snapshot.Sources{})
			if err != nil {
				t.Fatal(err)
			}
			if packed.Desc.Digest != c.want {
				t.Errorf("manifest %s, want %s (compatibility version %d)", packed.Desc.Digest, c.want, Compatibility)
			}
		})
	}
}

// An estargz layer has its own diffID, since its index is part of the stream,
// and annotations that name the index.
func TestEstargz(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	id := s.dir(t, regular("a", "aaa"))
	o := PackOptions{Compression: compress.Estargz}
	packed := s.build(t, linux, o, id)
	plain := s.build(t, linux, PackOptions{}, id)
	l := manifestOf(t, packed).Layers[0]
	if l.MediaType != ocispec.MediaTypeImageLayerGzip || l.Annotations[compress.AnnotationTOC] == "" || l.Annotations[compress.AnnotationSize] == "" {
		t.Errorf("layer: %+v", l)
	}
	if a, b := configOf(t, packed).RootFS.DiffIDs[0], configOf(t, plain).RootFS.DiffIDs[0]; a == b {
		t.Errorf("the diffID is that without an index: %s", a)
	}
	valid(t, Single(packed), Single(plain))

	// What is asked first does not matter.
	s2 := newStore(t)
	id = s2.dir(t, regular("a", "aaa"))
	if _, err := s2.packer.DiffID(t.Context(), id, o, snapshot.Sources{}); err != nil {
		t.Fatal(err)
	}
	if again := s2.build(t, linux, o, id); again.Desc.Digest != packed.Desc.Digest {
		t.Error("packed elsewhere, it has another digest")
	}

	// Layers of a base stay as they are, unless that is asked for.
	base, desc, src := s.pulled(t, compress.Gzip, "base", true)
	if got := manifestOf(t, s.buildFrom(t, linux, o, src, base)).Layers[0]; got.Digest != desc.Digest {
		t.Errorf("the base's layer became %s", got.Digest)
	}
	o.Force = true
	forced := s.buildFrom(t, linux, o, src, base)
	if got := manifestOf(t, forced).Layers[0]; got.Annotations[compress.AnnotationTOC] == "" {
		t.Errorf("the base's layer is still %+v", got)
	}
	valid(t, Single(forced))
	if d, err := s.packer.DiffID(t.Context(), base, o, src); err != nil || d != configOf(t, forced).RootFS.DiffIDs[0] {
		t.Errorf("diffID %s (%v), the configuration has %s", d, err, configOf(t, forced).RootFS.DiffIDs[0])
	}
	// Asked again it is found, with the same diffID.
	if again := s.buildFrom(t, linux, o, src, base); again.Desc.Digest != forced.Desc.Digest {
		t.Error("found again, it has another digest")
	}
}
