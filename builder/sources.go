package builder

import (
	"context"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// Where the contents of layers that are not unpacked come from: blobs from the
// blob store or a registry, the files of a recipe from the build context. A
// recipe was stored by the build that first ran its COPY, so it is bound to
// the context of this build through the step that has it as its result: equal
// keys mean that equal files are at the same paths.

// openBlob is snapshot.Sources.Blob.
func (bd *build) openBlob(ctx context.Context, l snapshot.Layer, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := bd.b.Blobs.Reader(desc.Digest, desc.Size)
	if err == nil {
		return r, nil
	}
	report := progress.Discard
	if v := bd.pullVertex(l.ID); v != nil {
		bd.pulling(v)
		report = func(e progress.Event) { bd.event(v, e) }
	}
	for _, origin := range l.Origins {
		r, rerr := bd.b.Registry.Blob(ctx, origin, desc, report)
		if rerr == nil {
			return bd.mayBeLost(l.ID, r), nil
		}
		err = errors.Join(err, rerr)
	}
	return nil, bd.lost(ctx, l.ID, err)
}

func (bd *build) pullVertex(id layers.ID) *vertex {
	bd.mu.Lock()
	defer bd.mu.Unlock()
	return bd.pulls[id]
}

// openFile is snapshot.Sources.File.
func (bd *build) openFile(ctx context.Context, id layers.ID, e layers.Entry) (io.ReadCloser, error) {
	v := bd.binding(id)
	if v == nil {
		return nil, fmt.Errorf("%s: the step that it came from is not in this build", e.Path)
	}
	local := v.inputs[e.Origin.Input].step.Op.(*plan.Local)
	return bd.r.Locals[local.Name].Dir.Open(ctx, e.Origin.Path)
}

// bind tells that a recipe layer is the result of v.
func (bd *build) bind(id layers.ID, v *vertex) {
	bd.mu.Lock()
	bd.bindings[id] = v
	bd.mu.Unlock()
}

// binding returns the vertex whose result a recipe layer is. Steps that were
// never asked for, as something behind them was found, are looked up for it.
// Only those come into question whose keys are known: a layer is part of a
// result because the step that made it is part of that result's key. To wait
// for any other key here would be to wait for oneself.
func (bd *build) binding(id layers.ID) *vertex {
	bd.mu.Lock()
	v := bd.bindings[id]
	order := bd.order
	bd.mu.Unlock()
	if v != nil {
		return v
	}
	for _, v := range order {
		if _, ok := v.step.Op.(*plan.File); !ok {
			continue
		}
		key, ok := v.key.peek()
		if !ok {
			continue
		}
		if rec, ok := bd.b.Cache.Get(key); ok {
			if top := topLayer(rec); top != "" {
				bd.bind(top, v)
			}
		}
	}
	bd.mu.Lock()
	defer bd.mu.Unlock()
	return bd.bindings[id]
}

// stepOf is Result.Step: the step whose key has a record with the layer on top.
func (bd *build) stepOf(id layers.ID) *plan.Step {
	bd.mu.Lock()
	order := bd.order
	bd.mu.Unlock()
	for _, v := range order {
		key, ok := v.key.peek()
		if !ok {
			continue
		}
		bd.mu.Lock()
		rec, ok := bd.fresh[key]
		bd.mu.Unlock()
		if !ok {
			if rec, ok = bd.b.Cache.Get(key); !ok {
				continue
			}
		}
		if topLayer(rec) == id {
			return v.step
		}
	}
	return nil
}

func topLayer(rec cache.Record) layers.ID {
	if len(rec.Outputs) == 0 || len(rec.Outputs[0]) == 0 {
		return ""
	}
	return rec.Outputs[0][len(rec.Outputs[0])-1]
}

// available reports whether the layers of a stored result are there or can be
// made: a recipe is worth something only where its files are.
func (bd *build) available(v *vertex, rec cache.Record) bool {
	for _, t := range rec.Outputs {
		for _, id := range t {
			if ok, err := bd.b.Layers.HasDir(id); err != nil {
				return false
			} else if ok {
				continue
			}
			l, err := bd.b.Layers.Layer(id)
			if err != nil {
				return false
			}
			if bd.hasBlob(l) {
				continue
			}
			if !l.Recipe {
				return false
			}
			if _, ok := v.step.Op.(*plan.File); ok && id == topLayer(rec) {
				bd.bind(id, v)
				continue
			}
			if bd.binding(id) == nil {
				return false
			}
		}
	}
	return true
}

func (bd *build) hasBlob(l snapshot.Layer) bool {
	for _, desc := range l.Blobs {
		if len(l.Origins) > 0 && !(bd.r.offline && l.Cached) {
			return true
		}
		if _, err := bd.b.Blobs.Stat(desc.Digest); err == nil {
			return true
		}
	}
	return false
}
