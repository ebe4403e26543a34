package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
)

// What remote caches do to a build.
//
// A record from a cache becomes one of the store, with layers that are blobs
// somewhere else. Nothing is fetched before something needs their files. If they
// turn out to be missing or damaged then, the layer is lost: the build begins
// again without it (Again), and finds everything that it has done meanwhile in
// the store.
//
// What a step copies from counts by content, and a memo from a cache tells its
// digest without the content. When the step has to run after all and what it
// copies from has to be made anew, the content may be another one: then the step
// has another key, and the build begins again as well.

// A request begins again at most maxAgain times. After trustAgain times only what
// is in the store counts: one layer is found to be lost at a time.
const (
	trustAgain = 20
	maxAgain   = 40
)

// contentError tells that the contents of a layer, which were to come from a
// cache, can't be had.
type contentError struct {
	layer layers.ID
	err   error
}

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

// assumption is a content digest that a memo gave.
type assumption struct {
	tree   string
	digest digest.Digest
}

// assumptionError tells that a tree that was made anew has other contents than
// a memo told of it.
type assumptionError struct{ key cache.Key }

func (e *assumptionError) Error() string {
	return fmt.Sprintf("result %.12s differs from the one that the cache tells of", e.key)
}

// Again reports whether a build or export of its results failed because of
// something that a remote cache does not have after all, or of a blob of the store
// that was damaged. It has been forgotten then: the same request builds it.
func (b *Builder) Again(r *Request, err error) bool {
	if errors.Is(err, blob.ErrDamaged) {
		// It was ours, and is gone now.
		r.damaged++
		return r.damaged <= blob.MaxDamaged
	}
	if r.again++; r.again > maxAgain {
		return false
	}
	if r.again > trustAgain {
		r.offline = true
	}
	var content *contentError
	var unpack *snapshot.UnpackError
	var assumed *assumptionError
	var unreachable net.Error
	switch {
	case errors.As(err, &content):
		if errors.As(content.err, &unreachable) {
			r.offline = true
			for _, im := range r.CacheFrom {
				im.GiveUp(content.err)
			}
		}
		return b.lose(r, content.layer)
	case errors.As(err, &unpack):
		// Good blobs that are not what was said of them.
		l, lerr := b.Layers.Layer(unpack.ID)
		full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
		return lerr == nil && l.Cached && !full && b.lose(r, unpack.ID)
	case errors.As(err, &assumed):
		for _, im := range r.CacheFrom {
			im.Distrust(assumed.key)
		}
		return true
	}
	return false
}

func (b *Builder) lose(r *Request, id layers.ID) bool {
	for _, im := range r.CacheFrom {
		im.Lose(id)
	}
	for _, im := range r.BuildKitFrom {
		im.Lose(id)
	}
	return b.Layers.Lose(id) == nil
}

// lost makes err one that says which layer's contents can't be had, unless it
// is a base image's: those are not made anew.
func (bd *build) lost(ctx context.Context, id layers.ID, err error) error {
	if err == nil || ctx.Err() != nil || bd.pullVertex(id) != nil {
		return err
	}
	return &contentError{id, err}
}

// mayBeLost has errors of a blob's reader say which layer it is.
func (bd *build) mayBeLost(id layers.ID, r io.ReadCloser) io.ReadCloser {
	if bd.pullVertex(id) != nil {
		return r
	}
	return &lostReader{r, id}
}

type lostReader struct {
	io.ReadCloser
	id layers.ID
}

func (r *lostReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, context.Canceled) {
		err = &contentError{r.id, err}
	}
	return n, err
}

// adopt puts a record that a remote cache had into the store's cache.
func (bd *build) adopt(rec cache.Record) {
	// Whether it is kept is no matter for this build.
	_ = bd.b.Cache.Put(rec)
	bd.mu.Lock()
	bd.fresh[rec.Key] = rec
	bd.mu.Unlock()
}

