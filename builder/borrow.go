package builder

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
)

// What BuildKit's caches do to a build.
//
// BuildKit names steps in other ways than we do, so a step has a second name
// there. A result that such a cache has becomes a record of the store, under
// our key. Its layers are blobs somewhere else, as those of other remote caches are.

// nameSteps prepares the names of steps in BuildKit's caches, if there are any.
func (bd *build) nameSteps() {
	if len(bd.r.BuildKitFrom) > 0 || len(bd.r.BuildKitTo) > 0 {
		s := buildkit.Sources{Image: bd.namedImage, Tree: bd.namedTree}
		for _, t := range bd.r.Build.Targets {
			if t.Image.Created != nil {
				s.Epoch = *t.Image.Created
			}
		}
		bd.names = buildkit.NewGraph(s)
	}
}

func (bd *build) namedImage(ctx context.Context, s *plan.Step) (digest.Digest, []digest.Digest, error) {
	bt, err := bd.baseTree(ctx, bd.vertices[s])
	if err != nil {
		return "", nil, err
	}
	found, err := bd.b.base(ctx, s.Op.(*plan.Image))
	if err != nil {
		return "", nil, err
	}
	return found.Pin, bt.diffIDs, nil
}

// namedTree is the tree of a result that is there: nothing is run for it.
func (bd *build) namedTree(ctx context.Context, in plan.Input) (buildkit.Tree, error) {
	v := bd.vertices[in.Step]
	var t layers.Tree
	switch op := in.Step.Op.(type) {
	case *plan.Local:
		l, ok := bd.r.Locals[op.Name]
		if !ok {
			return buildkit.Tree{}, errors.New("no such directory")
		}
		return buildkit.Tree{Files: l.Dir}, nil
	case *plan.Image, *plan.HTTP, *plan.Git:
		var err error
		if t, err = bd.tree(ctx, v, in.Output); err != nil {
			return buildkit.Tree{}, err
		}
	default:
		rec, ok := v.result.peek()
		if !ok || in.Output >= len(rec.Outputs) {
			return buildkit.Tree{}, errors.New("not made")
		}
		t = rec.Outputs[in.Output]
	}
	view, err := bd.b.Layers.View(ctx, t, bd.sources())
	return buildkit.Tree{Files: view, Owned: true}, err
}

// borrowed looks a step up in the caches of BuildKit.
func (bd *build) borrowed(ctx context.Context, v *vertex, key cache.Key) (cache.Record, bool) {
	if v.noCache || len(bd.r.BuildKitFrom) == 0 {
		return cache.Record{}, false
	}
	name := bd.names.Key(ctx, plan.Input{Step: v.step})
	if name == nil {
		return cache.Record{}, false
	}
	for _, im := range bd.r.BuildKitFrom {
		t, made, ok := im.Tree(ctx, name, false)
		if !ok {
			continue
		}
		rec := cache.Record{Key: key, Outputs: []layers.Tree{t}, Made: made.UTC(), Used: time.Now().UTC(), Why: bd.why(ctx, v)}
		if !bd.usable(v, rec) {
			continue
		}
		bd.adopt(rec)
		return rec, true
	}
	return cache.Record{}, false
}

// byDefinition identifies what v copies from its input i by how the input is
// made instead of what is in it, if a cache of BuildKit's has v by that: the
// input need not be made then, nor fetched. What v, or a step behind it, is found
// to be is what BuildKit would have found. A build that writes a cache of ours
// does not do that, as its keys would be of no use without the other cache.
func (bd *build) byDefinition(ctx context.Context, v *vertex, i int) (digest.Digest, bool) {
	if v.noCache || v.inputs[i].noCache || len(bd.r.CacheTo) > 0 || len(bd.r.BuildKitFrom) == 0 {
		return "", false
	}
	name, from := bd.names.Key(ctx, plan.Input{Step: v.step}), bd.names.Key(ctx, v.step.Inputs[i])
	if name == nil || from == nil {
		return "", false
	}
	for _, im := range bd.r.BuildKitFrom {
		if !im.Knows(ctx, name) {
			continue
		}
		if id, err := from.Identity(ctx); err == nil {
			return digest.FromString("buildkit " + id.String()), true
		}
	}
	return "", false
}

// exportNamed gives the exporters what this build, which has succeeded, knows of
// steps that have names in BuildKit's caches: such a cache is written as a whole,
// and replaces the one that was there.
func (bd *build) exportNamed(ctx context.Context, results []Result) {
	for _, x := range bd.r.BuildKitTo {
		inline := bd.imageSteps(ctx, x, results)
		for _, v := range bd.order {
			name := bd.names.Key(ctx, plan.Input{Step: v.step})
			if name == nil || !isRun(v) {
				continue
			}
			if x.Inline {
				x.Add(name, inline[v], time.Time{}, nil, snapshot.Sources{})
				continue
			}
			rec, ok := v.result.peek()
			if key, known := v.key.peek(); !ok && known {
				if rec, ok = bd.lookup(v, key); !ok {
					rec, ok = bd.borrowed(ctx, v, key)
				}
			}
			if ok && len(rec.Outputs) > 0 && (!x.Min || bd.minimal[v]) {
				x.Add(name, rec.Outputs[0], rec.Made, bd.bases(rec), bd.sources())
			} else {
				x.Add(name, nil, time.Time{}, nil, snapshot.Sources{})
			}
		}
	}
}

// imageSteps are the steps whose results are an image's layers, up to one of
// them. They follow from the image, whatever else is known of the steps.
func (bd *build) imageSteps(ctx context.Context, x *buildkit.Exporter, results []Result) map[*vertex]layers.Tree {
	trees := map[*vertex]layers.Tree{}
	if !x.Inline {
		return trees
	}
	for _, r := range results {
		for s := r.Target.Step; s != nil && len(s.Inputs) > 0; s = s.Inputs[0].Step {
			name := bd.names.Key(ctx, plan.Input{Step: s})
			if name == nil || name.Layers() > len(r.Tree) {
				break
			}
			trees[bd.vertices[s]] = r.Tree[:name.Layers()]
		}
	}
	return trees
}
