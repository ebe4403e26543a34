package buildkit

import (
	"context"
	"encoding/json"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
)

// maxPlatforms bounds the images that are read of an index.
const maxPlatforms = 64

// Read reads the caches that a manifest or index is, or that the images it names
// have in their configurations: none, if it is something else. get returns
// documents, verified, of at most [manifest.Limit] bytes.
func Read(ctx context.Context, desc ocispec.Descriptor, raw []byte, get func(context.Context, ocispec.Descriptor) ([]byte, error)) ([]*Manifest, error) {
	if !manifest.IsIndex(desc.MediaType) {
		return readManifest(ctx, raw, get)
	}
	index, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	// An index of blobs is one cache: the form that BuildKit had before others
	// could keep it.
	for i, d := range index.Manifests {
		if d.MediaType == MediaType {
			layers := append(index.Manifests[:i:i], index.Manifests[i+1:]...)
			return readConfig(ctx, d, layers, get)
		}
	}
	var all []*Manifest
	for _, d := range index.Manifests {
		if !manifest.IsManifest(d.MediaType) || d.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if len(all) == maxPlatforms {
			break
		}
		raw, err := get(ctx, d)
		if err != nil {
			return nil, err
		}
		list, err := readManifest(ctx, raw, get)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

func readConfig(ctx context.Context, d ocispec.Descriptor, layers []ocispec.Descriptor, get func(context.Context, ocispec.Descriptor) ([]byte, error)) ([]*Manifest, error) {
	if d.Size > manifest.Limit {
		return nil, fmt.Errorf("cache configuration of %d bytes is too large", d.Size)
	}
	data, err := get(ctx, d)
	if err != nil {
		return nil, err
	}
	m, err := Parse(data, layers)
	if err != nil {
		return nil, err
	}
	return []*Manifest{m}, nil
}

func readManifest(ctx context.Context, raw []byte, get func(context.Context, ocispec.Descriptor) ([]byte, error)) ([]*Manifest, error) {
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, err
	}
	switch m.Config.MediaType {
	case MediaType:
		return readConfig(ctx, m.Config, m.Layers, get)
	case ocispec.MediaTypeImageConfig, manifest.DockerConfig:
	default:
		return nil, nil
	}
	if m.Config.Size > manifest.Limit {
		return nil, nil
	}
	data, err := get(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(data, &fields) != nil || fields[InlineField] == nil {
		return nil, nil
	}
	img, err := manifest.Config(m, data)
	if err != nil {
		return nil, err
	}
	for i := range m.Layers {
		m.Layers[i].Annotations = map[string]string{Uncompressed: img.RootFS.DiffIDs[i].String()}
	}
	one, err := ParseInline(fields[InlineField], m.Layers)
	if err != nil {
		return nil, err
	}
	return []*Manifest{one}, nil
}
