package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/progress"
)

// PushReferrer uploads a manifest that has a subject to the repository of
// reference, without a name. Registries list it as a referrer of its subject.
// For those that don't (they say so by not answering with the header OCI-Subject)
// it is added to the index that the distribution specification has for them,
// under the tag <algorithm>-<hex> of the subject.
func (c *Client) PushReferrer(ctx context.Context, reference string, m *Manifest, report progress.Func) error {
	r, err := parseRepository(reference)
	if err != nil {
		return err
	}
	r.tag, r.digest = "", ""
	parsed, err := manifest.Parse(m.Raw)
	if err != nil {
		return fmt.Errorf("push %s: %w", r, err)
	}
	if parsed.Subject == nil {
		return fmt.Errorf("push %s: the manifest %s has no subject", r, m.Desc.Digest)
	}
	listed := false
	m = &Manifest{Desc: m.Desc, Raw: m.Raw, Blobs: m.Blobs, Listed: func() { listed = true }}
	if err := c.Push(ctx, r.repository(), m, report); err != nil || listed {
		return err
	}
	desc := m.Desc
	desc.Platform, desc.Annotations, desc.ArtifactType = nil, parsed.Annotations, parsed.ArtifactType
	return c.addReferrer(ctx, r, parsed.Subject.Digest, desc)
}

// addReferrer adds a manifest to the referrers' index of its subject.
func (c *Client) addReferrer(ctx context.Context, r ref, subject digest.Digest, desc ocispec.Descriptor) error {
	r.tag = subject.Algorithm().String() + "-" + subject.Encoded()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	_, raw, err := c.manifest(ctx, r)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	default:
		if index, err = manifest.ParseIndex(raw); err != nil {
			return fmt.Errorf("referrers %s: %w", r, err)
		}
	}
	if slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
		return nil
	}
	index.Manifests = append(index.Manifests, desc)
	if raw, err = json.MarshalIndent(index, "", "  "); err != nil {
		return err
	}
	return c.putManifest(ctx, r, &Manifest{
		Desc: ocispec.Descriptor{MediaType: index.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, Raw: raw,
	})
}

// putManifest uploads a manifest under the tag of r.
func (c *Client) putManifest(ctx context.Context, r ref, m *Manifest) error {
	p := &pusher{c: c, ref: r, endpoint: &endpoint{host: c.host(apiHost(r.domain), ""), path: r.path}, report: progress.Discard}
	if err := p.manifest(ctx, m, r.tag); err != nil {
		return explain(ctx, "push", r, p.endpoint, err)
	}
	return nil
}
