package parser

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/strake-build/strake/plan"
)

// The arguments that have an SBOM tell of more than the result: a boolean, or
// the names of stages.
const (
	scanContext = "BUILDKIT_SBOM_SCAN_CONTEXT"
	scanStage   = "BUILDKIT_SBOM_SCAN_STAGE"
)

// scanned reports whether an argument is on for a stage: one that the stage
// declares, else a global one.
func (s *stage) scanned(name string) bool {
	value, on := s.t.globals.Get(name)
	for _, a := range s.args {
		if a.Key == name && a.Value != nil {
			value, on = *a.Value, true
		}
	}
	if !on {
		return false
	}
	if b, err := strconv.ParseBool(value); err == nil {
		return b
	}
	return slices.Contains(strings.Split(value, ","), s.Name)
}

// scans are what an SBOM is to tell of besides the result, by names.
func (t *target) scans() (map[string]plan.Input, error) {
	out := map[string]plan.Input{}
	if t.final.scanned(scanContext) {
		step, err := t.final.mainContext()
		if err != nil {
			return nil, err
		}
		out["context"] = plan.Input{Step: step}
	}
	reached := reachable(t.final)
	for _, s := range t.stages {
		if s == t.final || !reached[s] || s.replaced || !s.scanned(scanStage) {
			continue
		}
		name := s.Name
		if name == "" {
			name = fmt.Sprintf("stage-%d", s.index)
		}
		out[name] = plan.Input{Step: s.step}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}
