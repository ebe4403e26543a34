package buildkitapi

import (
	"path"
	"slices"
	"strings"

	"github.com/strake-build/strake/plan"
)

// usedPaths are the paths that steps use of the client's directories, by the
// names of these; nil means all. Only they are copied: a context may be large,
// and a target may need little of it.
func usedPaths(refs []*reference) map[string][]string {
	used := map[string][]string{} // by the local's name; nil: everything
	use := func(s *plan.Step, p string) {
		op, ok := s.Op.(*plan.Local)
		if !ok {
			return
		}
		p = strings.TrimPrefix(path.Clean("/"+p), "/")
		list, known := used[op.Name]
		switch {
		case known && list == nil:
		case p == "":
			used[op.Name] = nil
		case !slices.Contains(list, p):
			used[op.Name] = append(list, p)
		}
	}
	_ = each(refs, func(s *plan.Step) error {
		for i, in := range s.Inputs {
			if in.Step == nil {
				continue
			}
			paths, ok := pathsOf(s.Op, i)
			if !ok {
				paths = []string{"/"}
			}
			for _, p := range paths {
				use(in.Step, p)
			}
		}
		return nil
	})
	for _, r := range refs {
		if r.step != nil {
			use(r.step, "/")
		}
	}
	for _, paths := range used {
		slices.Sort(paths)
	}
	return used
}

// pathsOf are the paths that an op uses of an input; ok is false if it is all of
// it.
func pathsOf(op plan.Op, input int) (paths []string, ok bool) {
	switch op := op.(type) {
	case *plan.File:
		if input == 0 {
			return nil, false
		}
		for _, a := range op.Actions {
			if c, ok := a.(*plan.Copy); ok && c.Input == input {
				paths = append(paths, c.Source)
			}
		}
		return paths, true
	case *plan.Exec:
		if input == 0 {
			return nil, false
		}
		for _, m := range op.Mounts {
			if m.Input == input {
				paths = append(paths, m.Source)
			}
		}
		return paths, true
	}
	return nil, false
}
