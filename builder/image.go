package builder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/registry"
)

// Base is what an image reference turned out to be.
type Base struct {
	Ref    string        // normalised
	Digest digest.Digest // of the manifest; of the configuration for an image of the local store
	Config []byte        // image configuration
	// Pin is the digest of what the reference named in its registry: an
	// index, or a manifest. It is that of the configuration for an image
	// that never was in one.
	Pin digest.Digest
}

// base is a resolved image: one of the store, or one of a registry.
type base struct {
	Base
	tree layers.Tree // of a stored image
	pull *registry.Image
}

type baseKey struct {
	digest   digest.Digest
	platform string
}

// Resolve looks an image up, in the local store unless pull is set, else in its
// registry. Image ops with the digest it returned can be built.
func (b *Builder) Resolve(ctx context.Context, ref string, platform ocispec.Platform, pull bool) (Base, error) {
	norm, err := registry.Normalize(ref)
	if err != nil {
		return Base{}, err
	}
	if !pull && b.Images != nil {
		found, err := b.stored(norm, platform)
		if err != nil {
			return Base{}, err
		}
		if found != nil {
			b.keep(found, platform)
			return found.Base, nil
		}
	}
	img, err := b.Registry.Resolve(ctx, norm, platform)
	if err != nil {
		return Base{}, err
	}
	found := &base{Base: Base{Ref: norm, Digest: img.Desc.Digest, Config: img.Config, Pin: cmp.Or(img.Index, img.Desc.Digest)}, pull: img}
	b.keep(found, platform)
	return found.Base, nil
}

// stored finds an image in the local store; nil if there is none for the
// platform.
func (b *Builder) stored(ref string, platform ocispec.Platform) (*base, error) {
	name, err := b.Images.Find(ref)
	if errors.Is(err, image.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	match := platforms.Only(platform)
	var best *image.Image
	for i := range name.Images {
		img := &name.Images[i]
		if match.Match(img.Platform) && (best == nil || match.Less(img.Platform, best.Platform)) {
			best = img
		}
	}
	if best == nil {
		return nil, nil
	}
	if ok, err := b.Layers.Lease(best.Tree); err != nil || !ok {
		return nil, err
	}
	config, err := b.Images.Config(best.ID)
	if errors.Is(err, image.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pin := cmp.Or(name.Index, best.Manifest, best.ID)
	return &base{Base: Base{Ref: ref, Digest: best.ID, Config: config, Pin: pin}, tree: best.Tree}, nil
}

func (b *Builder) keep(found *base, platform ocispec.Platform) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bases == nil {
		b.bases = map[baseKey]*base{}
	}
	b.bases[baseKey{found.Digest, platforms.Format(platform)}] = found
}

// Stored makes an image of the local store a base, whatever its name: Image ops
// with the digest that it returns, which is that of its configuration, can be
// built by this Builder.
func (b *Builder) Stored(img image.Image, ref string, platform ocispec.Platform) (Base, error) {
	if ok, err := b.Layers.Lease(img.Tree); err != nil || !ok {
		return Base{}, errors.Join(err, fmt.Errorf("%s: layers are missing", ref))
	}
	config, err := b.Images.Config(img.ID)
	if err != nil {
		return Base{}, err
	}
	found := &base{Base: Base{Ref: ref, Digest: img.ID, Config: config, Pin: cmp.Or(img.Manifest, img.ID)}, tree: img.Tree}
	b.keep(found, platform)
	return found.Base, nil
}

// base returns what an Image op names.
func (b *Builder) base(ctx context.Context, op *plan.Image) (*base, error) {
	k := baseKey{op.Digest, platforms.Format(op.Platform)}
	b.mu.Lock()
	found := b.bases[k]
	b.mu.Unlock()
	if found != nil {
		return found, nil
	}
	repository, err := registry.Repository(op.Ref)
	if err != nil {
		return nil, err
	}
	img, err := b.Registry.Resolve(ctx, repository+"@"+op.Digest.String(), op.Platform)
	if err != nil {
		return nil, err
	}
	found = &base{Base: Base{Ref: op.Ref, Digest: img.Desc.Digest, Config: img.Config, Pin: img.Desc.Digest}, pull: img}
	b.keep(found, op.Platform)
	return found, nil
}

// baseTree is an image as a tree whose layers need not be here.
type baseTree struct {
	tree    layers.Tree
	diffIDs []digest.Digest
	config  ocispec.Image
	blobs   []ocispec.Descriptor // of the manifest; nil for a stored image
}

// baseBlobs returns what the manifests of base images name for layers of t.
func (bd *build) baseBlobs(t layers.Tree) map[layers.ID]ocispec.Descriptor {
	bd.mu.Lock()
	defer bd.mu.Unlock()
	blobs := map[layers.ID]ocispec.Descriptor{}
	for _, id := range t {
		if desc, ok := bd.blobs[id]; ok {
			blobs[id] = desc
		}
	}
	return blobs
}

func (bd *build) baseTree(ctx context.Context, v *vertex) (*baseTree, error) {
	return v.base.get(func() (*baseTree, error) {
		bt, err := bd.openBase(ctx, v.step.Op.(*plan.Image))
		if err != nil {
			return nil, bd.stepError(v, err)
		}
		bd.mu.Lock()
		for i, id := range bt.tree {
			bd.pulls[id] = v
			if bt.blobs != nil {
				bd.blobs[id] = bt.blobs[i]
			}
		}
		bd.mu.Unlock()
		return bt, nil
	})
}

func (bd *build) openBase(ctx context.Context, op *plan.Image) (*baseTree, error) {
	found, err := bd.b.base(ctx, op)
	if err != nil {
		return nil, err
	}
	bt := &baseTree{tree: found.tree}
	if err := json.Unmarshal(found.Config, &bt.config); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", op.Ref, err)
	}
	bt.diffIDs = bt.config.RootFS.DiffIDs
	if found.pull == nil {
		return bt, nil
	}
	descs := found.pull.Manifest.Layers
	bt.blobs = descs
	if len(descs) != len(bt.diffIDs) {
		return nil, fmt.Errorf("%s: manifest has %d layers, configuration %d", op.Ref, len(descs), len(bt.diffIDs))
	}
	for i, desc := range descs {
		id, err := bd.b.Layers.AddBlob(bt.diffIDs[i], desc, found.pull.Origin)
		if err != nil {
			return nil, err
		}
		bt.tree = append(bt.tree, id)
	}
	return bt, nil
}
