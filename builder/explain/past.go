package explain

import (
	"slices"

	"github.com/strake-build/strake/state/builds"
)

// maxPast is how many earlier builds a build is compared with: usually the first
// of them has all steps.
const maxPast = 5

// Past chooses, of all builds, those that r can be compared with, the best
// first: older ones of the same context, if that has a name, and build file,
// and of these the ones with the same target and platforms; the latest first.
// If there is none, the last builds that have half of its steps.
func Past(r builds.Record, steps []builds.Step, all []builds.Record) []Build {
	type ranked struct {
		builds.Record
		rank int
	}
	var list []ranked
	for _, o := range all {
		if o.Ref == r.Ref || !o.Created.Before(r.Created) || o.Status == builds.Running {
			continue
		}
		rank := 0
		if r.Context != "" && o.Context == r.Context && o.Frontend == r.Frontend && o.Attrs["filename"] == r.Attrs["filename"] {
			rank = 1
			for _, k := range []string{"target", "platform"} {
				if o.Attrs[k] == r.Attrs[k] {
					rank++
				}
			}
		}
		list = append(list, ranked{o, rank})
	}
	slices.SortStableFunc(list, func(a, b ranked) int { return b.rank - a.rank })
	var past []Build
	known := len(list) > 0 && list[0].rank > 0
	for _, o := range list {
		if len(past) == maxPast || known && o.rank == 0 {
			break
		}
		b, err := Open(o.Record)
		if err != nil || len(b.Steps) == 0 || !known && !alike(steps, b.Steps) {
			continue // damaged, or no use
		}
		past = append(past, b)
	}
	return past
}

// alike reports whether half of the steps are in another build, too.
func alike(steps, others []builds.Step) bool {
	texts := map[string]bool{}
	for _, o := range others {
		if _, text := splitName(o); !o.Internal {
			texts[text] = true
		}
	}
	n, found := 0, 0
	for _, s := range steps {
		if s.Internal || s.Kind == "local" {
			continue
		}
		n++
		if _, text := splitName(s); texts[text] {
			found++
		}
	}
	return n > 0 && 2*found >= n
}
