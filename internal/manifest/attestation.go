package manifest

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations by which the entry of an index tells that it is an attestation
// manifest, and of which image, as BuildKit has it.
const (
	AnnotationReferenceType   = "vnd.docker.reference.type"
	AnnotationReferenceDigest = "vnd.docker.reference.digest"
	ReferenceAttestation      = "attestation-manifest"
)

// Attested returns the digest of the image manifest that an entry of an index
// is an attestation manifest of; empty if it is none.
func Attested(d ocispec.Descriptor) digest.Digest {
	if d.Annotations[AnnotationReferenceType] != ReferenceAttestation {
		return ""
	}
	return digest.Digest(d.Annotations[AnnotationReferenceDigest])
}
