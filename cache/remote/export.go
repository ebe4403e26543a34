package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/progress"
)

// ExportOptions says how a cache is written.
type ExportOptions struct {
	// Pack is the form of the layers' blobs.
	Pack image.PackOptions
	// Min: only what the target's layers are made of (mode=min).
	Min bool
	// Mounts: the directories of cache mounts, too (mounts=true).
	Mounts bool
	// Progress gets the events of one vertex, "exporting cache to …".
	Progress progress.Func
}

// Exporter writes the results of one build to one cache, while the build runs.
type Exporter struct {
	backend  Backend
	layers   *snapshot.Store
	packer   *image.Packer
	o        ExportOptions
	ctx      context.Context
	cancel   context.CancelCauseFunc
	vertex   string
	replaces func(cache.Key) bool
	inline   *inlined // of NewInline

	slots chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex
	started bool
	seen    map[string]bool
	base    map[layers.ID]ocispec.Descriptor
	err     error
	written int
}

// uploads is how many objects are written at once: what compresses in their
// place runs beside the build's steps.
const uploads = 4

// NewExporter returns an exporter that works until ctx ends. replaces tells
// that what the cache has for a key is known to be damaged; nil: nothing is.
func NewExporter(ctx context.Context, b Backend, store *snapshot.Store, packer *image.Packer, replaces func(cache.Key) bool, o ExportOptions) *Exporter {
	if o.Progress == nil {
		o.Progress = progress.Discard
	}
	e := &Exporter{
		backend: b, layers: store, packer: packer, o: o, replaces: replaces, vertex: "cache " + b.String(),
		slots: make(chan struct{}, uploads), seen: map[string]bool{}, base: map[layers.ID]ocispec.Descriptor{},
	}
	e.ctx, e.cancel = context.WithCancelCause(ctx)
	return e
}

// Min reports whether only what the target's layers are made of is wanted.
func (e *Exporter) Min() bool { return e.o.Min }

// Backend is the cache that is written.
func (e *Exporter) Backend() Backend { return e.backend }

// Add writes the record of a result, in the background. identity: without its
// layers. base are the layers of base images, which stay where they are.
func (e *Exporter) Add(rec cache.Record, identity bool, base map[layers.ID]ocispec.Descriptor, src snapshot.Sources) {
	name := recordName(rec.Key)
	if identity {
		name = identityName(rec.Key)
	}
	if e.inline != nil {
		e.mu.Lock()
		e.inline.records[name] = inlineRecord{rec, identity, base, src}
		e.mu.Unlock()
		return
	}
	e.background(name, func(ctx context.Context) error {
		damaged := e.replaces != nil && e.replaces(rec.Key)
		if !damaged {
			if ok, err := e.backend.Has(ctx, name); err != nil || ok {
				return err
			}
		}
		return e.write(ctx, name, damaged, rec, identity, base, src)
	})
}

// Memo writes the digest of the content that selector names in a tree.
func (e *Exporter) Memo(tree, selector string, d digest.Digest) {
	if e.inline != nil {
		e.mu.Lock()
		if e.inline.memos[tree] == nil {
			e.inline.memos[tree] = map[string]digest.Digest{}
		}
		e.inline.memos[tree][selector] = d
		e.mu.Unlock()
		return
	}
	name := memoName(tree, selector)
	e.background(name, func(ctx context.Context) error {
		if ok, err := e.backend.Has(ctx, name); err != nil || ok {
			return err
		}
		if err := image.CheckJSON(e.o.Pack.Guard, "record of what a step copies in the cache", []byte(selector)); err != nil {
			return err
		}
		object, err := encode(Memo{tree, selector, d})
		if err != nil {
			return err
		}
		return e.put(ctx, name, object, nil, false)
	})
}

func (e *Exporter) write(ctx context.Context, name string, damaged bool, rec cache.Record, identity bool, base map[layers.ID]ocispec.Descriptor, src snapshot.Sources) error {
	r, refs, err := e.record(ctx, rec, identity, base, src)
	if err != nil {
		return err
	}
	object, err := encode(r)
	if err != nil {
		return err
	}
	return e.put(ctx, name, object, refs, damaged)
}

