package buildkitapi

import (
	"fmt"

	"github.com/strake-build/strake/plan"
)

// A client may use the result of one of its builds in another while both go on,
// as buildx bake does for contexts that are targets. It has the name of the
// reference, which nobody can guess.

// borrow returns the result that id names as an input for steps of j.
func (j *job) borrow(id string) (plan.Input, error) {
	ref, err := j.lookup(id)
	if err == nil && ref != nil {
		return plan.Input{Step: ref.step, Output: ref.output}, nil
	}
	owner, ref := j.s.lend(id)
	if owner == nil {
		return plan.Input{}, fmt.Errorf("no such result %q: its build has ended", id)
	}
	j.onClose(func() error { owner.release(); return nil })
	// Its own build makes it, with the secrets and the credentials that were
	// meant for it.
	if err := owner.evaluate(ref); err != nil {
		return plan.Input{}, err
	}
	return plan.Input{Step: j.adopt(owner, ref.step), Output: ref.output}, nil
}

// lend finds the reference of another build, which is kept until it is released.
func (s *Server) lend(id string) (*job, *reference) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, owner := range s.jobs {
		if ref, err := owner.lookup(id); err == nil && ref != nil && owner.retain() {
			return owner, ref
		}
	}
	return nil, nil
}

// adopt copies steps that were run by owner: here they are only looked up.
func (j *job) adopt(owner *job, top *plan.Step) *plan.Step {
	copies := map[*plan.Step]*plan.Step{}
	_ = plan.Walk(func(s *plan.Step) error {
		c := *s
		c.NoCache = false
		c.Inputs = make([]plan.Input, len(s.Inputs))
		for i, in := range s.Inputs {
			c.Inputs[i] = in
			if in.Step != nil {
				c.Inputs[i].Step = copies[in.Step]
			}
		}
		copies[s] = &c
		if op, ok := s.Op.(*plan.Local); ok {
			owner.mu.Lock()
			l := owner.locals[op.Name]
			owner.mu.Unlock()
			j.mu.Lock()
			j.locals[op.Name] = l
			j.mu.Unlock()
		}
		return nil
	}, top)
	return copies[top]
}
