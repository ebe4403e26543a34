package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/snapshot"
)

// Packed is an image ready for delivery: one manifest, its configuration and
// layers.
type Packed struct {
	Desc     ocispec.Descriptor // of the manifest, with Platform
	Manifest []byte
	Config   blob.Ref
	Layers   []blob.Ref
}

// Config completes an image configuration and returns its bytes: the diffIDs of
// the tree, and created as the time of the image and of each history entry that
// has none (a zero time leaves them out). The history gets as many entries that
// are no EmptyLayer as the tree has layers.
//
// Layers are hashed, not packed, unless they are recipes. Whoever wants a
// manifest, too, calls Build, which reads the layers once.
func (p *Packer) Config(ctx context.Context, img dockerspec.DockerOCIImage, t layers.Tree, o PackOptions, created time.Time, src snapshot.Sources) ([]byte, error) {
	diffIDs := make([]digest.Digest, len(t))
	err := p.each(ctx, t, func(ctx context.Context, i int) (err error) {
		diffIDs[i], err = p.DiffID(ctx, t[i], o, src)
		return err
	})
	if err != nil {
		return nil, err
	}
	return guardedConfig(img, diffIDs, created, o)
}

// Build is Config and Manifest in one, with one pass over each layer.
func (p *Packer) Build(ctx context.Context, img dockerspec.DockerOCIImage, t layers.Tree, o PackOptions, created time.Time, annotations map[string]string, src snapshot.Sources) (*Packed, error) {
	refs, diffIDs, err := p.packAll(ctx, t, o, src)
	if err != nil {
		return nil, err
	}
	config, err := guardedConfig(img, diffIDs, created, o)
	if err != nil {
		return nil, err
	}
	return p.manifest(config, refs, o, annotations)
}

// Manifest makes the manifest of an image. config is the image configuration
// with its diffIDs; it becomes a blob. The manifest has the annotations given.
func (p *Packer) Manifest(ctx context.Context, config []byte, t layers.Tree, o PackOptions, annotations map[string]string, src snapshot.Sources) (*Packed, error) {
	var img ocispec.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	refs, diffIDs, err := p.packAll(ctx, t, o, src)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(diffIDs, img.RootFS.DiffIDs) {
		return nil, fmt.Errorf("image configuration has other diffIDs than the image's layers (%v, %v)", img.RootFS.DiffIDs, diffIDs)
	}
	return p.manifest(config, refs, o, annotations)
}

func (p *Packer) manifest(config []byte, refs []blob.Ref, o PackOptions, annotations map[string]string) (*Packed, error) {
	var img ocispec.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	m := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig},
		Layers:      []ocispec.Descriptor{}, // none is [], not null
		Annotations: annotations,
	}
	if o.Docker {
		m.MediaType, m.Config.MediaType = manifest.DockerManifest, manifest.DockerConfig
		m.Annotations = nil // Docker's format has none
	}
	var err error
	if m.Config.Digest, m.Config.Size, err = p.Blobs.Put(bytes.NewReader(config), "", -1); err != nil {
		return nil, err
	}
	for _, r := range refs {
		m.Layers = append(m.Layers, r.Desc)
	}
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := CheckJSON(o.Guard, "manifest", raw); err != nil {
		return nil, err
	}
	return &Packed{
		Desc:     ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Platform: &img.Platform},
		Manifest: raw,
		Config:   p.stored(m.Config),
		Layers:   refs,
	}, nil
}

// stored is a blob of the blob store.
func (p *Packer) stored(desc ocispec.Descriptor) blob.Ref {
	return blob.Ref{Desc: desc, Open: func(context.Context) (io.ReadCloser, error) { return p.Blobs.Reader(desc.Digest, desc.Size) }}
}

