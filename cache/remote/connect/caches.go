package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/cache/remote/oci"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/progress"
)

// Caches are the caches of one build.
type Caches struct {
	From []*remote.Importer
	To   []*remote.Exporter
	// BuildKitFrom and BuildKitTo are the same in BuildKit's form.
	BuildKitFrom []*buildkit.Importer
	BuildKitTo   []*buildkit.Exporter

	strict []bool
	marks  []mark // by index of To
	warn   func(error)
}

// mark is what is put at the reference of a cache at the end.
type mark struct {
	at   *oci.Repository // nil: nothing, or an image
	what *buildkit.Exporter
}

// Store is what caches work on.
type Store struct {
	Layers *snapshot.Store
	Packer *image.Packer
	Guard  *leak.Guard // knows what must not be written
}

// Open opens caches. warn is told of those that fail.
func (c *Connector) Open(ctx context.Context, from, to []remote.Spec, s Store, warn func(error), report progress.Func) (*Caches, error) {
	warn = once(warn)
	all := &Caches{warn: warn}
	for _, spec := range from {
		backends, foreign, err := c.importers(spec)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", spec, err)
		}
		if foreign != nil {
			foreign.Layers = s.Layers
			foreign.Warn = func(err error) { warn(fmt.Errorf("cache %s is not used: %w", spec, err)) }
			all.BuildKitFrom = append(all.BuildKitFrom, foreign)
		}
		for _, b := range backends {
			im := remote.NewImporter(b, s.Layers, warn)
			im.Mounts = spec.Mounts()
			all.From = append(all.From, im)
		}
	}
	damaged := func(k cache.Key) bool {
		return slices.ContainsFunc(all.From, func(im *remote.Importer) bool { return im.Damaged(k) })
	}
	for _, spec := range to {
		x, err := spec.Export()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", spec, err)
		}
		all.strict, all.marks = append(all.strict, x.Strict), append(all.marks, mark{})
		if spec.Type == remote.TypeInline {
			all.To = append(all.To, remote.NewInline(ctx, s.Layers, s.Packer))
			foreign := &buildkit.Exporter{Inline: true}
			all.marks[len(all.marks)-1] = mark{what: foreign}
			all.BuildKitTo = append(all.BuildKitTo, foreign)
			continue
		}
		b, err := c.Cache(spec)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", spec, err)
		}
		x.Pack.Guard = s.Guard
		if r, ok := b.(*oci.Repository); ok && x.Compat {
			foreign := &buildkit.Exporter{Packer: s.Packer, Pack: x.Pack, Min: x.Min}
			all.marks[len(all.marks)-1] = mark{r, foreign}
			all.BuildKitTo = append(all.BuildKitTo, foreign)
		}
		all.To = append(all.To, remote.NewExporter(ctx, b, s.Layers, s.Packer, damaged, remote.ExportOptions{Pack: x.Pack, Min: x.Min, Mounts: x.Mounts, Progress: report}))
	}
	return all, nil
}

// once has warn called once for each text: what is wrong with a reference is
// found out by all who ask for something there.
func once(warn func(error)) func(error) {
	var mu sync.Mutex
	told := map[string]bool{}
	return func(err error) {
		mu.Lock()
		again := told[err.Error()]
		told[err.Error()] = true
		mu.Unlock()
		if !again {
			warn(err)
		}
	}
}

// importers opens what a --cache-from flag names: with a reference a cache of
// ours or BuildKit's, and an image that may have either inline.
func (c *Connector) importers(spec remote.Spec) ([]remote.Backend, *buildkit.Importer, error) {
	if spec.Type != remote.TypeRegistry {
		b, err := c.Cache(spec)
		layout, ok := b.(interface {
			BuildKit(ctx context.Context, tag, digest string) ([]*buildkit.Manifest, error)
		})
		if err != nil || !ok {
			return []remote.Backend{b}, nil, err
		}
		load := func(ctx context.Context) ([]*buildkit.Manifest, error) {
			return layout.BuildKit(ctx, spec.Attrs["tag"], spec.Attrs["digest"])
		}
		return []remote.Backend{b}, &buildkit.Importer{Load: load, Origin: b.Origin()}, nil
	}
	inline, err := oci.OpenInline(c.Registry, spec.Attrs["ref"], spec.String())
	if err != nil {
		return nil, nil, err
	}
	foreign := &buildkit.Importer{Load: inline.BuildKit, Origin: inline.Origin()}
	b, err := c.Cache(spec)
	if err != nil {
		return []remote.Backend{inline}, foreign, nil // by a digest, say
	}
	return []remote.Backend{b, inline}, foreign, nil
}

// Fields returns the fields that inline caches add to the configuration of an
// image, as export.Image wants them; nil if there are none.
func (c *Caches) Fields() func(context.Context, layers.Tree, image.PackOptions) (map[string]json.RawMessage, error) {
	for i, x := range c.To {
		if x.IsInline() {
			return func(ctx context.Context, t layers.Tree, o image.PackOptions) (map[string]json.RawMessage, error) {
				ours, err := x.Inline(ctx, o)
				if err != nil {
					return nil, err
				}
				theirs, err := c.marks[i].what.Records(ctx, t)
				return map[string]json.RawMessage{remote.InlineField: ours, buildkit.InlineField: theirs}, err
			}
		}
	}
	return nil
}

// Finish waits until everything is written. What could not be is warned of, or
// an error where that was asked for.
func (c *Caches) Finish(ctx context.Context) error {
	var errs []error
	for i, x := range c.To {
		err := x.Wait()
		if err == nil && c.marks[i].at != nil {
			err = c.marks[i].put(ctx)
		}
		switch {
		case err == nil || ctx.Err() != nil:
		case c.strict[i] || errors.As(err, new(*image.LeakError)):
			errs = append(errs, err)
		default:
			c.warn(err)
		}
	}
	return errors.Join(errs...)
}

func (m mark) put(ctx context.Context) error {
	config, layers, err := m.what.Config(ctx)
	if err == nil && config != nil {
		err = m.at.Mark(ctx, config, layers)
	}
	if err != nil {
		err = fmt.Errorf("cache %s is not written in BuildKit's form: %w", m.at, err)
	}
	return err
}
