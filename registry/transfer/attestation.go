package transfer

import (
	"context"
	"errors"
	"fmt"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

// attestations fetches the attestations of an image. One that the registry does
// not have, or that is out of bounds, is left out, with a warning: the image is
// what was asked for.
func (t *Transfer) attestations(ctx context.Context, img *registry.Image, report progress.Func) ([]image.Attestation, error) {
	var kept []image.Attestation
	for i, desc := range img.Attestations {
		if i == image.MaxAttestations {
			warn(report, fmt.Sprintf("%s has %d attestations; more than %d are left out", img.Ref, len(img.Attestations), i))
			break
		}
		a, unfit, err := t.attestation(ctx, img, desc, report)
		if errors.Is(err, registry.ErrNotFound) {
			unfit, err = err, nil
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("attestation of %s: %w", img.Ref, err)
		case unfit != nil:
			warn(report, fmt.Sprintf("attestation %s of %s is left out: %v", desc.Digest, img.Ref, unfit))
		default:
			kept = append(kept, a)
		}
	}
	return kept, nil
}

// attestation fetches one. unfit tells what is wrong with what the registry has.
func (t *Transfer) attestation(ctx context.Context, img *registry.Image, desc ocispec.Descriptor, report progress.Func) (a image.Attestation, unfit, err error) {
	if desc.Size > manifest.Limit {
		return a, fmt.Errorf("the manifest has %d bytes; the limit is %d", desc.Size, manifest.Limit), nil
	}
	_, raw, err := t.Registry.Manifest(ctx, img.Origin+"@"+desc.Digest.String())
	if err != nil {
		return a, nil, err
	}
	if a, unfit = image.ReadAttestation(desc, raw); unfit != nil {
		return a, unfit, nil
	}
	if err := t.keep(desc.Digest, raw); err != nil {
		return a, nil, err
	}
	for _, b := range a.Blobs {
		if err := t.Images.Lease(b.Digest); err != nil {
			return a, nil, err
		}
		if err := t.fetchBlob(ctx, img.Origin, b, report); err != nil {
			return a, nil, err
		}
	}
	return a, nil, nil
}

func warn(report progress.Func, text string) {
	if report != nil {
		report(progress.Event{Time: time.Now(), Kind: progress.Warning, Text: text})
	}
}
