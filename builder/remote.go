package builder

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/builder/source/gitsource"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// remote returns what an HTTP or Git op stands for now: the digest of the file,
// or the commit. It is asked for once a build, and enters the key.
func (bd *build) remote(ctx context.Context, v *vertex) (string, error) {
	return v.remote.get(func() (string, error) {
		id, err := bd.resolveRemote(ctx, v.step.Op)
		if err != nil {
			bd.started(v)
			bd.done(v, err)
		}
		return id, bd.stepError(v, err)
	})
}

func (bd *build) resolveRemote(ctx context.Context, op plan.Op) (string, error) {
	switch op := op.(type) {
	case *plan.HTTP:
		if bd.b.HTTP == nil {
			return "", errors.New("http sources are not available")
		}
		if op.Pin != "" {
			return op.Pin.String(), op.Pin.Validate()
		}
		d, err := bd.b.HTTP.Resolve(ctx, op)
		return d.String(), err
	case *plan.Git:
		if bd.b.Git == nil {
			return "", errors.New("git sources are not available")
		}
		if op.Pin != "" {
			return op.Pin, nil
		}
		return bd.git().Resolve(ctx, op)
	}
	return "", errors.New("not a remote source")
}

// git is the client for this build, which has its secrets.
func (bd *build) git() *gitsource.Client {
	c := *bd.b.Git
	if bd.r.Secret != nil {
		c.Token = bd.r.Secret
	}
	return &c
}

// fetch makes the tree of an HTTP or Git op: one layer.
func (bd *build) fetch(ctx context.Context, v *vertex) (_ []layers.Tree, err error) {
	bd.started(v)
	defer func() {
		err = bd.stepError(v, err)
		bd.done(v, err)
	}()
	dir, err := bd.b.Root.TempDir("fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	entries, err := bd.fetchEntries(ctx, v, dir)
	if err != nil {
		return nil, err
	}
	id, err := bd.b.Layers.AddEntries(ctx, entries, func(e layers.Entry) (string, error) { return e.Origin.Staged, nil })
	if err != nil {
		return nil, err
	}
	return []layers.Tree{{id}}, nil
}

func (bd *build) fetchEntries(ctx context.Context, v *vertex, dir string) ([]layers.Entry, error) {
	if op, ok := v.step.Op.(*plan.HTTP); ok {
		return bd.b.HTTP.Fetch(ctx, op.Pinned(), dir)
	}
	commit, err := bd.remote(ctx, v)
	if err != nil {
		return nil, err
	}
	op := v.step.Op.(*plan.Git)
	var log io.Writer
	if op.Advice {
		log = bd.log(v, 2)
	}
	if err := bd.git().Checkout(ctx, op, commit, dir, log); err != nil {
		return nil, err
	}
	return source.Staged(ctx, dir)
}
