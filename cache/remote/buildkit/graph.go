package buildkit

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
)

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
