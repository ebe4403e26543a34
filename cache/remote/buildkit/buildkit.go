// Package buildkit reads and writes the caches that BuildKit keeps in
// registries, images and directories, so that each finds what the other has
// built.
//
// BuildKit names a result by a record: the digest of what the step does, and
// for each of its inputs the records of what it may be. A step's inputs count
// by definition (the record of the step that made them, with a selector for the
// paths that are used) or by content (a record that is the digest of those
// paths). A step is found if one of its records has, for every input, a link
// that fits. A cache is a list of such records, those with results name their
// layers, and a manifest that has the layers as blobs.
//
// A [Graph] knows the steps of a plan by the same names. It derives from a step
// the operation that BuildKit's Dockerfile frontend makes of the same
// instruction, as far as its name depends on it. What it does not know how to
// name has no key, and is found in no cache.
//
// All of this is a claim until it is read: records name layers by digest, and
// blobs are verified by whoever fetches them. A record says nothing about keys of
// ours: it is followed from the key of a step that is wanted, never the other way,
// so that loops in it, or links that lead nowhere, are never walked.
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

	"github.com/strake-build/strake/plan"
)

// Key is what BuildKit knows one result of a step by.
type Key struct {
	digest digest.Digest // of the operation, without its inputs
	output int
	deps   []dep
	// Layers of the result: those at the bottom, which a base image has, and
	// how many there are in all.
	bottom []digest.Digest
	count  int

	identity content
}

// dep is an input of an operation.
type dep struct {
	key      *Key // by definition; nil if that names nothing
	selector digest.Digest
	content  *content // by content; nil if that does not count
}

// content is a digest that is computed when it is first wanted.
type content struct {
	find func(context.Context) (digest.Digest, error)
	near bool // no step has to be run for it

	mu sync.Mutex
	d  digest.Digest
}

func (c *content) digest(ctx context.Context) (digest.Digest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.d != "" {
		return c.d, nil
	}
	var err error
	c.d, err = c.find(ctx)
	return c.d, err
}

// record is the digest of the record of a key: that of the operation and the
// number of the result.
func (k *Key) record() digest.Digest { return outputDigest(k.digest, k.output) }

// Layers is how many layers the result has.
func (k *Key) Layers() int { return k.count }

// Identity is what tells the result of a key from all that BuildKit would not
// take for it: its definition, and the contents of what has none.
func (k *Key) Identity(ctx context.Context) (digest.Digest, error) {
	return k.identity.digest(ctx)
}

func (k *Key) identify(ctx context.Context) (digest.Digest, error) {
	parts := []string{k.record().String()}
	for _, d := range k.deps {
		id := d.content
		if d.key != nil {
			id = &d.key.identity
		}
		part, err := id.digest(ctx)
		if err != nil {
			return "", err
		}
		parts = append(parts, d.selector.String(), part.String())
	}
	return digest.FromString(strings.Join(parts, "\x00")), nil
}

// contentOutput is the number of the result in records of contents.
const contentOutput = -1

func outputDigest(d digest.Digest, output int) digest.Digest {
	return digest.FromString(fmt.Sprintf("%s@%d", d, output))
}

// Sources tell of what comes from outside of a plan.
type Sources struct {
	// Image returns the digest that the reference of an Image step stands for,
	// of an index if that is one, and the diffIDs of its layers.
	Image func(context.Context, *plan.Step) (digest.Digest, []digest.Digest, error)
	// Tree returns the file system of a result. It is only called for results
	// whose contents are wanted.
	Tree func(context.Context, plan.Input) (Tree, error)
	// Epoch is the time that SOURCE_DATE_EPOCH gives; zero: it is not set.
	Epoch time.Time
}

// Graph gives the steps of one build their keys. Its methods may be called at
// once.
type Graph struct {
	s    Sources
	mu   sync.Mutex
	keys map[plan.Input]*Key
}

// NewGraph returns a graph of steps that are made of s.
func NewGraph(s Sources) *Graph { return &Graph{s: s, keys: map[plan.Input]*Key{}} }

// Key returns the key of a result; nil if it has none.
func (g *Graph) Key(ctx context.Context, in plan.Input) *Key {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.key(ctx, in)
}

func (g *Graph) key(ctx context.Context, in plan.Input) *Key {
	if in.Step == nil {
		return nil
	}
	k, ok := g.keys[in]
	if !ok {
		if k = g.make(ctx, in); k != nil {
			k.identity.find = k.identify
		}
		g.keys[in] = k
	}
	return k
}

