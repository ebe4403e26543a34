package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/registry"
)

// CacheConfig is the media type of the configuration of BuildKit's caches.
const CacheConfig = "application/vnd.buildkit.cacheconfig.v0"

// Mark puts a manifest of the form of BuildKit's caches at the reference itself,
// with the blobs that were put: those who look whether there is a cache, as
// BuildKit's clients do, find one. For BuildKit it is empty, as it names steps by
// other keys; strake does not read it, and nothing depends on it.
func (r *Repository) Mark(ctx context.Context) error {
	type layer struct {
		Blob   digest.Digest `json:"blob"`
		Parent int           `json:"parent"`
	}
	config := struct {
		Layers  []layer `json:"layers"`
		Records []any   `json:"records"`
	}{Layers: []layer{}, Records: []any{}}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Layers:    []ocispec.Descriptor{},
	}
	r.mu.Lock()
	for _, desc := range r.put {
		m.Layers = append(m.Layers, desc)
	}
	r.mu.Unlock()
	slices.SortFunc(m.Layers, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	for _, desc := range m.Layers {
		config.Layers = append(config.Layers, layer{desc.Digest, -1})
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	ref := blob.Ref{
		Desc: ocispec.Descriptor{MediaType: CacheConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
	}
	m.Config = ref.Desc
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(r.prefix, "-")
	if name == "" {
		name = "latest"
	}
	return r.client.Push(ctx, r.name+":"+name, &registry.Manifest{
		Desc:  ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Raw:   data,
		Blobs: []blob.Ref{ref},
	}, nil)
}
