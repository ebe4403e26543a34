package buildkit

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
)

// Exporter gathers what one build knows, for a cache in BuildKit's form.
type Exporter struct {
	// Packer makes blobs of layers, in the form that Pack says.
	Packer *image.Packer
	Pack   image.PackOptions
	// Min: only what the target's layers are made of (mode=min).
	Min bool
	// Inline: for images, of which Records are wanted and nothing else.
	Inline bool

	mu    sync.Mutex
	steps []step
}

// step is a result with its key.
type step struct {
	key  *Key
	tree layers.Tree
	made time.Time
	base map[layers.ID]ocispec.Descriptor
	src  snapshot.Sources
}

// Add adds a result, or if tree is nil only a key. base are the layers of base
// images.
func (x *Exporter) Add(k *Key, tree layers.Tree, made time.Time, base map[layers.ID]ocispec.Descriptor, src snapshot.Sources) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.steps = append(x.steps, step{k, tree, made, base, src})
}

// maxConfig bounds a configuration, in bytes: BuildKit reads no larger one.
const maxConfig = 1 << 20

// Config returns the configuration of a cache with all that was added, and the
// layers that it names; nil if that is nothing. The layers of base images are
// among them, as BuildKit looks for all of a result in one place.
func (x *Exporter) Config(ctx context.Context) ([]byte, []blob.Ref, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	w := newWriter(x)
	for _, s := range x.steps {
		i, err := w.record(ctx, s.key)
		if err != nil {
			return nil, nil, err
		}
		if i < 0 || s.tree == nil {
			continue
		}
		top, err := w.chain(ctx, s)
		if err != nil {
			return nil, nil, err
		}
		if top >= 0 {
			w.c.Records[i].Results = []result{{top, s.made}}
		}
	}
	if len(w.c.Layers) == 0 {
		return nil, nil, nil
	}
	data, err := json.Marshal(w.c)
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("cache configuration of %d bytes is too large for BuildKit", len(data))
	}
	if err == nil {
		err = image.CheckJSON(x.Pack.Guard, "configuration of the cache", data)
	}
	if err != nil {
		return nil, nil, err
	}
	var refs []blob.Ref
	for _, ref := range w.blobs {
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, func(a, b blob.Ref) int { return strings.Compare(string(a.Desc.Digest), string(b.Desc.Digest)) })
	return data, refs, nil
}

// Records returns the value of [InlineField] for an image with a tree. Equal
// images have equal ones: there are no times in it.
func (x *Exporter) Records(ctx context.Context, tree layers.Tree) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	w := newWriter(x)
	for _, s := range x.steps {
		// Only what this image is made by: BuildKit looks a step up in one of
		// the images of an index.
		n := len(s.tree)
		if n == 0 || n > len(tree) || !slices.Equal(s.tree, tree[:n]) {
			continue
		}
		i, err := w.record(ctx, s.key)
		if err != nil {
			return nil, err
		}
		if i < 0 {
			continue
		}
		c := chain{Layers: make([]int, n)}
		for l := range n {
			c.Layers[l] = l
		}
		w.c.Records[i].Chains = []chain{c}
	}
	data, err := json.Marshal(w.c.Records)
	if err != nil {
		return nil, err
	}
	return json.Marshal(data) // in Base64
}

// writer is a configuration in the making.
type writer struct {
	x        *Exporter
	c        config
	records  map[digest.Digest]int // by identities
	contents map[digest.Digest]int
	layers   map[layer]int
	blobs    map[digest.Digest]blob.Ref
}

func newWriter(x *Exporter) *writer {
	return &writer{x: x, records: map[digest.Digest]int{}, contents: map[digest.Digest]int{}, layers: map[layer]int{}, blobs: map[digest.Digest]blob.Ref{}}
}

// record returns the record of a key, and makes it first if need be; -1 if it
// has an input that can't be named.
func (w *writer) record(ctx context.Context, k *Key) (int, error) {
	id, err := k.Identity(ctx)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return -1, nil // a directory that can't be read, say
	}
	if i, ok := w.records[id]; ok {
		return i, nil
	}
	r := record{Digest: k.record()}
	for _, d := range k.deps {
		var links []link
		if d.key != nil {
			i, err := w.record(ctx, d.key)
			if err != nil {
				return 0, err
			}
			if i >= 0 {
				links = append(links, link{d.selector.String(), i})
			}
		}
		if d.content != nil && d.content.near {
			c, err := d.content.digest(ctx)
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			if err == nil {
				links = append(links, link{"", w.content(c)})
			}
		}
		if len(links) == 0 {
			w.records[id] = -1
			return -1, nil
		}
		r.Inputs = append(r.Inputs, links)
	}
	w.c.Records = append(w.c.Records, r)
	w.records[id] = len(w.c.Records) - 1
	return w.records[id], nil
}

// content returns the record of a digest of contents.
func (w *writer) content(d digest.Digest) int {
	d = outputDigest(d, contentOutput)
	i, ok := w.contents[d]
	if !ok {
		i = len(w.c.Records)
		w.contents[d] = i
		w.c.Records = append(w.c.Records, record{Digest: d})
	}
	return i
}

// chain returns the topmost layer of a result; -1 if it has none.
func (w *writer) chain(ctx context.Context, s step) (int, error) {
	o := w.x.Pack
	o.Blobs = s.base
	top := -1
	for _, id := range s.tree {
		ref, diffID, err := w.x.Packer.Pack(ctx, id, o, s.src)
		if err != nil {
			return 0, err
		}
		l := layer{ref.Desc.Digest, top}
		i, ok := w.layers[l]
		if !ok {
			i = len(w.c.Layers)
			w.layers[l] = i
			w.c.Layers = append(w.c.Layers, l)
			ref.Desc = ocispec.Descriptor{
				MediaType: ref.Desc.MediaType, Digest: ref.Desc.Digest, Size: ref.Desc.Size,
				Annotations: map[string]string{Uncompressed: diffID.String()},
			}
			w.blobs[ref.Desc.Digest] = ref
		}
		top = i
	}
	return top, nil
}
