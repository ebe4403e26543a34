package buildkitapi

import (
	"context"
	"os"
	"time"

	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/plan"
)

// epochOf is the time of a remote source: of its commit, of its last change, or
// of the newest file in it if it is an archive. It is nil if there is none.
func (j *job) epochOf(ctx context.Context, step *plan.Step) (*time.Time, error) {
	b := j.store.Builder
	if step == nil {
		return nil, nil // the client's directory has no time, as in BuildKit
	}
	switch op := step.Op.(type) {
	case *plan.Git:
		dir, err := b.Root.TempDir("epoch-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir) // goes with the lease otherwise
		at, err := b.Git.Time(ctx, op, dir)
		return &at, err
	case *plan.HTTP:
		at, err := b.HTTP.LastModified(ctx, op)
		if err != nil || !at.IsZero() {
			return &at, err
		}
		return j.newest(j.reference(step, 0, nil), op.Filename)
	case *plan.File:
		// A context that is unpacked.
		if len(step.Inputs) == 2 && step.Inputs[1].Step != nil {
			return j.epochOf(ctx, step.Inputs[1].Step)
		}
	}
	return nil, nil
}

// newest is the time of the newest file in an archive; nil if it is none.
func (j *job) newest(ref *reference, name string) (*time.Time, error) {
	v, p, _, err := j.find(ref, "open", name)
	if err != nil {
		return nil, err
	}
	f, err := v.Open(j.ctx, p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, err := compress.NewReader(f)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	newest, err := source.NewestInTar(plain)
	if err != nil || newest.IsZero() {
		return nil, err
	}
	return &newest, nil
}
