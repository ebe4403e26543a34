package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers/snapshot"
)

// LoadOne stores an image, without a name, whose blobs open reads. Its documents
// are taken from img; blobs are verified.
func (s *Store) LoadOne(ctx context.Context, img *manifest.Image, open func(ocispec.Descriptor) (io.ReadCloser, error), snapshots *snapshot.Store) (Image, error) {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(writeOne(w, img, open))
	}()
	names, err := s.Load(ctx, r, snapshots)
	r.CloseWithError(errors.New("not wanted any more")) // ends the writer
	<-done
	if err != nil {
		return Image{}, err
	}
	if len(names) == 0 || len(names[0].Images) == 0 {
		return Image{}, errors.New("it holds no image")
	}
	return names[0].Images[0], nil
}

// writeOne writes an image as an OCI archive.
func writeOne(w io.Writer, img *manifest.Image, open func(ocispec.Descriptor) (io.ReadCloser, error)) error {
	index, err := marshalLayoutIndex([]ocispec.Descriptor{img.Desc})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	add := func(name string, size int64, open func() (io.ReadCloser, error)) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		r, err := open()
		if err != nil {
			return err
		}
		_, err = io.Copy(tw, r)
		return errors.Join(err, r.Close())
	}
	for _, f := range []file{memory(ocispec.ImageLayoutFile, layoutVersion), memory(ocispec.ImageIndexFile, index)} {
		if err := add(f.name, f.desc.Size, func() (io.ReadCloser, error) { return f.open(context.Background()) }); err != nil {
			return err
		}
	}
	seen := map[digest.Digest]bool{}
	for _, desc := range append([]ocispec.Descriptor{img.Desc, img.Manifest.Config}, img.Manifest.Layers...) {
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		if err := add(blobPath(desc.Digest), desc.Size, func() (io.ReadCloser, error) { return open(desc) }); err != nil {
			return fmt.Errorf("%s: %w", desc.Digest, err)
		}
	}
	return tw.Close()
}
