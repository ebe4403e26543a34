package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
)

// Attestations of an image are one more manifest, whose layers are in-toto
// statements. In an index it stands after the images and names its image in an
// annotation, as BuildKit has it; as a referrer it is only found by its subject,
// and the name stands for the image itself.

const (
	annotationPredicateType = "in-toto.io/predicate-type"
	artifactAttestation     = "application/vnd.docker.attestation.manifest.v1+json"
)

// wanted are the attestations of an image for this output. alone tells that
// there is no index unless they make one.
func (x *run) wanted(img Image, alone bool) []attest.Attestation {
	var out []attest.Attestation
	for _, a := range img.Attestations {
		if a.InlineOnly && alone && !x.inline() {
			continue
		}
		out = append(out, a)
	}
	return out
}

// inline tells that the output can hold statements without being asked twice.
func (x *run) inline() bool { return x.o.Inline || x.o.Type == TypeImage || x.o.Type == TypeRegistry }

// attest makes the attestation manifest of an image; nil if there is nothing to
// say.
func (x *run) attest(ctx context.Context, img Image, packed *image.Packed, alone bool) (*image.Packed, error) {
	list := x.wanted(img, alone)
	if len(list) == 0 {
		return nil, nil
	}
	if x.o.Pack.Docker {
		return nil, errors.New("cannot export attestations with \"oci-mediatypes=false\": Docker's media types have no place for them")
	}
	blobs := map[layers.ID]ocispec.Descriptor{}
	for i, id := range img.Tree {
		if i < len(packed.Layers) {
			blobs[id] = packed.Layers[i].Desc
		}
	}
	var subjects []attest.Subject
	for _, name := range x.o.Names {
		p := ocispec.Platform{}
		if packed.Desc.Platform != nil {
			p = *packed.Desc.Platform
		}
		subjects = append(subjects, attest.NewSubject(attest.ImageURL(name, p, false), packed.Desc.Digest))
	}
	if len(subjects) == 0 {
		subjects = append(subjects, attest.NewSubject("_", packed.Desc.Digest))
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: artifactAttestation, Config: ocispec.DescriptorEmptyJSON,
		Layers:  []ocispec.Descriptor{},
		Subject: &ocispec.Descriptor{MediaType: packed.Desc.MediaType, Digest: packed.Desc.Digest, Size: packed.Desc.Size},
	}
	out := &image.Packed{}
	for _, a := range list {
		s, err := a.Statement(ctx, subjects, blobs)
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(s)
		if err == nil {
			err = image.CheckJSON(x.o.Pack.Guard, "attestation "+a.PredicateType, data)
		}
		if err != nil {
			return nil, err
		}
		ref := memory(attest.MediaTypePayload, data)
		ref.Desc.Annotations = map[string]string{annotationPredicateType: a.PredicateType}
		m.Layers = append(m.Layers, ref.Desc)
		out.Layers = append(out.Layers, ref)
	}
	config := ocispec.DescriptorEmptyJSON.Data
	if x.o.Legacy {
		// An image, to tools that know nothing else.
		var c ocispec.Image
		c.Platform = ocispec.Platform{Architecture: "unknown", OS: "unknown"}
		c.RootFS.Type = "layers"
		for _, l := range m.Layers {
			c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.Digest)
		}
		var err error
		if config, err = json.Marshal(c); err != nil {
			return nil, err
		}
		m.ArtifactType, m.Subject = "", nil
		m.Config = memory(ocispec.MediaTypeImageConfig, config).Desc
	}
	out.Config = memory(m.Config.MediaType, config)
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	out.Manifest = raw
	out.Desc = ocispec.Descriptor{
		MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)),
		Annotations: map[string]string{
			manifest.AnnotationReferenceType: manifest.ReferenceAttestation, manifest.AnnotationReferenceDigest: packed.Desc.Digest.String(),
		},
		Platform: &ocispec.Platform{Architecture: "unknown", OS: "unknown"},
	}
	x.status("exporting attestation manifest %s", out.Desc.Digest)
	return out, nil
}

// memory is a blob in memory.
func memory(mediaType string, data []byte) blob.Ref {
	return blob.Ref{
		Desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}

// StatementFile is a statement as a file beside the files it is about.
type StatementFile struct {
	Name string
	Data []byte
}

// Statements are the statements about the files of a tree, for outputs that are
// files. v may be nil for an empty tree. suffix is put before the names'
// extensions, where those of several platforms meet in one directory.
func Statements(ctx context.Context, v *snapshot.View, img Image, prefix, suffix string) ([]StatementFile, error) {
	var list []attest.Attestation
	for _, a := range img.Attestations {
		if !a.InlineOnly {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	subjects := []attest.Subject{}
	if v != nil {
		for e, err := range walk(ctx, v, ".") {
			if err != nil {
				return nil, err
			}
			if e.Type != layers.Regular {
				continue
			}
			d, err := v.Digest(ctx, e.Path)
			if err != nil {
				return nil, err
			}
			subjects = append(subjects, attest.NewSubject(e.Path, d))
		}
	}
	var out []StatementFile
	seen := map[string]bool{}
	for _, a := range list {
		s, err := a.Statement(ctx, subjects, nil)
		if err != nil {
			return nil, err
		}
		data, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return nil, err
		}
		name := prefix + path.Base(a.File)
		if suffix != "" {
			ext := path.Ext(name)
			name = strings.TrimSuffix(name, ext) + "." + suffix + ext
		}
		if seen[name] {
			return nil, fmt.Errorf("two attestations are called %s", name)
		}
		seen[name] = true
		if v != nil {
			if _, err := v.Lookup(name); err == nil {
				return nil, fmt.Errorf("the attestation %s has the name of a file of the result: give attestation-prefix=", name)
			}
		}
		out = append(out, StatementFile{Name: name, Data: data})
	}
	return out, nil
}
