// Package image makes images of trees: it packs layers into blobs, writes
// manifests and configurations, reads and writes archives, and keeps the store's
// images and their names.
//
// An image in the store is its configuration and a tree. Its layers are
// compressed when somebody first wants the manifest (a push, a save); as
// packing is deterministic the manifest's digest is the same whenever that is.
// Images that were pulled or loaded keep the manifest that they came with.
//
//	packed, err := packer.Build(ctx, target.Image, tree, options, created, nil, sources)
//	err = image.WriteOCI(ctx, w, []image.Bundle{image.Single(packed, "docker.io/me/app:1")})
package image

import (
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
)

// Image is an image of the store.
type Image struct {
	// ID is the digest of the configuration.
	ID       digest.Digest    `json:"id"`
	Platform ocispec.Platform `json:"platform"`
	Tree     layers.Tree      `json:"tree"`
	// Pack is how its manifest is made.
	Pack PackOptions `json:"pack"`
	// Annotations are those that its manifest gets.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Manifest is the digest of the manifest that the image came with, a blob
	// of the store; empty for images made here.
	Manifest digest.Digest `json:"manifest,omitempty"`
	// Attestations are the attestation manifests that came with it under this
	// name, or were made with it. They go where the name goes.
	Attestations []Attestation `json:"attestations,omitempty"`
	Stored       time.Time     `json:"stored"`
}

// alone is the image without what is said of it: what its ID or digest means.
func (i Image) alone() Image {
	i.Attestations = nil
	return i
}

// Name is a name and the images it stands for: one for each platform.
type Name struct {
	// Ref is normalised and has a tag or a digest; empty for an image without
	// a name.
	Ref    string  `json:"ref"`
	Images []Image `json:"images"`
	// Index is the digest of the index that they came in, or were made for, a
	// blob of the store; empty if there is none.
	Index  digest.Digest `json:"index,omitempty"`
	Tagged time.Time     `json:"tagged"`
}
