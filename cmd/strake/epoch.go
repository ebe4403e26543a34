package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/plan"
)

// epochArg is the build arg, and the variable of the environment, that says how
// old an image is.
const epochArg = "SOURCE_DATE_EPOCH"

// epoch is what SOURCE_DATE_EPOCH was given as, by --build-arg,
// --source-date-epoch or the environment: a number of seconds, or the name of a
// source ("context") whose time it stands for. "" is none.
func (o buildOptions) epoch(e *env) (string, error) {
	value, from := e.getenv(epochArg), epochArg+"="
	if o.sourceDateEpoch != "" {
		value, from = o.sourceDateEpoch, "--source-date-epoch "
	}
	for _, a := range o.args {
		v, ok := strings.CutPrefix(a, epochArg+"=")
		if !ok {
			continue
		}
		if o.sourceDateEpoch != "" && v != o.sourceDateEpoch {
			return "", usagef("--source-date-epoch %s: --build-arg %s says otherwise", o.sourceDateEpoch, a)
		}
		value, from = v, epochArg+"="
	}
	if _, ok := epochSeconds(value); value != "" && !ok && strings.Trim(value, "0123456789-+.:TZ ") == "" {
		return "", usagef("%s%s: it is a number of seconds since 1970, or context", from, value)
	}
	return value, nil
}

// epochSeconds is a value of SOURCE_DATE_EPOCH that is a time.
func epochSeconds(value string) (time.Time, bool) {
	n, err := strconv.ParseInt(value, 10, 64)
	return time.Unix(n, 0).UTC(), err == nil
}

// epochOf tells the time of a source that SOURCE_DATE_EPOCH names.
func epochOf(in *inputs, b *builder.Builder) func(context.Context, *plan.Step) (*time.Time, error) {
	return func(ctx context.Context, step *plan.Step) (*time.Time, error) {
		var at time.Time
		var err error
		if step == nil {
			at, err = in.changed(ctx)
		} else {
			at, err = sourceTime(ctx, b, step.Op)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", epochArg, err)
		}
		if at.IsZero() {
			return nil, nil
		}
		at = at.Truncate(time.Second)
		return &at, nil
	}
}

// sourceTime is the time of a remote source: of its commit, or when the server
// says that it was changed, or that of the newest file of an archive.
func sourceTime(ctx context.Context, b *builder.Builder, op plan.Op) (time.Time, error) {
	switch op := op.(type) {
	case *plan.Git:
		return gitTime(ctx, b, op)
	case *plan.HTTP:
		if at, err := b.HTTP.LastModified(ctx, op); err != nil || !at.IsZero() {
			return at, err
		}
		return newestFetched(ctx, b, op)
	}
	return time.Time{}, nil
}

func gitTime(ctx context.Context, b *builder.Builder, op *plan.Git) (time.Time, error) {
	dir, err := b.Root.TempDir("epoch-")
	if err != nil {
		return time.Time{}, err
	}
	defer os.RemoveAll(dir) // goes with the lease otherwise
	return b.Git.Time(ctx, op, dir)
}

func newestFetched(ctx context.Context, b *builder.Builder, op *plan.HTTP) (time.Time, error) {
	dir, err := b.Root.TempDir("epoch-")
	if err != nil {
		return time.Time{}, err
	}
	defer os.RemoveAll(dir)
	entries, err := b.HTTP.Fetch(ctx, op, dir)
	if err != nil || len(entries) != 1 {
		return time.Time{}, err
	}
	f, err := os.Open(entries[0].Origin.Staged)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	plain, err := compress.NewReader(f)
	if err != nil {
		return time.Time{}, err
	}
	defer plain.Close()
	return source.NewestInTar(plain)
}
