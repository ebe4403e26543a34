package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/registry"
)

// Mark puts a cache of BuildKit's form at the reference itself: its
// configuration, and the layers that this names. Nothing of ours depends on it.
// It replaces what was there, as it does when BuildKit writes.
func (r *Repository) Mark(ctx context.Context, config []byte, layers []blob.Ref) error {
	ref := blob.Ref{
		Desc: ocispec.Descriptor{MediaType: buildkit.MediaType, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(config)), nil },
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ref.Desc,
		Layers:    []ocispec.Descriptor{},
	}
	push := &registry.Manifest{Blobs: append(layers[:len(layers):len(layers)], ref)}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Desc)
	}
	var err error
	if push.Raw, err = json.Marshal(m); err != nil {
		return err
	}
	push.Desc = ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(push.Raw), Size: int64(len(push.Raw))}
	name := strings.TrimSuffix(r.prefix, "-")
	if name == "" {
		name = "latest"
	}
	return r.push(ctx, r.name+":"+name, push)
}
