package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/internal/manifest"
)

// BuildKit returns the cache of BuildKit's that is in the directory: an OCI
// layout, whose index names it by a tag, "latest" if it is empty, or the one of
// a digest.
func (d *Dir) BuildKit(ctx context.Context, tag, dgst string) ([]*buildkit.Manifest, error) {
	f, err := open(filepath.Join(d.path, ocispec.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, manifest.Limit+1))
	if err == nil && len(raw) > manifest.Limit {
		err = fmt.Errorf("%s is too large", ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	index, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	if tag == "" {
		tag = "latest"
	}
	for _, desc := range index.Manifests {
		if dgst != "" && desc.Digest != digest.Digest(dgst) || dgst == "" && desc.Annotations[ocispec.AnnotationRefName] != tag {
			continue
		}
		raw, err := d.document(ctx, desc)
		if err != nil {
			return nil, err
		}
		return buildkit.Read(ctx, desc, raw, d.document)
	}
	return nil, nil
}

// document reads a manifest or configuration.
func (d *Dir) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	r, err := Blob(ctx, &url.URL{Path: d.path}, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, manifest.Limit+1))
	if err != nil {
		return nil, err
	}
	return data, manifest.Verify(desc, data)
}
