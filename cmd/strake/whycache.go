package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/strake-build/strake/builder/explain"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/state/builds"
)

// Records of builds travel with remote caches: the last one of each build file,
// target and platforms. What was built on another machine can be compared with.

func sharedName(r builds.Record) string {
	return remote.BuildName(r.Attrs["filename"], r.Attrs["target"], r.Attrs["platform"])
}

// share writes the record of a build to the caches that got its results. That
// it can't is worth a warning.
func (c caches) share(ctx context.Context, s *store, r builds.Record, guard *leak.Guard, e *env) {
	if len(c.to) == 0 {
		return
	}
	data, err := explain.Share(r, func(plain []byte) error { return image.CheckJSON(guard, "record of the build", plain) })
	if errors.As(err, new(*image.LeakError)) {
		e.warnf("the record of the build is not written to caches: %v", err)
	}
	if err != nil || data == nil {
		return // explanations then are less good, no more
	}
	for _, spec := range c.to {
		if spec.Type == remote.TypeInline {
			continue
		}
		b, err := s.connector.Cache(spec)
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, shareTimeout)
			err = b.Put(ctx, sharedName(r), data, nil, false)
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			e.warnf("write the record of the build to %s: %v", spec, err)
		}
	}
}

// shareBy has a record compared with what caches tell of, and handed on to them.
func (r *recording) shareBy(ctx context.Context, c caches, s *store, guard *leak.Guard) {
	if r == nil {
		return
	}
	r.share = func(record builds.Record) { c.share(ctx, s, record, guard, r.e) }
	r.elsewhere = func(now explain.Build, record builds.Record) []explain.Build {
		for _, spec := range c.from {
			if b, err := s.sharedBuild(ctx, spec, record); err == nil && explain.Alike(now, b) {
				return []explain.Build{b}
			}
		}
		return nil // no explanation is no failure
	}
}

// shareTimeout is how long a cache may take for the record of a build.
const shareTimeout = 10 * time.Second

// sharedBuild is the build like r that a cache tells of.
func (s *store) sharedBuild(ctx context.Context, spec remote.Spec, r builds.Record) (explain.Build, error) {
	b, err := s.connector.Cache(spec)
	if err != nil {
		return explain.Build{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, shareTimeout)
	defer cancel()
	data, err := b.Get(ctx, sharedName(r))
	if errors.Is(err, remote.ErrNotFound) {
		return explain.Build{}, fmt.Errorf("%s has no record of such a build: one is written by --cache-to", spec)
	}
	if err != nil {
		return explain.Build{}, err
	}
	return explain.Received(data)
}

// againstCache returns the build that --against names if that is a cache: it has
// the form of --cache-from with a type.
func againstCache(ctx context.Context, s *store, against string, now explain.Build, r builds.Record) ([]explain.Build, error) {
	spec, err := remote.ParseImport(against)
	if err != nil {
		return nil, usagef("--against %s: %w", against, err)
	}
	b, err := s.sharedBuild(ctx, spec, r)
	if err != nil {
		return nil, fmt.Errorf("--against: %w", err)
	}
	if !explain.Alike(now, b) {
		return nil, fmt.Errorf("--against: the last build that wrote to %s has other steps: it was of something else", spec)
	}
	return []explain.Build{b}, nil
}

func isCache(against string) bool { return strings.Contains(against, "type=") }
