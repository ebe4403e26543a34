package image

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers/snapshot"
)

// Bundle makes what a name of the store stands for: the very index that its
// images came in, if all that is in it is here; else an index of what is here,
// or a single image that has no attestations. warn is told of what the store does
// not have, whole, any more: attestations that are left out, and manifests in
// whose place others are made.
func (p *Packer) Bundle(ctx context.Context, n Name, src snapshot.Sources, warn func(text string)) (Bundle, error) {
	b := Bundle{}
	if n.Ref != "" {
		b.Names = []string{n.Ref}
	}
	var attested []*Packed
	for _, img := range n.Images {
		packed, err := p.Stored(ctx, img, src)
		if err != nil {
			return b, err
		}
		b.Images = append(b.Images, packed)
		if made := packed.Desc.Digest; img.Manifest != "" && made != img.Manifest {
			warn(fmt.Sprintf("image %s gets the manifest %s: the one that it came with, %s, is not whole any more", img.ID, made, img.Manifest))
		}
		for _, a := range img.Attestations {
			said, err := p.attestation(a, packed.Desc.Digest)
			if err != nil {
				warn(fmt.Sprintf("attestation %s is left out: %v", a.Desc.Digest, err))
				continue
			}
			attested = append(attested, said)
		}
	}
	if len(b.Images) == 0 {
		return b, errors.New("the name stands for no image")
	}
	docker := b.Images[0].Desc.MediaType == manifest.DockerManifest && len(attested) == 0
	b.Images = append(b.Images, attested...)
	if desc, raw, ok := p.index(n.Index, b.Images); ok {
		b.Desc, b.Raw = desc, raw
		return b, nil
	}
	if len(b.Images) == 1 {
		return Single(b.Images[0], b.Names...), nil
	}
	var err error
	b.Desc, b.Raw, err = Index(b.Images, docker, nil)
	return b, err
}

// index returns an index of the store if it has these manifests and no others.
func (p *Packer) index(d digest.Digest, manifests []*Packed) (desc ocispec.Descriptor, raw []byte, ok bool) {
	raw, err := p.Blobs.Bytes(d)
	if err != nil {
		return desc, nil, false
	}
	desc = ocispec.Descriptor{Digest: d, Size: int64(len(raw))}
	if desc.MediaType, err = manifest.Type(raw, ""); err != nil {
		return desc, nil, false
	}
	x, err := manifest.ParseIndex(raw)
	if err != nil {
		return desc, nil, false
	}
	here, there := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, m := range manifests {
		here[m.Desc.Digest] = true
	}
	for _, m := range x.Manifests {
		there[m.Digest] = true
	}
	return desc, raw, maps.Equal(here, there)
}