// imported looks a key up in the remote caches. What is found is put into the
// store's cache.
func (bd *build) imported(ctx context.Context, v *vertex, key cache.Key) (cache.Record, bool) {
	if v.noCache {
		return cache.Record{}, false
	}
	for _, im := range bd.r.CacheFrom {
		rec, ok := im.Record(ctx, key)
		if !ok || len(rec.Outputs) == 0 || !bd.usable(v, rec) {
			continue
		}
		bd.adopt(rec)
		return rec, true
	}
	// What is behind will be asked for next: at once instead of one by one.
	var keys []cache.Key
	for _, in := range upstream(v) {
		if k, ok := in.key.peek(); ok && !in.noCache && isRun(in) {
			if _, ok := bd.b.Cache.Get(k); !ok {
				keys = append(keys, k)
			}
		}
	}
	if len(keys) > 1 {
		for _, im := range bd.r.CacheFrom {
			im.Prefetch(ctx, keys)
		}
	}
	return cache.Record{}, false
}

// isRun reports whether a vertex has a record.
func isRun(v *vertex) bool {
	switch v.step.Op.(type) {
	case *plan.Image, *plan.Local:
		return false
	}
	return true
}

// upstream returns everything that v needs.
func upstream(v *vertex) []*vertex {
	var list []*vertex
	seen := map[*vertex]bool{v: true}
	var walk func(*vertex)
	walk = func(v *vertex) {
		for _, in := range v.inputs {
			if in != nil && !seen[in] {
				seen[in] = true
				list = append(list, in)
				walk(in)
			}
		}
	}
	walk(v)
	return list
}

func (bd *build) usable(v *vertex, rec cache.Record) bool {
	for _, t := range rec.Outputs {
		if ok, err := bd.b.Layers.Lease(t); err != nil || !ok {
			return false
		}
	}
	return bd.available(v, rec)
}

// knownTree returns what a result is known by in memos if that can be told
// without making it.
func (bd *build) knownTree(ctx context.Context, v *vertex, output int) (string, bool) {
	if !isRun(v) || v.noCache {
		return "", false
	}
	if rec, ok := v.result.peek(); ok {
		return remote.TreeID(rec, output), true
	}
	if len(bd.r.CacheFrom) == 0 {
		return "", false // the tree itself is looked up as fast
	}
	key, err := bd.key(ctx, v)
	if err != nil {
		return "", false
	}
	if rec, ok := bd.lookup(v, key); ok {
		return remote.TreeID(rec, output), true
	}
	for _, im := range bd.r.CacheFrom {
		if rec, ok := im.Identity(ctx, key); ok && output < len(rec.Trees) {
			bd.mu.Lock()
			bd.identityOf[v] = rec
			bd.mu.Unlock()
			return rec.Trees[output], true
		}
	}
	return "", false
}

// treeID is what the tree of a result is known by in memos.
func (bd *build) treeID(v *vertex, t layers.Tree, output int) string {
	if bt, ok := v.base.peek(); ok {
		ids := layers.Tree{}
		for _, d := range bt.diffIDs {
			ids = append(ids, layers.ID(d.Encoded()))
		}
		return remote.LayersID(ids)
	}
	if rec, ok := v.result.peek(); ok {
		return remote.TreeID(rec, output)
	}
	return remote.LayersID(t)
}

// memo looks a content digest up in the store, then in the remote caches.
func (bd *build) memo(ctx context.Context, tree, selector string) (digest.Digest, bool) {
	d, ok := bd.b.Cache.Memo(tree, selector)
	for _, im := range bd.r.CacheFrom {
		if ok {
			break
		}
		if d, ok = im.Memo(ctx, tree, selector); ok {
			_ = bd.b.Cache.PutMemo(tree, selector, d)
		}
	}
	if ok {
		bd.usedMemo(tree, selector, d)
	}
	return d, ok
}

func (bd *build) putMemo(tree, selector string, d digest.Digest) error {
	bd.usedMemo(tree, selector, d)
	return bd.b.Cache.PutMemo(tree, selector, d)
}

func (bd *build) usedMemo(tree, selector string, d digest.Digest) {
	for _, x := range bd.r.CacheTo {
		x.Memo(tree, selector, d)
	}
}

