package plan

// Walk calls fn once for each of the steps and those that they need, inputs
// first. It ends with fn's first error. A step that is nil is passed over.
func Walk(fn func(*Step) error, steps ...*Step) error {
	seen := map[*Step]bool{}
	var walk func(*Step) error
	walk = func(s *Step) error {
		if s == nil || seen[s] {
			return nil
		}
		seen[s] = true
		for _, in := range s.Inputs {
			if err := walk(in.Step); err != nil {
				return err
			}
		}
		return fn(s)
	}
	for _, s := range steps {
		if err := walk(s); err != nil {
			return err
		}
	}
	return nil
}

// Walk is Walk for all that the targets and their scans need.
func (b *Build) Walk(fn func(*Step) error) error {
	var steps []*Step
	for _, t := range b.Targets {
		steps = append(steps, t.Step)
		for _, in := range t.Scans {
			steps = append(steps, in.Step)
		}
	}
	return Walk(fn, steps...)
}
