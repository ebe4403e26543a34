package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/oci"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/progress"
)

// Caches are the caches of one build.
type Caches struct {
	From []*remote.Importer
	To   []*remote.Exporter

	strict []bool
	marks  []*oci.Repository // to be marked at the end; nil: not
	warn   func(error)
}

// Store is what caches work on.
type Store struct {
	Layers *snapshot.Store
	Packer *image.Packer
	Guard  *leak.Guard // knows what must not be written
}

// Open opens caches. warn is told of those that fail.
func (c *Connector) Open(ctx context.Context, from, to []remote.Spec, s Store, warn func(error), report progress.Func) (*Caches, error) {
	all := &Caches{warn: warn}
	for _, spec := range from {
		backends, err := c.importers(spec)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", spec, err)
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
		all.strict, all.marks = append(all.strict, x.Strict), append(all.marks, nil)
		if spec.Type == remote.TypeInline {
			all.To = append(all.To, remote.NewInline(ctx, s.Layers, s.Packer))
			continue
		}
		b, err := c.Cache(spec)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", spec, err)
		}
		if r, ok := b.(*oci.Repository); ok && x.Compat {
			all.marks[len(all.marks)-1] = r
		}
		x.Pack.Guard = s.Guard
		all.To = append(all.To, remote.NewExporter(ctx, b, s.Layers, s.Packer, damaged, remote.ExportOptions{Pack: x.Pack, Min: x.Min, Mounts: x.Mounts, Progress: report}))
	}
	return all, nil
}

// importers opens what a --cache-from flag names: with a reference both a cache,
// and an image that may have one inline.
func (c *Connector) importers(spec remote.Spec) ([]remote.Backend, error) {
	if spec.Type != remote.TypeRegistry {
		b, err := c.Cache(spec)
		return []remote.Backend{b}, err
	}
	inline, err := oci.OpenInline(c.Registry, spec.Attrs["ref"], spec.String())
	if err != nil {
		return nil, err
	}
	b, err := c.Cache(spec)
	if err != nil {
		return []remote.Backend{inline}, nil // by a digest, say
	}
	return []remote.Backend{b, inline}, nil
}

// Fields returns the fields that inline caches add to the configuration of an
// image, as export.Image wants them; nil if there are none.
func (c *Caches) Fields() func(context.Context, image.PackOptions) (map[string]json.RawMessage, error) {
	for _, x := range c.To {
		if x.IsInline() {
			return func(ctx context.Context, o image.PackOptions) (map[string]json.RawMessage, error) {
				data, err := x.Inline(ctx, o)
				return map[string]json.RawMessage{remote.InlineField: data}, err
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
		if err == nil && c.marks[i] != nil {
			err = c.marks[i].Mark(ctx)
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
