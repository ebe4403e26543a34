package main

import (
	"errors"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/plan"
)

// verified says where in the build file the step is that made a difference.
func verified(err error) error {
	var d *builder.DifferenceError
	if !errors.As(err, &d) || d.Step.Source == nil {
		return err
	}
	return &plan.Error{Source: d.Step.Source, Err: d, Hint: "docs/reproducible.md has the usual causes: dates, random names, the order of directories, the number of processors"}
}
