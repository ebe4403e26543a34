package builder

import (
	"context"
	"errors"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// fetched is what an HTTP or Git op stands for now.
type fetched struct {
	identity string // of the content
}

func (bd *build) fetched(ctx context.Context, v *vertex, op *plan.HTTP) (*fetched, error) {
	return nil, bd.stepError(v, errors.New("http sources are not supported"))
}

func (bd *build) cloned(ctx context.Context, v *vertex, op *plan.Git) (*fetched, error) {
	return nil, bd.stepError(v, errors.New("git sources are not supported"))
}

func (bd *build) http(ctx context.Context, v *vertex, op *plan.HTTP) ([]layers.Tree, error) {
	return nil, errors.New("http sources are not supported")
}

func (bd *build) git(ctx context.Context, v *vertex, op *plan.Git) ([]layers.Tree, error) {
	return nil, errors.New("git sources are not supported")
}
