package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
)

// smallBase is the compressed size, in bytes, up to which a base image is
// fetched to look at, even where the rules of docs/decisions/0001-lazy-base.md
// would do without.
const smallBase = 16 << 20

// fileInput opens input i of v, or v's own result if i is -1, as a tree to copy
// from.
func (bd *build) fileInput(ctx context.Context, v *vertex, i int) (file.Input, error) {
	in := v
	if i >= 0 {
		in = v.inputs[i]
	}
	if in == nil {
		return file.Input{}, nil
	}
	if op, ok := in.step.Op.(*plan.Local); ok {
		l, ok := bd.r.Locals[op.Name]
		if !ok {
			return file.Input{}, bd.stepError(v, fmt.Errorf("no build context %q was given", op.Name))
		}
		return file.Input{Tree: l.Dir, Why: l.Why}, nil
	}
	output := 0
	if i >= 0 {
		output = v.step.Inputs[i].Output
	}
	t, err := bd.tree(ctx, in, output)
	if err != nil || len(t) == 0 {
		return file.Input{}, err
	}
	view, err := bd.b.Layers.View(ctx, t, bd.sources())
	if err != nil {
		return file.Input{}, bd.stepError(v, err)
	}
	_, isHTTP := in.step.Op.(*plan.HTTP)
	_, isGit := in.step.Op.(*plan.Git)
	return file.Input{Tree: view, Owned: !isHTTP && !isGit}, nil
}

// file runs a File op. What it makes is a list of entries; contents stay where
// they are if that is the build context, and are linked out of other trees.
func (bd *build) file(ctx context.Context, v *vertex, op *plan.File) (_ []layers.Tree, err error) {
	baseLayers, err := bd.inputTree(ctx, v, 0)
	if err != nil {
		return nil, err
	}
	inputs := make([]file.Input, len(v.inputs))
	for i := 1; i < len(v.inputs); i++ {
		if inputs[i], err = bd.fileInput(ctx, v, i); err != nil {
			return nil, err
		}
	}
	release, err := bd.b.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	bd.started(v)
	defer func() {
		err = bd.stepError(v, err)
		bd.done(v, err)
	}()

	base, err := bd.baseView(ctx, v, op, baseLayers, inputs)
	if err != nil {
		return nil, err
	}
	var stages []string
	defer func() {
		for _, dir := range stages {
			_ = os.RemoveAll(dir) // goes with the lease otherwise
		}
	}()
	stage := func() (string, error) {
		dir, err := bd.b.Root.TempDir("stage-")
		stages = append(stages, dir)
		return dir, err
	}
	entries, err := file.Apply(ctx, op, base, inputs, stage)
	if err != nil {
		return nil, err
	}
	var id layers.ID
	if bd.isRecipe(v, entries) {
		if id, err = bd.b.Layers.AddRecipe(entries); err == nil {
			bd.bind(id, v)
		}
	} else {
		copies := sync.OnceValues(stage)
		id, err = bd.b.Layers.AddEntries(ctx, entries, func(e layers.Entry) (string, error) {
			return hostPath(ctx, inputs, e, copies)
		})
	}
	if err != nil {
		return nil, err
	}
	return []layers.Tree{append(baseLayers[:len(baseLayers):len(baseLayers)], id)}, nil
}

// isRecipe reports whether all contents are inline or in the user's
// directories.
func (bd *build) isRecipe(v *vertex, entries []layers.Entry) bool {
	for _, e := range entries {
		if e.Type != layers.Regular || e.Inline {
			continue
		}
		if e.Origin.Staged != "" {
			return false
		}
		if _, ok := v.inputs[e.Origin.Input].step.Op.(*plan.Local); !ok {
			return false
		}
	}
	return true
}

// hostPath is the file with the content of an entry: one in a layer directory,
// which may be linked, or else a copy.
func hostPath(ctx context.Context, inputs []file.Input, e layers.Entry, copies func() (string, error)) (string, error) {
	in := inputs[e.Origin.Input]
	if view, ok := in.Tree.(*snapshot.View); ok {
		if p, err := view.HostPath(e.Origin.Path); err != nil || p != "" {
			return p, err
		}
	}
	r, err := in.Tree.Open(ctx, e.Origin.Path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	dir, err := copies()
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, "")
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(f, r); err != nil {
		return "", errors.Join(err, f.Close())
	}
	return f.Name(), f.Close()
}

// baseView opens the tree a File op starts from, as far as the op needs it:
// nothing is fetched for a result that does not depend on it. The plan alone
// decides, not what the store happens to hold.
func (bd *build) baseView(ctx context.Context, v *vertex, op *plan.File, t layers.Tree, inputs []file.Input) (file.Tree, error) {
	var hints []string
	bt, err := bd.lazyBase(ctx, v)
	if err != nil {
		return nil, err
	}
	if bt != nil {
		dirs := workDirs(bt.config)
		needed, err := file.NeedsBase(op, inputs, bt.config.Config.User, dirs)
		if err != nil {
			return nil, err
		}
		if !needed {
			t, hints = t[len(bt.tree):], dirs
		}
	}
	var base file.Tree
	if len(t) > 0 {
		view, err := bd.b.Layers.View(ctx, t, bd.sources())
		if err != nil {
			return nil, err
		}
		base = view
	}
	if len(hints) > 0 {
		base = file.Hinted(base, hints)
	}
	return base, nil
}

// lazyBase returns the image that v builds on if nothing has had to unpack it so
// far: no step between them runs anything, and it is too large to be fetched
// just to look at.
func (bd *build) lazyBase(ctx context.Context, v *vertex) (*baseTree, error) {
	for v = v.inputs[0]; v != nil; v = v.inputs[0] {
		switch v.step.Op.(type) {
		case *plan.Image:
			bt, err := bd.baseTree(ctx, v)
			if err != nil {
				return nil, err
			}
			var size int64
			for _, desc := range bt.blobs {
				size += desc.Size
			}
			if size <= smallBase {
				return nil, nil
			}
			return bt, nil
		case *plan.File, *plan.Merge:
		default:
			return nil, nil
		}
	}
	return nil, nil
}
