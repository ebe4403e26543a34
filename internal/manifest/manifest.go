// Package manifest reads image manifests, indexes and configurations that
// strangers wrote, and chooses among them by platform.
//
// What comes from a registry, a layout or an archive is data of unknown
// goodwill: documents are bounded, ambiguous ones refused, nesting ends
// somewhere. Docker's schema 2 documents are read into the OCI types, whose
// JSON they share.
package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limit bounds manifests, indexes and configurations, in bytes. Registries
// commonly refuse manifests above 4 MiB.
const Limit = 8 << 20

// Docker's media types.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList         = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	DockerForeign      = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	DockerForeignGzip  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Signe = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// Types are the media types of the documents that Type accepts, in the order
// of an Accept header.
var Types = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, DockerList, DockerManifest}

// IsIndex reports whether mediaType is that of an OCI index or a Docker
// manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == DockerList
}

// IsManifest reports whether mediaType is that of an image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == DockerManifest
}

// Type returns the media type of a document: one of Types. contentType is what
// the sender called it, or empty. A document that could be read as a manifest
// and as an index is refused, and so is one that contradicts contentType.
func Type(raw []byte, contentType string) (string, error) {
	if len(raw) > Limit {
		return "", fmt.Errorf("manifest has %d bytes; the limit is %d", len(raw), Limit)
	}
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", fmt.Errorf("manifest is not valid JSON: %w", err)
	}
	if t, _, err := mime.ParseMediaType(contentType); err == nil {
		contentType = t
	}
	for _, t := range []string{contentType, doc.MediaType} {
		if t == dockerSchema1 || t == dockerSchema1Signe || doc.FSLayers != nil {
			return "", errors.New("manifest has Docker's old format (schema 1), which is not supported; push the image anew with a tool of this decade")
		}
	}
	if doc.Manifests != nil && (doc.Config != nil || doc.Layers != nil) {
		return "", errors.New("manifest is ambiguous: it has the fields of an image and of an index")
	}
	mediaType := doc.MediaType
	if !IsIndex(contentType) && !IsManifest(contentType) {
		contentType = ""
	}
	switch {
	case mediaType == "":
		mediaType = contentType
	case contentType != "" && contentType != mediaType:
		return "", fmt.Errorf("manifest says it is %s but was sent as %s", mediaType, contentType)
	}
	switch {
	case mediaType == "" && doc.Manifests != nil:
		mediaType = ocispec.MediaTypeImageIndex
	case mediaType == "" && doc.Config != nil && doc.Layers != nil:
		mediaType = ocispec.MediaTypeImageManifest
	case IsIndex(mediaType) && doc.Manifests == nil:
		return "", errors.New("index has no manifests field")
	case IsManifest(mediaType) && doc.Config == nil:
		return "", errors.New("manifest has no config field")
	case !IsIndex(mediaType) && !IsManifest(mediaType):
		return "", fmt.Errorf("manifest is of an unknown type %q", mediaType)
	}
	return mediaType, nil
}

// Parse reads an image manifest and checks its descriptors.
func Parse(raw []byte) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("manifest: %w", err)
	}
	if err := check(m.Config); err != nil {
		return m, fmt.Errorf("manifest: config: %w", err)
	}
	for i, l := range m.Layers {
		if err := check(l); err != nil {
			return m, fmt.Errorf("manifest: layer %d: %w", i, err)
		}
	}
	return m, nil
}

// ParseIndex reads an index or manifest list and checks its descriptors.
func ParseIndex(raw []byte) (ocispec.Index, error) {
	var x ocispec.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return x, fmt.Errorf("index: %w", err)
	}
	for i, m := range x.Manifests {
		if err := check(m); err != nil {
			return x, fmt.Errorf("index: manifest %d: %w", i, err)
		}
	}
	return x, nil
}

func check(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("%s has the size %d", d.Digest, d.Size)
	}
	return nil
}

// Verify checks that raw is what desc describes. A negative or zero size in
// desc is not compared.
func Verify(desc ocispec.Descriptor, raw []byte) error {
	if desc.Size > 0 && int64(len(raw)) != desc.Size {
		return fmt.Errorf("%s has %d bytes instead of %d", desc.Digest, len(raw), desc.Size)
	}
	if got := desc.Digest.Algorithm().FromBytes(raw); got != desc.Digest {
		return fmt.Errorf("content has the digest %s instead of %s", got, desc.Digest)
	}
	return nil
}

// Config reads the image configuration of m. An error tells of one that does
// not fit: of another type, or with another number of diffIDs than m has
// layers.
func Config(m ocispec.Manifest, raw []byte) (ocispec.Image, error) {
	var img ocispec.Image
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, DockerConfig:
	default:
		return img, fmt.Errorf("not a container image: its configuration has the type %q", m.Config.MediaType)
	}
	if err := json.Unmarshal(raw, &img); err != nil {
		return img, fmt.Errorf("image configuration: %w", err)
	}
	if len(img.RootFS.DiffIDs) != len(m.Layers) {
		return img, fmt.Errorf("image configuration has %d diffIDs for %d layers", len(img.RootFS.DiffIDs), len(m.Layers))
	}
	for _, d := range img.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return img, fmt.Errorf("image configuration: diffID %q: %w", d, err)
		}
		if d.Algorithm() != digest.SHA256 {
			return img, fmt.Errorf("image configuration: diffID %s is not a SHA-256 digest", d)
		}
	}
	return img, nil
}

// OCIType is the OCI name of a media type that may be Docker's.
func OCIType(mediaType string) string {
	switch mediaType {
	case DockerManifest:
		return ocispec.MediaTypeImageManifest
	case DockerList:
		return ocispec.MediaTypeImageIndex
	case DockerConfig:
		return ocispec.MediaTypeImageConfig
	case DockerLayer:
		return ocispec.MediaTypeImageLayer
	case DockerLayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	case DockerLayerZstd:
		return ocispec.MediaTypeImageLayerZstd
	case DockerForeign:
		return nonDistributable
	case DockerForeignGzip:
		return nonDistributable + "+gzip"
	}
	return mediaType
}

const nonDistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"

// DockerType is Docker's name of a media type that may be OCI's.
func DockerType(mediaType string) string {
	switch mediaType {
	case ocispec.MediaTypeImageManifest:
		return DockerManifest
	case ocispec.MediaTypeImageIndex:
		return DockerList
	case ocispec.MediaTypeImageConfig:
		return DockerConfig
	case ocispec.MediaTypeImageLayer:
		return DockerLayer
	case ocispec.MediaTypeImageLayerGzip:
		return DockerLayerGzip
	case ocispec.MediaTypeImageLayerZstd:
		return DockerLayerZstd
	case nonDistributable:
		return DockerForeign
	case nonDistributable + "+gzip":
		return DockerForeignGzip
	}
	return mediaType
}