// record makes the object of a result, and the blobs that it names.
func (e *Exporter) record(ctx context.Context, rec cache.Record, identity bool, base map[layers.ID]ocispec.Descriptor, src snapshot.Sources) (Record, []blob.Ref, error) {
	r := Record{Key: rec.Key, Made: rec.Made, Took: rec.Took, Why: rec.Why}
	blobs := map[digest.Digest]blob.Ref{}
	for i := range max(len(rec.Outputs), len(rec.Trees)) {
		out := Output{Tree: TreeID(rec, i)}
		if !identity && i < len(rec.Outputs) {
			for _, id := range rec.Outputs[i] {
				l, ref, err := e.pack(ctx, id, base, src)
				if err != nil {
					return Record{}, nil, err
				}
				out.Layers = append(out.Layers, l)
				if !l.Base {
					blobs[l.Blob.Digest] = ref
				}
			}
		}
		r.Outputs = append(r.Outputs, out)
	}
	if e.o.Pack.Guard != nil {
		raw, err := json.Marshal(r)
		if err == nil {
			err = image.CheckJSON(e.o.Pack.Guard, "record of a step in the cache", raw)
		}
		if err != nil {
			return Record{}, nil, err
		}
	}
	refs := slices.Collect(maps.Values(blobs))
	slices.SortFunc(refs, func(a, b blob.Ref) int { return strings.Compare(string(a.Desc.Digest), string(b.Desc.Digest)) })
	return r, refs, nil
}

func (e *Exporter) pack(ctx context.Context, id layers.ID, base map[layers.ID]ocispec.Descriptor, src snapshot.Sources) (Layer, blob.Ref, error) {
	o := e.o.Pack
	if desc, ok := base[id]; ok {
		l, err := e.layers.Layer(id)
		if err != nil {
			return Layer{}, blob.Ref{}, err
		}
		// Where the image is, its layers are.
		repositories := slices.DeleteFunc(slices.Clone(l.Origins), func(o string) bool { return strings.Contains(o, "://") })
		if len(repositories) > 0 {
			desc.URLs = nil
			return Layer{DiffID: l.DiffID, Blob: desc, Base: true, Origins: repositories}, blob.Ref{}, nil
		}
		o.Blobs = base
	}
	ref, diffID, err := e.packer.Pack(ctx, id, o, src)
	desc := ref.Desc
	desc.URLs, desc.Annotations, desc.Platform = nil, nil, nil
	return Layer{DiffID: diffID, Blob: desc}, ref, err
}

func (e *Exporter) put(ctx context.Context, name string, object []byte, blobs []blob.Ref, damaged bool) error {
	if err := e.backend.Put(ctx, name, object, blobs, damaged); err != nil {
		return err
	}
	e.mu.Lock()
	e.written++
	e.mu.Unlock()
	return nil
}

// background runs fn, once for a name. After the first error nothing is written
// any more.
func (e *Exporter) background(name string, fn func(context.Context) error) {
	e.mu.Lock()
	skip := e.seen[name] || e.err != nil
	e.seen[name] = true
	if !e.started && !skip {
		e.started = true
		e.o.Progress(progress.Event{Time: time.Now(), Kind: progress.Start, Vertex: e.vertex, Name: "exporting cache to " + e.backend.String()})
	}
	e.mu.Unlock()
	if skip {
		return
	}
	e.wg.Go(func() {
		select {
		case e.slots <- struct{}{}:
			defer func() { <-e.slots }()
		case <-e.ctx.Done():
			return
		}
		if e.ctx.Err() != nil {
			return
		}
		if err := fn(e.ctx); err != nil {
			if leak := (*image.LeakError)(nil); errors.As(err, &leak) {
				leak.In = "the cache"
			}
			e.mu.Lock()
			if e.err == nil {
				e.err = err
			}
			e.mu.Unlock()
			e.cancel(err)
		}
	})
}

// Wait returns when everything that was added is written, or can't be.
func (e *Exporter) Wait() error {
	e.wg.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.err
	if err == nil && e.ctx.Err() != nil {
		err = context.Cause(e.ctx)
	}
	if err != nil {
		err = fmt.Errorf("cache %s is not written: %w", e.backend, err)
	}
	if e.started {
		e.started = false
		done := progress.Event{Time: time.Now(), Kind: progress.Done, Vertex: e.vertex}
		if err != nil {
			done.Error = err.Error()
			if errors.Is(err, context.Canceled) {
				done.Error = "canceled"
			}
		} else {
			e.o.Progress(progress.Event{Time: time.Now(), Kind: progress.Status, Vertex: e.vertex, Action: fmt.Sprintf("%d new of %d objects", e.written, len(e.seen))})
		}
		e.o.Progress(done)
	}
	return err
}
