package builder

import (
	"context"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// localTree is a directory of the user as a tree of one layer, for those who
// want it whole: a bind mount, an export. It is the result of a COPY of
// everything, and stored like one.
func (bd *build) localTree(ctx context.Context, v *vertex) (layers.Tree, error) {
	rec, err := bd.record(ctx, bd.copyAll(v))
	if err != nil {
		return nil, err
	}
	return rec.Outputs[0], nil
}

// copyAll returns the vertex of a step that copies everything from v.
func (bd *build) copyAll(v *vertex) *vertex {
	bd.mu.Lock()
	defer bd.mu.Unlock()
	if v.whole == nil {
		op := &plan.File{Actions: []plan.Action{&plan.Copy{Input: 1, Source: "/", Dest: "/", ContentsOnly: true, CreateParents: true}}}
		v.whole = newVertex(&plan.Step{
			Op:       op,
			Inputs:   []plan.Input{{}, {Step: v.step}},
			Name:     v.step.Name,
			Internal: true,
			Source:   v.step.Source,
		}, v.id+"-copy", []*vertex{nil, v})
		bd.order = append(bd.order, v.whole)
	}
	return v.whole
}

// workDirs returns the paths that an image's configuration tells to be
// directories.
func workDirs(img ocispec.Image) []string {
	var dirs []string
	if d := img.Config.WorkingDir; d != "" {
		dirs = append(dirs, d)
	}
	for v := range img.Config.Volumes {
		dirs = append(dirs, v)
	}
	for _, h := range img.History {
		if d, ok := workdirOf(h.CreatedBy); ok {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// workdirOf returns the directory of a WORKDIR entry of an image's history.
func workdirOf(createdBy string) (string, bool) {
	_, rest, ok := strings.Cut(createdBy, "WORKDIR ")
	if !ok {
		return "", false
	}
	dir, _, _ := strings.Cut(rest, " ")
	return dir, strings.HasPrefix(dir, "/")
}
