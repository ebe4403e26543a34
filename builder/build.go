package builder

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

func (b *Builder) slotCount() int {
	if b.Slots > 0 {
		return b.Slots
	}
	return 16 + 2*runtime.GOMAXPROCS(0)
}

// Build runs the plan and returns a result for each of its targets. The error
// is a *StepError where a step failed; if ctx ended, it is the context's cause.
func (b *Builder) Build(ctx context.Context, r Request) ([]Result, error) {
	for {
		results, err := b.build(ctx, r)
		if err == nil || ctx.Err() != nil || !b.Again(&r, err) {
			return results, err
		}
	}
}

func (b *Builder) build(ctx context.Context, r Request) ([]Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if r.Progress == nil {
		r.Progress = progress.Discard
	}
	bd := &build{
		b: b, r: r, cancel: cancel,
		vertices:   map[*plan.Step]*vertex{},
		fresh:      map[cache.Key]cache.Record{},
		bindings:   map[layers.ID]*vertex{},
		pulls:      map[layers.ID]*vertex{},
		blobs:      map[layers.ID]ocispec.Descriptor{},
		identityOf: map[*vertex]cache.Record{},
		announce:   func() error { return nil },
		mounts:     map[string]func(){},
		renewed:    map[string]bool{},
	}
	bd.prefix = r.Scope
	if n := r.again + r.damaged; n > 0 {
		bd.prefix += fmt.Sprintf("again%d/", n)
	}
	if r.verify {
		bd.prefix += "verify/"
	}
	if r.offline {
		bd.r.CacheFrom, bd.r.BuildKitFrom = nil, nil
	}
	for _, t := range r.Build.Targets {
		if t.Step != nil {
			bd.add(t.Step)
		}
	}
	bd.findMinimal()
	bd.nameSteps()

	if r.Record != nil {
		planned := bd.steps()
		bd.announce = sync.OnceValue(func() error { return r.Record.Plan(r.Build, planned) })
		defer func() { r.Record.SetSteps(r.Build, bd.steps()) }()
	}
	results := make([]Result, len(r.Build.Targets))
	g, gctx := errgroup.WithContext(ctx)
	for i, t := range r.Build.Targets {
		g.Go(func() error {
			results[i] = Result{Target: t, Sources: bd.sources(), Fact: bd.fact, Step: bd.stepOf}
			if t.Step == nil {
				return nil
			}
			tree, err := bd.tree(gctx, bd.vertices[t.Step], 0)
			if err != nil {
				cancel(err)
				return err
			}
			results[i].Tree = tree
			results[i].Blobs = bd.baseBlobs(tree)
			bd.reportCached(bd.vertices[t.Step])
			return nil
		})
	}
	err := g.Wait()
	bd.exportKnown(ctx)
	if err != nil {
		// The first failure is the cause; what others say is its echo.
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	bd.exportNamed(ctx, results)
	return results, nil
}

// build is one run of Build.
type build struct {
	b        *Builder
	r        Request
	cancel   context.CancelCauseFunc
	announce func() error // writes down what there is to do, before the first step runs
	vertices map[*plan.Step]*vertex
	order    []*vertex
	prefix   string // of vertex IDs

	minimal, copied map[*vertex]bool // see findMinimal
	names           *buildkit.Graph  // see nameSteps

	mu         sync.Mutex
	mounts     map[string]func()                // export cache mounts that steps had, by name
	identityOf map[*vertex]cache.Record         // of results that only memos are known of
	fresh      map[cache.Key]cache.Record       // made by this build
	bindings   map[layers.ID]*vertex            // recipe layers of this build's steps
	pulls      map[layers.ID]*vertex            // layers of base images
	blobs      map[layers.ID]ocispec.Descriptor // what their manifests name for them
	renewed    map[string]bool                  // cache mounts that were made anew
}

// vertex is a step in this build.
type vertex struct {
	step   *plan.Step
	id     string // in progress events
	inputs []*vertex

	noCache bool // pass over stored results: the step says so, or an input that counts as a whole does

	ids    future[[]string] // identities of inputs
	key    future[cache.Key]
	result future[cache.Record]
	base   future[*baseTree] // of an Image
	remote future[string]    // of HTTP and Git: see remote
	// assumed are content digests that are known of inputs which may not be
	// here.
	assumed map[int]assumption
	whole   *vertex // of a Local: see copyAll

	mu       sync.Mutex
	outcome  outcome
	reported bool // Cached or Start was sent
	open     bool // Start was sent for a download
}

func newVertex(s *plan.Step, id string, inputs []*vertex) *vertex {
	return &vertex{
		step: s, id: id, inputs: inputs,
		ids:    newFuture[[]string](),
		key:    newFuture[cache.Key](),
		result: newFuture[cache.Record](),
		base:   newFuture[*baseTree](),
		remote: newFuture[string](),

		assumed: map[int]assumption{},
	}
}

// add makes vertices of a step and what it needs, inputs first.
func (bd *build) add(s *plan.Step) *vertex {
	if v, ok := bd.vertices[s]; ok {
		return v
	}
	v := newVertex(s, "", nil)
	v.noCache = (s.NoCache || bd.r.NoCache) && !bd.r.stored
	for i, in := range s.Inputs {
		var iv *vertex
		if in.Step != nil {
			iv = bd.add(in.Step)
			if iv.noCache && wholeInput(s.Op, i) {
				v.noCache = true
			}
		}
		v.inputs = append(v.inputs, iv)
	}
	v.id = fmt.Sprintf("%sv%d", bd.prefix, len(bd.order))
	bd.vertices[s] = v
	bd.order = append(bd.order, v)
	return v
}

// tree returns a result of a vertex as a tree.
func (bd *build) tree(ctx context.Context, v *vertex, output int) (layers.Tree, error) {
	switch v.step.Op.(type) {
	case *plan.Image:
		bt, err := bd.baseTree(ctx, v)
		if err != nil {
			return nil, err
		}
		return bt.tree, nil
	case *plan.Local:
		return bd.localTree(ctx, v)
	}
	rec, err := bd.record(ctx, v)
	if err != nil {
		return nil, err
	}
	if output >= len(rec.Outputs) {
		return nil, fmt.Errorf("%s: no result %d", v.step.Name, output)
	}
	return rec.Outputs[output], nil
}

// inputTree is tree for input i of v, and the empty tree for scratch.
func (bd *build) inputTree(ctx context.Context, v *vertex, i int) (layers.Tree, error) {
	if i < 0 || i >= len(v.inputs) || v.inputs[i] == nil {
		return nil, nil
	}
	return bd.tree(ctx, v.inputs[i], v.step.Inputs[i].Output)
}

// record finds or makes the result of a step: looked up first, and only on a
// miss are its inputs asked for.
func (bd *build) record(ctx context.Context, v *vertex) (cache.Record, error) {
	return v.result.get(func() (cache.Record, error) {
		rec, err := bd.find(ctx, v)
		if err != nil {
			// The cause of the end of a build is one of its failures.
			bd.cancel(err)
		}
		return rec, err
	})
}

func (bd *build) find(ctx context.Context, v *vertex) (cache.Record, error) {
	key, err := bd.key(ctx, v)
	if err != nil {
		return cache.Record{}, err
	}
	if rec, ok := bd.lookup(v, key); ok {
		bd.cached(v)
		return rec, nil
	}
	if rec, ok := bd.imported(ctx, v, key); ok {
		bd.cached(v)
		return rec, nil
	}
	if rec, ok := bd.borrowed(ctx, v, key); ok {
		bd.cached(v)
		bd.export(v, rec)
		return rec, nil
	}
	// Inputs are made outside of the flight: one that waited for another
	// step could be waiting for itself.
	g, gctx := errgroup.WithContext(ctx)
	for i, in := range v.inputs {
		if in == nil {
			continue
		}
		if _, ok := in.step.Op.(*plan.Local); ok {
			continue // opened already
		}
		g.Go(func() error {
			_, err := bd.inputTree(gctx, v, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return cache.Record{}, err
	}
	if err := bd.checkAssumed(ctx, v); err != nil {
		return cache.Record{}, err
	}
	ran := false
	rec, err := bd.b.flights.Do(ctx, string(key), func(ctx context.Context) (cache.Record, error) {
		unlock, err := bd.b.Cache.Lock(ctx, key)
		if err != nil {
			return cache.Record{}, err
		}
		defer unlock()
		if rec, ok := bd.lookup(v, key); ok {
			return rec, nil
		}
		ran = true
		return bd.run(ctx, v, key)
	})
	if err != nil {
		return cache.Record{}, err
	}
	if !ran {
		bd.cached(v)
	}
	bd.mu.Lock()
	bd.fresh[key] = rec
	bd.mu.Unlock()
	bd.export(v, rec)
	return rec, nil
}

// lookup returns the stored result of a key, if all its layers are there, or
// can be made.
func (bd *build) lookup(v *vertex, key cache.Key) (cache.Record, bool) {
	bd.mu.Lock()
	rec, ok := bd.fresh[key]
	bd.mu.Unlock()
	if ok {
		return rec, true
	}
	if v.noCache {
		v.missed(builds.MissNoCache)
		return cache.Record{}, false
	}
	rec, ok = bd.b.Cache.Get(key)
	if !ok {
		return cache.Record{}, false
	}
	for _, t := range rec.Outputs {
		if ok, err := bd.b.Layers.Lease(t); err != nil || !ok {
			v.missed(builds.MissLost)
			return cache.Record{}, false
		}
	}
	if ok = bd.available(v, rec); !ok {
		v.missed(builds.MissLost)
	}
	return rec, ok
}

// run makes the result of a step and records it.
func (bd *build) run(ctx context.Context, v *vertex, key cache.Key) (_ cache.Record, err error) {
	if err := bd.announce(); err != nil {
		return cache.Record{}, err
	}
	start := time.Now()
	var outputs []layers.Tree
	switch op := v.step.Op.(type) {
	case *plan.Exec:
		outputs, err = bd.exec(ctx, v, op)
	case *plan.File:
		outputs, err = bd.file(ctx, v, op)
	case *plan.Merge:
		outputs, err = bd.merge(ctx, v)
	case *plan.Diff:
		outputs, err = bd.diff(ctx, v)
	case *plan.HTTP, *plan.Git:
		outputs, err = bd.fetch(ctx, v)
	default:
		err = fmt.Errorf("%T steps are not run", op)
	}
	if err != nil {
		return cache.Record{}, err
	}
	rec := cache.Record{Key: key, Outputs: outputs, Made: start.UTC(), Used: start.UTC(), Took: time.Since(start), Why: bd.why(ctx, v)}
	if bd.r.verify {
		return rec, nil
	}
	if err := bd.b.Cache.Put(rec); err != nil {
		return cache.Record{}, err
	}
	return rec, nil
}

// maxMerged bounds the layers of a merge: merges of merges can double them with
// each step of a plan.
const maxMerged = 4096

func (bd *build) merge(ctx context.Context, v *vertex) ([]layers.Tree, error) {
	var merged layers.Tree
	for i := range v.inputs {
		t, err := bd.inputTree(ctx, v, i)
		if err != nil {
			return nil, err
		}
		if len(merged)+len(t) > maxMerged {
			return nil, bd.stepError(v, fmt.Errorf("the merged tree would have %d layers, more than %d", len(merged)+len(t), maxMerged))
		}
		merged = append(merged, t...)
	}
	return []layers.Tree{merged}, nil
}

// diff is a sublist where the upper tree is built on the lower one.
func (bd *build) diff(ctx context.Context, v *vertex) ([]layers.Tree, error) {
	lower, err := bd.inputTree(ctx, v, 0)
	if err != nil {
		return nil, err
	}
	upper, err := bd.inputTree(ctx, v, 1)
	if err != nil {
		return nil, err
	}
	if len(lower) > len(upper) {
		return nil, fmt.Errorf("diff of trees that are not built on one another is not supported")
	}
	for i := range lower {
		if lower[i] != upper[i] {
			return nil, fmt.Errorf("diff of trees that are not built on one another is not supported")
		}
	}
	return []layers.Tree{upper[len(lower):]}, nil
}

// future is a value that is computed once, by whoever asks first.
type future[T any] struct{ f *futureState[T] }

type futureState[T any] struct {
	once sync.Once
	done atomic.Bool
	val  T
	err  error
}

// newFuture returns a future that nobody has asked for.
func newFuture[T any]() future[T] { return future[T]{f: new(futureState[T])} }

func (f future[T]) get(fn func() (T, error)) (T, error) {
	f.f.once.Do(func() {
		f.f.val, f.f.err = fn()
		f.f.done.Store(true)
	})
	return f.f.val, f.f.err
}

// peek returns the value if it is there, and does not wait for it.
func (f future[T]) peek() (val T, ok bool) {
	if !f.f.done.Load() || f.f.err != nil {
		return val, false
	}
	return f.f.val, true
}

// fact tells what is known of a step, of results without running anything.
func (bd *build) fact(s *plan.Step) Fact {
	v, ok := bd.vertices[s]
	if !ok {
		return Fact{}
	}
	var f Fact
	f.ID, _ = v.remote.peek()
	if base, ok := v.base.peek(); ok {
		f.Outputs = []layers.Tree{base.tree}
		return f
	}
	rec, ok := v.result.peek()
	if !ok {
		// Not asked for, as a stored result made it needless.
		if key, known := v.key.peek(); known {
			rec, _ = bd.b.Cache.Get(key)
		}
	}
	f.Outputs = rec.Outputs
	return f
}

func (bd *build) sources() snapshot.Sources {
	return snapshot.Sources{Blob: bd.openBlob, File: bd.openFile}
}