// Stored makes a manifest of an image of the store: the very one that it came
// with if it was pulled or loaded and that is here, else one made as img.Pack
// says.
func (p *Packer) Stored(ctx context.Context, img Image, src snapshot.Sources) (*Packed, error) {
	config, err := p.Blobs.Bytes(img.ID)
	if errors.Is(err, blob.ErrNotFound) {
		// Nothing that is here can make it anew.
		return nil, fmt.Errorf("image %s is damaged: its configuration is lost: build, pull or load it again", img.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration of image %s: %w", img.ID, err)
	}
	if img.Manifest != "" {
		if packed, err := p.original(img, src); err == nil {
			return packed, nil
		}
	}
	return p.Manifest(ctx, config, img.Tree, img.Pack, img.Annotations, src)
}

func (p *Packer) original(img Image, src snapshot.Sources) (*Packed, error) {
	raw, err := p.Blobs.Bytes(img.Manifest)
	if err != nil {
		return nil, err
	}
	mediaType, err := manifest.Type(raw, "")
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != len(img.Tree) {
		return nil, fmt.Errorf("manifest %s has %d layers instead of %d", img.Manifest, len(m.Layers), len(img.Tree))
	}
	packed := &Packed{
		Desc:     ocispec.Descriptor{MediaType: mediaType, Digest: img.Manifest, Size: int64(len(raw)), Platform: &img.Platform},
		Manifest: raw,
		Config:   p.stored(m.Config),
	}
	for i, desc := range m.Layers {
		l, err := p.Layers.Layer(img.Tree[i])
		if err != nil {
			return nil, err
		}
		if !p.have(desc) && len(l.Origins) == 0 {
			return nil, fmt.Errorf("layer %s: %w", desc.Digest, blob.ErrNotFound)
		}
		packed.Layers = append(packed.Layers, blob.Ref{
			Desc:    desc,
			Open:    func(ctx context.Context) (io.ReadCloser, error) { return p.open(ctx, l, desc, src) },
			Origins: l.Origins,
		})
	}
	return packed, nil
}

// Pushed remembers that the layers of a tree are in a repository
// ("docker.io/library/alpine"), so that a later push to the same registry can
// mount them. It is best effort: a wrong origin costs a request.
func (p *Packer) Pushed(t layers.Tree, repository string) error {
	for _, id := range t {
		err := p.Layers.Update(id, func(l *snapshot.Layer) {
			if i := slices.Index(l.Origins, repository); i >= 0 {
				return
			}
			// Forget the oldest, but not where the layer came from.
			if len(l.Origins) >= 8 {
				l.Origins = slices.Delete(l.Origins, 1, 2)
			}
			l.Origins = append(l.Origins, repository)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Index makes an OCI index (or Docker manifest list) of images.
func Index(images []*Packed, docker bool, annotations map[string]string) (ocispec.Descriptor, []byte, error) {
	x := ocispec.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageIndex,
		Manifests:   []ocispec.Descriptor{},
		Annotations: annotations,
	}
	if docker {
		x.MediaType, x.Annotations = manifest.DockerList, nil
	}
	for _, img := range images {
		x.Manifests = append(x.Manifests, img.Desc)
	}
	raw, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return ocispec.Descriptor{MediaType: x.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, nil
}

func guardedConfig(img dockerspec.DockerOCIImage, diffIDs []digest.Digest, created time.Time, o PackOptions) ([]byte, error) {
	raw, err := completeConfig(img, diffIDs, created, o.Fields)
	if err != nil {
		return nil, err
	}
	return raw, CheckJSON(o.Guard, "image configuration", raw)
}

// completeConfig fills in what only the finished image knows.
func completeConfig(img dockerspec.DockerOCIImage, diffIDs []digest.Digest, created time.Time, fields map[string]json.RawMessage) ([]byte, error) {
	img.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}
	var at *time.Time
	if !created.IsZero() {
		created = created.UTC()
		at = &created
		img.Created = at
	}
	img.History = completeHistory(img.History, len(diffIDs), at)
	raw, err := json.Marshal(img)
	if err == nil && len(fields) > 0 {
		raw, err = addFields(raw, fields)
	}
	if err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	return raw, nil
}

// addFields adds fields to a JSON object.
func addFields(raw []byte, fields map[string]json.RawMessage) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	maps.Copy(all, fields)
	return json.Marshal(all)
}

// completeHistory gives entries without a time the time at, and makes the
// number of those with a layer n: other tools refuse images where it is not.
func completeHistory(history []ocispec.History, n int, at *time.Time) []ocispec.History {
	history = slices.Clone(history)
	for i := range history {
		if !history[i].EmptyLayer {
			if n == 0 {
				history[i].EmptyLayer = true
			} else {
				n--
			}
		}
		if history[i].Created == nil {
			history[i].Created = at
		}
	}
	for range n {
		history = append(history, ocispec.History{Created: at, Comment: "strake"})
	}
	return history
}
