package image

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers/blob"
)

// Attestation is a manifest of statements about an image. It and its blobs are
// blobs of the store.
type Attestation struct {
	// Desc is the manifest as an index names it, with the annotations that
	// say which image it is about.
	Desc ocispec.Descriptor `json:"desc"`
	// Blobs are the configuration and the statements.
	Blobs []ocispec.Descriptor `json:"blobs"`
}

// Bounds of attestations that strangers wrote. BuildKit writes one manifest for
// an image; an SBOM of a large one has some ten megabytes.
const (
	MaxAttestations = 16 // of an image
	maxStatements   = 100
	maxTotal        = 128 << 20 // bytes of a manifest's statements
)

// ReadAttestation reads the attestation manifest that desc describes. An error
// tells of one that is out of bounds or no manifest.
func ReadAttestation(desc ocispec.Descriptor, raw []byte) (Attestation, error) {
	a := Attestation{Desc: ocispec.Descriptor{
		MediaType: desc.MediaType, Digest: desc.Digest, Size: int64(len(raw)), Platform: desc.Platform, Annotations: desc.Annotations,
	}}
	if desc.Digest.Algorithm() != digest.SHA256 {
		return a, fmt.Errorf("%s is not a SHA-256 digest", desc.Digest)
	}
	if err := manifest.Verify(desc, raw); err != nil {
		return a, err
	}
	mediaType, err := manifest.Type(raw, desc.MediaType)
	if err != nil {
		return a, err
	}
	if !manifest.IsManifest(mediaType) {
		return a, fmt.Errorf("it is of the type %s", mediaType)
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return a, err
	}
	if len(m.Layers) > maxStatements {
		return a, fmt.Errorf("it has %d statements; the limit is %d", len(m.Layers), maxStatements)
	}
	total := int64(0)
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if d.Digest.Algorithm() != digest.SHA256 {
			return a, fmt.Errorf("%s is not a SHA-256 digest", d.Digest)
		}
		if total += d.Size; d.Size > maxTotal || total > maxTotal {
			return a, fmt.Errorf("its statements have more than %d bytes", int64(maxTotal))
		}
		a.Blobs = append(a.Blobs, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	}
	return a, nil
}

// PutAttestation stores an attestation manifest and its blobs, which stay until
// Put has them in an image.
func (s *Store) PutAttestation(ctx context.Context, p *Packed) (a Attestation, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("attestation %s: %w", p.Desc.Digest, err)
		}
	}()
	a.Desc = p.Desc
	for _, ref := range append([]blob.Ref{p.Config}, p.Layers...) {
		r, err := ref.Open(ctx)
		if err != nil {
			return a, err
		}
		err = s.Lease(ref.Desc.Digest)
		if err == nil {
			_, _, err = s.blobs.Put(r, ref.Desc.Digest, ref.Desc.Size)
		}
		r.Close()
		if err != nil {
			return a, err
		}
		a.Blobs = append(a.Blobs, ocispec.Descriptor{MediaType: ref.Desc.MediaType, Digest: ref.Desc.Digest, Size: ref.Desc.Size})
	}
	return a, s.Keep(p.Desc.Digest, p.Manifest)
}

// attestation is an attestation of the image with the manifest of.
func (p *Packer) attestation(a Attestation, of digest.Digest) (*Packed, error) {
	if about := manifest.Attested(a.Desc); about != of {
		return nil, fmt.Errorf("it is about %s, and the image is %s now", about, of)
	}
	raw, err := p.Blobs.Bytes(a.Desc.Digest)
	if err != nil {
		return nil, err
	}
	packed := &Packed{Desc: a.Desc, Manifest: raw}
	for i, desc := range a.Blobs {
		if !p.have(desc) {
			return nil, fmt.Errorf("%s: %w", desc.Digest, blob.ErrNotFound)
		}
		if i == 0 {
			packed.Config = p.stored(desc)
			continue
		}
		packed.Layers = append(packed.Layers, p.stored(desc))
	}
	return packed, nil
}
