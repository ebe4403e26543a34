package main

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/connect"
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

// open opens the caches for a build.
func (c caches) open(ctx context.Context, s *store, r *builder.Request) (*connect.Caches, error) {
	warn := func(err error) {
		r.Progress(progress.Event{Time: time.Now(), Kind: progress.Warning, Text: err.Error()})
	}
	all, err := s.connector.Open(ctx, c.from, c.to, connect.Store{Layers: s.layers, Packer: s.packer, Guard: r.Guard}, warn, r.Progress)
	if err != nil {
		return nil, usageError{err}
	}
	r.CacheFrom, r.CacheTo, r.BuildKitFrom, r.BuildKitTo = all.From, all.To, all.BuildKitFrom, all.BuildKitTo
	return all, nil
}
