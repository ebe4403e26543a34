package parser

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// lookAhead tells Options.Ahead what the stages reached copy from the main
// context, as far as that is plain without the variables of base images.
func (t *target) lookAhead(reached map[*stage]bool) {
	if t.o.Ahead == nil {
		return
	}
	if _, replaced := t.o.Contexts["context"]; replaced {
		return
	}
	var paths []string
	for _, s := range t.stages {
		if !reached[s] {
			continue
		}
		for _, c := range s.commands {
			for _, src := range contextSources(c.Command) {
				// Neither variables nor quotes nor patterns.
				if !strings.ContainsAny(src, "$\\'\"`*?[") {
					paths = append(paths, src)
				}
			}
		}
	}
	if len(paths) > 0 {
		t.o.Ahead(paths)
	}
}

// contextSources are the sources of an instruction that copies them whole from
// the build context.
func contextSources(c instructions.Command) []string {
	switch c := c.(type) {
	case *instructions.CopyCommand:
		if c.From == "" && !c.Parents {
			return c.SourcePaths
		}
	case *instructions.AddCommand:
		var paths []string
		for _, src := range c.SourcePaths {
			if _, git, err := parseGit(src); !git && err == nil && !isURL(src) {
				paths = append(paths, src)
			}
		}
		return paths
	}
	return nil
}
