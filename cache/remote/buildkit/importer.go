package buildkit

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
)

// Importer asks one cache, for one build.
type Importer struct {
	// Load reads what there is: a cache's manifest, or those of the platforms
	// of an image. It is called when the cache is first asked.
	Load func(context.Context) ([]*Manifest, error)
	// Origin is where blobs are, see [snapshot.Layer.Origins].
	Origin string
	// Layers is where layers are added.
	Layers *snapshot.Store
	// Warn is called at most once, with why the cache is not used.
	Warn func(error)

	once      sync.Once
	manifests []*Manifest

	mu     sync.Mutex
	lost   map[layers.ID]bool
	warned bool
}

// patience is how long it may take to read what there is.
const patience = 30 * time.Second

func (im *Importer) load(ctx context.Context) []*Manifest {
	im.once.Do(func() {
		ask, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer for %s", patience))
		defer cancel()
		list, err := im.Load(ask)
		if err != nil && ask.Err() != nil {
			err = context.Cause(ask)
		}
		if err != nil && ctx.Err() == nil {
			im.fail(err)
		}
		im.manifests = list
	})
	return im.manifests
}

func (im *Importer) fail(err error) {
	im.mu.Lock()
	again := im.warned
	im.warned = true
	im.mu.Unlock()
	if !again {
		im.Warn(err)
	}
}

// Knows reports whether the cache has a record of a key that is found without
// running any step, with a result or without.
func (im *Importer) Knows(ctx context.Context, k *Key) bool {
	for _, m := range im.load(ctx) {
		if m.Knows(ctx, k) {
			return true
		}
	}
	return false
}

// Tree returns the result of a key and when it was made, with layers that are in
// the store now, as far as what is known of them. near is as for
// [Manifest.Find].
func (im *Importer) Tree(ctx context.Context, k *Key, near bool) (layers.Tree, time.Time, bool) {
	for _, m := range im.load(ctx) {
		results, err := m.Find(ctx, k, near)
		if err != nil {
			return nil, time.Time{}, false
		}
		for _, r := range results {
			if t, ok := im.tree(k, r); ok {
				return t, r.Made, true
			}
		}
	}
	return nil, time.Time{}, false
}

func (im *Importer) tree(k *Key, r Result) (layers.Tree, bool) {
	t := layers.Tree{}
	for i, desc := range r.Layers {
		diffID := digest.Digest(desc.Annotations[Uncompressed])
		id := layers.ID(diffID.Encoded())
		im.mu.Lock()
		lost := im.lost[id]
		im.mu.Unlock()
		if lost {
			return nil, false
		}
		// Those of the base image are known, and where they are.
		if i >= len(k.bottom) {
			plain := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
			if _, err := im.Layers.AddCached(diffID, plain, im.Origin); err != nil {
				im.fail(fmt.Errorf("add layer %s: %w", diffID, err))
				return nil, false
			}
		}
		t = append(t, id)
	}
	return t, true
}

// Lose notes that the blobs of a layer are not to be had: results with it count
// for nothing in this build.
func (im *Importer) Lose(id layers.ID) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.lost == nil {
		im.lost = map[layers.ID]bool{}
	}
	im.lost[id] = true
}
