package parser

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
)

// epochOf is the time of the source that SOURCE_DATE_EPOCH names: "context", a
// named context, or a stage that adds one source to scratch and does no more.
func (t *target) epochOf(ctx context.Context, name string) (*time.Time, error) {
	step, err := t.epochSource(name)
	if err != nil || t.o.EpochOf == nil {
		return nil, err
	}
	return t.o.EpochOf(ctx, step)
}

// epochSource is the step of that source; nil if it is a directory.
func (t *target) epochSource(name string) (*plan.Step, error) {
	if name == "context" {
		return t.o.Contexts["context"].Step, nil
	}
	if c, ok := t.context(name, t.platform); ok {
		return c.Step, nil
	}
	for _, st := range t.syntax.stages {
		if strings.EqualFold(st.Name, name) {
			step, err := t.epochStage(st)
			return step, t.file.at(st.Location, err)
		}
	}
	return nil, fmt.Errorf("invalid %s: %s", epochArg, shorten(name))
}

func (t *target) epochStage(st instructions.Stage) (step *plan.Step, err error) {
	const only = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD"
	if st.BaseName != scratch {
		return nil, errors.New("SOURCE_DATE_EPOCH stage must use FROM scratch")
	}
	for _, c := range st.Commands {
		add, ok := c.(*instructions.AddCommand)
		if !ok {
			return nil, fmt.Errorf("SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported %s instruction", c.Name())
		}
		if step != nil || len(add.SourceContents) != 0 || len(add.SourcePaths) != 1 {
			return nil, errors.New(only)
		}
		if step, err = t.epochAdd(add); err != nil {
			return nil, err
		}
	}
	if step == nil {
		return nil, errors.New(only)
	}
	return step, nil
}

func (t *target) epochAdd(add *instructions.AddCommand) (*plan.Step, error) {
	word, err := t.expander.word(add.SourcePaths[0], t.globals)
	if err != nil {
		return nil, err
	}
	src := word.Result
	if g, ok, err := parseGit(src); ok {
		return &plan.Step{Op: &g.op, Name: "[internal] load git source " + plan.Redact(src), Internal: true}, err
	}
	if !isURL(src) {
		return nil, errors.New("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")
	}
	return &plan.Step{Op: &plan.HTTP{URL: src, Filename: urlBase(src), Checksum: digest.Digest(add.Checksum)}, Name: "[internal] load " + plan.Redact(src), Internal: true}, nil
}
