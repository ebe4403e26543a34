// Package transfer moves images between the image store and registries.
//
// Pulling fetches the layers' blobs, as the person who pulls wants to have the
// image here; they are unpacked when something first needs that. Pushing packs
// what is not packed yet.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

// Transfer moves images between one store and registries.
type Transfer struct {
	Registry *registry.Client
	Layers   *snapshot.Store
	Blobs    *blob.Store
	Images   *image.Store
	Packer   *image.Packer
}

// Layers fetched at once.
const fetches = 4

// Sources gives the blobs of pulled layers: from the blob store, else from the
// first of the layer's origins that has them.
func Sources(c *registry.Client, blobs *blob.Store, report progress.Func) snapshot.Sources {
	return snapshot.Sources{Blob: func(ctx context.Context, l snapshot.Layer, desc ocispec.Descriptor) (io.ReadCloser, error) {
		r, err := blobs.Reader(desc.Digest, desc.Size)
		if !errors.Is(err, blob.ErrNotFound) {
			return r, err
		}
		for _, origin := range l.Origins {
			r, oerr := c.Blob(ctx, origin, desc, report)
			if oerr == nil {
				return r, nil
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			err = oerr
		}
		return nil, err
	}}
}

// Pull fetches an image for each of the platforms given, with its attestations,
// and stores it under its name. Each layer is fetched once. report gets Status
// events with the actions "downloading" and "exists", and a Warning for an
// attestation that is left out. A pull that fails leaves the name as it was.
func (t *Transfer) Pull(ctx context.Context, ref string, platforms []ocispec.Platform, report progress.Func) (image.Name, error) {
	if report == nil {
		report = progress.Discard
	}
	var found []*registry.Image
	seen := map[digest.Digest]bool{}
	for _, p := range platforms {
		img, err := t.Registry.Resolve(ctx, ref, p)
		if err != nil {
			return image.Name{}, err
		}
		if !seen[img.Desc.Digest] { // two platforms may get the same image
			seen[img.Desc.Digest] = true
			found = append(found, img)
		}
	}
	if len(found) == 0 {
		return image.Name{}, errors.New("pull: no platform was asked for")
	}
	var images []image.Image
	var configs [][]byte
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetches)
	queued := map[digest.Digest]bool{}
	attestations := make([][]image.Attestation, len(found))
	var err error
	for n, img := range found {
		var stored image.Image
		if stored, err = t.record(img); err != nil {
			break
		}
		images = append(images, stored)
		configs = append(configs, img.Config)
		for i, desc := range img.Manifest.Layers {
			if !queued[desc.Digest] {
				queued[desc.Digest] = true
				g.Go(func() error { return t.fetch(gctx, stored.Tree[i], img.Origin, desc, report) })
			}
		}
		g.Go(func() (err error) {
			attestations[n], err = t.attestations(gctx, img, report)
			return err
		})
	}
	if gerr := g.Wait(); err == nil {
		err = gerr
	}
	if ctx.Err() != nil {
		return image.Name{}, context.Cause(ctx)
	}
	if err != nil {
		return image.Name{}, err
	}
	for i := range images {
		images[i].Attestations = attestations[i]
	}
	first := found[0]
	if err := t.keep(first.Index, first.RawIndex); err != nil {
		return image.Name{}, fmt.Errorf("%s: %w", first.Ref, err)
	}
	if err := t.Images.Put([]string{first.Ref}, images, configs, first.Index); err != nil {
		return image.Name{}, fmt.Errorf("%s: %w", first.Ref, err)
	}
	return t.Images.Find(first.Ref)
}

// record makes layers of an image's blobs, which need not be here yet, and
// keeps its manifest.
func (t *Transfer) record(img *registry.Image) (image.Image, error) {
	config, err := manifest.Config(img.Manifest, img.Config)
	if err != nil {
		return image.Image{}, fmt.Errorf("%s: %w", img.Ref, err)
	}
	if err := t.keep(img.Desc.Digest, img.RawManifest); err != nil {
		return image.Image{}, fmt.Errorf("%s: %w", img.Ref, err)
	}
	stored := image.Image{ID: img.Manifest.Config.Digest, Platform: config.Platform, Manifest: img.Desc.Digest, Tree: layers.Tree{}}
	for i, desc := range img.Manifest.Layers {
		desc.URLs = nil
		id, err := t.Layers.AddBlob(config.RootFS.DiffIDs[i], desc, img.Origin)
		if err != nil {
			return image.Image{}, fmt.Errorf("%s: layer %s: %w", img.Ref, desc.Digest, err)
		}
		stored.Tree = append(stored.Tree, id)
	}
	return stored, nil
}

// fetch sees to it that a layer is here, as a blob or a directory.
func (t *Transfer) fetch(ctx context.Context, id layers.ID, origin string, desc ocispec.Descriptor, report progress.Func) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l, err := t.Layers.Layer(id); err == nil && l.Dir {
		exists(desc, report)
		return nil
	}
	return t.fetchBlob(ctx, origin, desc, report)
}

// fetchBlob sees to it that a blob is here.
func (t *Transfer) fetchBlob(ctx context.Context, origin string, desc ocispec.Descriptor, report progress.Func) error {
	if size, err := t.Blobs.Stat(desc.Digest); err == nil && size == desc.Size {
		exists(desc, report)
		return nil
	}
	r, err := t.Registry.Blob(ctx, origin, desc, report)
	if err != nil {
		return err
	}
	defer r.Close()
	_, _, err = t.Blobs.Put(r, desc.Digest, desc.Size)
	return err
}

func exists(desc ocispec.Descriptor, report progress.Func) {
	report(progress.Event{
		Time: time.Now(), Kind: progress.Status, ID: desc.Digest.String()[:19], Action: "exists", Current: desc.Size, Total: desc.Size,
	})
}

// keep stores a document.
func (t *Transfer) keep(d digest.Digest, raw []byte) error {
	if d == "" {
		return nil
	}
	return t.Images.Keep(d, raw)
}

// Push uploads what a name of the store stands for under ref (see
// image.Packer.Bundle). It returns the descriptor of what was pushed.
func (t *Transfer) Push(ctx context.Context, name image.Name, ref string, report progress.Func) (ocispec.Descriptor, error) {
	src := Sources(t.Registry, t.Blobs, report)
	b, err := t.Packer.Bundle(ctx, name, src, func(text string) { warn(report, text) })
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push: %w", err)
	}
	if err := t.Registry.Push(ctx, ref, Manifest(b), report); err != nil {
		return ocispec.Descriptor{}, err
	}
	repository, err := registry.Repository(ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, img := range name.Images {
		if err := t.Packer.Pushed(img.Tree, repository); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return b.Desc, nil
}

// Manifest is a bundle in the form that registry.Client.Push takes.
func Manifest(b image.Bundle) *registry.Manifest {
	single := func(p *image.Packed) *registry.Manifest {
		return &registry.Manifest{Desc: p.Desc, Raw: p.Manifest, Blobs: append([]blob.Ref{p.Config}, p.Layers...)}
	}
	if !manifest.IsIndex(b.Desc.MediaType) && len(b.Images) == 1 {
		return single(b.Images[0])
	}
	m := &registry.Manifest{Desc: b.Desc, Raw: b.Raw}
	for _, p := range b.Images {
		m.Children = append(m.Children, single(p))
	}
	return m
}