// checkAssumed compares the inputs of v, which are made now, with what its key
// was made of.
func (bd *build) checkAssumed(ctx context.Context, v *vertex) error {
	bd.mu.Lock()
	assumed := map[int]assumption{}
	for i, a := range v.assumed {
		assumed[i] = a
	}
	bd.mu.Unlock()
	for i, a := range assumed {
		in := v.inputs[i]
		if id, ok := bd.knownTree(ctx, in, v.step.Inputs[i].Output); !ok || id == a.tree {
			continue
		}
		d, err := bd.digestNow(ctx, v, i)
		if err != nil {
			return err
		}
		if d != a.digest {
			key, err := bd.key(ctx, in)
			if err != nil {
				return err
			}
			return &assumptionError{key}
		}
	}
	return nil
}

// exported reports whether the result of a step goes to an exporter, and
// whether only its identity does.
func (bd *build) exported(x *remote.Exporter, v *vertex) (identity, ok bool) {
	if !isRun(v) {
		return false, false
	}
	if !x.Min() || bd.minimal[v] {
		return false, true
	}
	return true, bd.copied[v]
}

// export gives a result to the exporters.
func (bd *build) export(v *vertex, rec cache.Record) {
	for _, x := range bd.r.CacheTo {
		if identity, ok := bd.exported(x, v); ok {
			x.Add(rec, identity, bd.bases(rec), bd.sources())
		}
	}
}

func (bd *build) bases(rec cache.Record) map[layers.ID]ocispec.Descriptor {
	bases := map[layers.ID]ocispec.Descriptor{}
	for _, t := range rec.Outputs {
		for id, desc := range bd.baseBlobs(t) {
			bases[id] = desc
		}
	}
	return bases
}

// exportKnown exports what was not made by this build.
func (bd *build) exportKnown(ctx context.Context) {
	for _, export := range bd.mounts {
		export()
	}
	for _, x := range bd.r.CacheTo {
		// What is in the cache that it is written to need not be fetched.
		elsewhere := slices.DeleteFunc(slices.Clone(bd.r.CacheFrom), func(im *remote.Importer) bool {
			return im.Backend().Origin() == x.Backend().Origin()
		})
		for _, v := range bd.order {
			if rec, identity, ok := bd.known(ctx, x, v, elsewhere); ok {
				x.Add(rec, identity, bd.bases(rec), bd.sources())
			}
		}
	}
}

// known returns what an exporter gets of a step that this build did not run.
func (bd *build) known(ctx context.Context, x *remote.Exporter, v *vertex, from []*remote.Importer) (rec cache.Record, identity, ok bool) {
	key, hasKey := v.key.peek()
	identity, wanted := bd.exported(x, v)
	if !hasKey || !wanted {
		return rec, false, false
	}
	if rec, ok = v.result.peek(); ok {
		return rec, identity, true
	}
	if rec, ok = bd.lookup(v, key); ok || v.noCache {
		return rec, identity, ok
	}
	if identity {
		bd.mu.Lock()
		rec, ok = bd.identityOf[v]
		bd.mu.Unlock()
		return rec, true, ok && len(from) > 0
	}
	for _, im := range from {
		if rec, ok = im.Record(ctx, key); ok && bd.usable(v, rec) {
			return rec, false, true
		}
	}
	rec, ok = bd.borrowed(ctx, v, key)
	return rec, false, ok
}

// findMinimal finds the steps whose layers the targets consist of, and those
// whose results others copy from.
func (bd *build) findMinimal() {
	bd.minimal, bd.copied = map[*vertex]bool{}, map[*vertex]bool{}
	for _, v := range bd.order {
		for i, in := range v.inputs {
			if in != nil && !wholeInput(v.step.Op, i) {
				bd.copied[in] = true
			}
		}
	}
	var walk func(*vertex)
	walk = func(v *vertex) {
		if v == nil || bd.minimal[v] {
			return
		}
		bd.minimal[v] = true
		for i, in := range v.inputs {
			switch v.step.Op.(type) {
			case *plan.Merge, *plan.Diff:
				walk(in)
			default:
				if i == 0 {
					walk(in)
				}
			}
		}
	}
	for _, t := range bd.r.Build.Targets {
		if t.Step != nil {
			walk(bd.vertices[t.Step])
		}
	}
}
