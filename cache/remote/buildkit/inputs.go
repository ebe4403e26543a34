package buildkit

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
)

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
