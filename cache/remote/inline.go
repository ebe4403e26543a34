package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
)

// InlineField is the field of an image's configuration that has an inline cache:
// an object with the cache's objects by their names. Their blobs are the image's
// layers.
const InlineField = "dev.strake.cache.v1"

// inlined is what goes into an inline cache, as it is collected.
type inlined struct {
	records map[string]inlineRecord
	memos   map[string]map[string]digest.Digest // by tree and selector
}

type inlineRecord struct {
	rec      cache.Record
	identity bool
	base     map[layers.ID]ocispec.Descriptor
	src      snapshot.Sources
}

// NewInline returns an exporter that writes nothing, but collects what
// [Exporter.Inline] returns.
func NewInline(ctx context.Context, store *snapshot.Store, packer *image.Packer) *Exporter {
	e := NewExporter(ctx, nowhere{}, store, packer, nil, ExportOptions{Min: true})
	e.inline = &inlined{records: map[string]inlineRecord{}, memos: map[string]map[string]digest.Digest{}}
	return e
}

// IsInline reports whether NewInline made e.
func (e *Exporter) IsInline() bool { return e.inline != nil }

// Inline returns the value of [InlineField] for an image whose layers are packed
// as pack says. Equal images
// have equal ones: it has no times, and knows results by what was copied out of
// them.
func (e *Exporter) Inline(ctx context.Context, pack image.PackOptions) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	trees := map[string]string{}
	for _, r := range e.inline.records {
		for i := range max(len(r.rec.Outputs), len(r.rec.Trees)) {
			id := TreeID(r.rec, i)
			trees[id] = e.inline.treeID(r.rec.Key, i, id)
		}
	}
	objects := map[string]string{}
	add := func(name string, v any) error {
		object, err := encode(v)
		objects[name] = string(object)
		return err
	}
	for name, r := range e.inline.records {
		out := Record{Key: r.rec.Key}
		o := e.o
		o.Pack = pack
		made, _, err := (&Exporter{layers: e.layers, packer: e.packer, o: o}).record(ctx, r.rec, r.identity, r.base, r.src)
		if err != nil {
			return nil, fmt.Errorf("inline cache: %w", err)
		}
		for _, output := range made.Outputs {
			output.Tree = trees[output.Tree]
			out.Outputs = append(out.Outputs, output)
		}
		if err := add(name, out); err != nil {
			return nil, fmt.Errorf("inline cache: %w", err)
		}
	}
	for tree, memos := range e.inline.memos {
		id, ok := trees[tree]
		if !ok {
			id = tree // a base image's
		}
		for selector, d := range memos {
			if err := add(memoName(id, selector), Memo{id, selector, d}); err != nil {
				return nil, fmt.Errorf("inline cache: %w", err)
			}
		}
	}
	return json.Marshal(objects)
}

// treeID makes an identity of a result that is the same wherever it was made.
func (in *inlined) treeID(k cache.Key, output int, tree string) string {
	var parts []string
	for selector, d := range in.memos[tree] {
		parts = append(parts, selector+" "+string(d))
	}
	slices.Sort(parts)
	return digest.FromString(fmt.Sprintf("inline %s %d\n%s", k, output, strings.Join(parts, "\n"))).Encoded()
}

// nowhere is the place of an inline cache while it is made.
type nowhere struct{}

func (nowhere) Get(context.Context, string) ([]byte, error) { return nil, ErrNotFound }
func (nowhere) Has(context.Context, string) (bool, error)   { return false, nil }
func (nowhere) Put(context.Context, string, []byte, []blob.Ref, bool) error {
	return nil
}
func (nowhere) Origin() string { return "inline:" }
func (nowhere) String() string { return "type=inline" }