func (g *Graph) make(ctx context.Context, in plan.Input) *Key {
	if in.Output != 0 {
		return nil // of LLB: a mount that was written to
	}
	switch op := in.Step.Op.(type) {
	case *plan.Image:
		return g.image(ctx, in.Step, op)
	case *plan.Exec:
		return g.exec(ctx, in.Step, op)
	case *plan.File:
		return g.file(ctx, in.Step, op)
	case *plan.Merge:
		return g.merge(ctx, in.Step)
	}
	return nil
}

// opDigest is the digest of an operation, of its JSON form.
func opDigest(v any) digest.Digest {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of texts and numbers
	}
	return digest.FromBytes(data)
}

func (g *Graph) image(ctx context.Context, s *plan.Step, op *plan.Image) *Key {
	d, diffIDs, err := g.s.Image(ctx, s)
	if err != nil || d == "" {
		return nil
	}
	p := op.Platform
	id := opDigest(struct {
		Digest     digest.Digest
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
	}{d, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures})
	return &Key{digest: digest.FromString("buildkit.source.v0:" + id.String()), bottom: diffIDs, count: len(diffIDs)}
}

func (g *Graph) merge(ctx context.Context, s *plan.Step) *Key {
	type input struct {
		Input int `json:"input,omitempty"`
	}
	type merge struct {
		Inputs []input `json:"inputs,omitempty"`
	}
	var k Key
	var m merge
	in := inputs{g: g, ctx: ctx}
	for i, from := range s.Inputs {
		n := in.add(from)
		if n < 0 || in.list[n].key == nil {
			return nil
		}
		m.Inputs = append(m.Inputs, input{n})
		if i == 0 {
			k.bottom = in.list[n].key.bottom
		}
		k.count += in.list[n].key.count
	}
	k.digest = opDigest(struct {
		Type  string
		Merge merge
	}{"buildkit.merge.v0", m})
	k.deps = in.deps()
	return &k
}

// inputs are those of an operation, each once, in the order in which they are
// first named.
type inputs struct {
	g    *Graph
	ctx  context.Context
	list []input
}

type input struct {
	from      plan.Input
	key       *Key
	made      *Key // of a step that only BuildKit's graph has
	selector  digest.Digest
	selectors []selector // by content; whole: all of it
	whole     bool
}

// add returns the number of an input; -1 for scratch.
func (in *inputs) add(from plan.Input) int {
	if from.Step == nil {
		return -1
	}
	for i := range in.list {
		if in.list[i].from == from && in.list[i].made == nil {
			return i
		}
	}
	in.list = append(in.list, input{from: from, key: in.g.key(in.ctx, from)})
	return len(in.list) - 1
}

// addMade adds an input that is no result of the plan.
func (in *inputs) addMade(k *Key) int {
	for i := range in.list {
		if m := in.list[i].made; m != nil && m.digest == k.digest && slices.EqualFunc(m.deps, k.deps, func(a, b dep) bool { return a.key == b.key }) {
			return i
		}
	}
	in.list = append(in.list, input{key: k, made: k})
	return len(in.list) - 1
}

func (in *inputs) deps() []dep {
	deps := make([]dep, len(in.list))
	for i, one := range in.list {
		deps[i] = dep{key: one.key, selector: one.selector}
		if !one.whole && len(one.selectors) == 0 || one.made != nil {
			continue
		}
		from, selectors, g := one.from, one.selectors, in.g
		c := &content{find: func(ctx context.Context) (digest.Digest, error) {
			t, err := g.s.Tree(ctx, from)
			if err != nil {
				return "", err
			}
			return contentDigest(ctx, t, selectors)
		}}
		switch from.Step.Op.(type) {
		case *plan.Local, *plan.HTTP, *plan.Git:
			c.near = true
		}
		deps[i].content = c
	}
	return deps
}

// known reports whether each input has something that it can be found by.
func known(deps []dep) bool {
	return !slices.ContainsFunc(deps, func(d dep) bool { return d.key == nil && d.content == nil })
}

// selector names paths of an input whose contents count.
type selector struct {
	path                       string
	wildcard, follow           bool
	include, exclude, required []string
}

func (s selector) filtered() bool { return s.wildcard || len(s.include) > 0 || len(s.exclude) > 0 }

// outermost returns the paths that are not below others of them, sorted.
func outermost(paths []string) []string {
	if len(paths) <= 1 {
		return paths
	}
	var out []string
	for _, p := range paths {
		below := func(q string) bool { return p != q && strings.HasPrefix(p, strings.TrimSuffix(q, "/")+"/") }
		if !slices.Contains(out, p) && !slices.ContainsFunc(paths, below) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}
