package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

// cacheOptions are the flags of remote caches.
type cacheOptions struct {
	cacheFrom, cacheTo []string
}

func (o *cacheOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.cacheFrom, "cache-from", nil, "look for results in a remote cache, too: `REF`, or type=registry|local|gha|s3,...; may be repeated")
	f.StringArrayVar(&o.cacheTo, "cache-to", nil, "write results to a remote cache: `type=registry,ref=REF,mode=max`, or inline, local, gha, s3; may be repeated")
}

// caches are the flags, parsed.
type caches struct {
	from, to []remote.Spec
}

func (o cacheOptions) parse() (c caches, err error) {
	for _, s := range o.cacheFrom {
		spec, err := remote.ParseImport(s)
		if err != nil {
			return c, usagef("--cache-from %s: %w", s, err)
		}
		c.from = append(c.from, spec)
	}
	for _, s := range o.cacheTo {
		spec, err := remote.ParseExport(s)
		if err == nil {
			_, err = spec.Export()
		}
		if err != nil {
			return c, usagef("--cache-to %s: %w", s, err)
		}
		c.to = append(c.to, spec)
	}
	return c, nil
}

// insecure are the registries that registry.insecure=true was said of.
func (c caches) insecure() (hosts []string) {
	for _, s := range slices.Concat(c.from, c.to) {
		if on, _ := strconv.ParseBool(s.Attrs["registry.insecure"]); on {
			if host, err := registry.Host(s.Attrs["ref"]); err == nil {
				hosts = append(hosts, host)
			}
		}
	}
	return hosts
}

// open opens the caches for a build. finish waits until everything is written
// and tells what could not be: as a warning, or as an error where that was asked
// for.
func (c caches) open(ctx context.Context, s *store, r *builder.Request) (finish func() error, err error) {
	warn := func(err error) {
		r.Progress(progress.Event{Time: time.Now(), Kind: progress.Warning, Text: err.Error()})
	}
	for _, spec := range c.from {
		b, err := s.connector.Cache(spec)
		if err != nil {
			return nil, usagef("--cache-from %s: %w", spec, err)
		}
		r.CacheFrom = append(r.CacheFrom, remote.NewImporter(b, s.layers, warn))
	}
	var strict []bool
	for _, spec := range c.to {
		b, err := s.connector.Cache(spec)
		if err != nil {
			return nil, usagef("--cache-to %s: %w", spec, err)
		}
		x, err := spec.Export()
		if err != nil {
			return nil, err
		}
		from := r.CacheFrom
		damaged := func(k cache.Key) bool {
			return slices.ContainsFunc(from, func(im *remote.Importer) bool { return im.Damaged(k) })
		}
		x.Pack.Guard = r.Guard
		r.CacheTo = append(r.CacheTo, remote.NewExporter(ctx, b, s.layers, s.packer, damaged, remote.ExportOptions{Pack: x.Pack, Min: x.Min, Progress: r.Progress}))
		strict = append(strict, x.Strict)
	}
	to := r.CacheTo
	return func() error {
		var errs []error
		for i, x := range to {
			err := x.Wait()
			switch {
			case err == nil || ctx.Err() != nil:
			case strict[i] || errors.As(err, new(*image.LeakError)):
				errs = append(errs, err)
			default:
				warn(err)
			}
		}
		return errors.Join(errs...)
	}, nil
}
