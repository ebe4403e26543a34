// Package explain tells why steps of a build were run: what of all that their
// keys are made of is not what it was in an earlier build.
//
// It compares records of builds and runs nothing. A step is compared with the
// one of an earlier build that has its place: the same stage and platform, and
// the same text, or if that was changed, a similar one between the same
// neighbours.
package explain

import (
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/state/builds"
)

// Build is a build as it was recorded.
type Build struct {
	Ref   string
	Attrs map[string]string // see builds.Record
	Steps []builds.Step
	// Files opens a list of files; see builds.Record. nil: there are none.
	Files func(d digest.Digest) (io.ReadCloser, error)
}

// Open reads the record of a build.
func Open(r builds.Record) (Build, error) {
	steps, err := r.Steps()
	return Build{Ref: r.Ref, Attrs: r.Attrs, Steps: steps, Files: r.Files}, err
}

// Kind is the kind of a cause.
type Kind string

// The kinds of causes.
const (
	File     Kind = "file"     // a file that is copied or mounted
	Arg      Kind = "arg"      // a build argument
	Env      Kind = "env"      // a variable
	Command  Kind = "command"  // what RUN runs
	Base     Kind = "base"     // an image: its reference or its digest
	Mount    Kind = "mount"    // bind, cache and tmpfs mounts
	Secret   Kind = "secret"   // the ID or the options of a secret
	SSH      Kind = "ssh"      // those of an agent
	Platform Kind = "platform" // what it is built for
	Source   Kind = "source"   // what a URL or a git reference stands for
	Option   Kind = "option"   // anything else that the step says
	New      Kind = "new"      // there was no such step
	From     Kind = "from"     // another stage is used
	NoCache  Kind = "no-cache" // it was asked for
	Pruned   Kind = "pruned"   // the result was made, but is no longer kept
	Failed   Kind = "failed"   // the earlier build got no result
	Unknown  Kind = "unknown"  // the records don't tell
)

// How something changed.
const (
	Changed = "changed"
	Added   = "added"
	Removed = "removed"
	Renamed = "renamed" // from Old
	Mode    = "mode"    // of a file
	Owner   = "owner"
	Type    = "type"
)

// Cause is one difference between two builds.
type Cause struct {
	Kind Kind `json:"kind"`
	// Subject is what differs: a path in the context, the name of a variable,
	// the reference of an image, the ID of a secret.
	Subject string `json:"subject,omitempty"`
	Change  string `json:"change,omitempty"`
	Old     string `json:"old,omitempty"`
	New     string `json:"new,omitempty"`
	// Arg is the build argument that made the difference, if it is one.
	Arg string `json:"arg,omitempty"`
	// In is the step where it is, if that is not the one explained: an
	// earlier one of the same branch, whose result was there.
	In string `json:"in,omitempty"`
}

// Finding explains a step that was run.
type Finding struct {
	Step     string `json:"step"` // "[build 2/4] RUN make"
	Stage    string `json:"stage,omitempty"`
	Source   string `json:"source,omitempty"` // "Dockerfile:3"
	Platform string `json:"platform,omitempty"`
	// Against is the build that it is compared with.
	Against string `json:"against,omitempty"`
	// Causes are what differs, the first one first. More are not listed.
	Causes []Cause `json:"causes"`
	More   int     `json:"more,omitempty"`
	// Follows are the steps before it that were run, too.
	Follows []string `json:"follows,omitempty"`

	index int
}

// maxCauses is how many causes of a step are listed.
const maxCauses = 100

// Explain returns a finding for each branch of the build in which steps were
// run: for the first of them. They are in the order of the build file. The builds in before are those to compare with,
// the preferred one first; a step is compared with the first that got to it.
func Explain(now Build, before []Build) []Finding {
	e := newExplainer(now, before)
	found := map[int]Finding{}
	for i := range now.Steps {
		if missed(now.Steps[i]) {
			found[i] = e.step(i)
		}
	}
	var roots []Finding
	for i := range now.Steps {
		f, ok := found[i]
		if !ok || len(f.Causes) == 0 {
			continue
		}
		weak := f.weak()
		drop := false
		for j, g := range found {
			if i == j || len(g.Causes) == 0 {
				continue
			}
			// Of a branch the first counts, unless its result was just no
			// longer there: nobody would have asked for it then.
			if e.needs(i, j) && (!g.weak() || weak) || weak && !g.weak() && e.needs(j, i) {
				drop = true
			}
		}
		if !drop {
			roots = append(roots, f)
		}
	}
	slices.SortStableFunc(roots, func(a, b Finding) int { return line(a.Source) - line(b.Source) })
	return roots
}

// One explains one step, by its index; ok is false if it was not run.
func One(now Build, before []Build, i int) (f Finding, ok bool) {
	if !missed(now.Steps[i]) {
		return Finding{}, false
	}
	return newExplainer(now, before).step(i), true
}

// line is the line in a place, "Dockerfile:3" or "Dockerfile:3:1".
func line(source string) int {
	parts := strings.Split(source, ":")
	for _, p := range parts[1:] {
		if n, err := strconv.Atoi(p); err == nil {
			return n
		}
	}
	return 0
}

// OfStage returns the findings that concern a stage: about its steps, or what
// they need. ok is false if the build has no step of it.
func OfStage(now Build, findings []Finding, stage string) (of []Finding, ok bool) {
	e := newExplainer(now, nil)
	for _, f := range findings {
		for i, s := range now.Steps {
			if strings.EqualFold(splitGroup(s), stage) && (i == f.index || e.needs(i, f.index)) {
				of = append(of, f)
				break
			}
		}
	}
	return of, stage != "" && len(StepsOf(now, stage)) > 0
}

// StepsOf are the steps of a stage.
func StepsOf(now Build, stage string) []builds.Step {
	var steps []builds.Step
	for _, s := range now.Steps {
		if strings.EqualFold(splitGroup(s), stage) {
			steps = append(steps, s)
		}
	}
	return steps
}

// weak: it was run only because something else asked for it.
func (f Finding) weak() bool { return f.Causes[0].Kind == Pruned || f.Causes[0].Kind == Failed }

// missed reports whether a step was run.
func missed(s builds.Step) bool {
	if s.Kind == "image" || s.Kind == "local" {
		return false
	}
	return s.Outcome == builds.Ran || s.Outcome == builds.StepFailed || s.Outcome == builds.StepStopped
}

type explainer struct {
	now    Build
	before []past
	above  []map[int]bool // what a step needs, by its index
}

// past is an earlier build, and which of its steps those of the present one
// are: -1 for none.
type past struct {
	Build
	step []int
}

func newExplainer(now Build, before []Build) *explainer {
	e := &explainer{now: now}
	for _, b := range before {
		if len(b.Steps) > 0 {
			e.before = append(e.before, past{b, align(now.Steps, b.Steps)})
		}
	}
	for i, s := range now.Steps {
		m := map[int]bool{}
		for _, in := range s.Inputs {
			if in.Step >= 0 && in.Step < i {
				m[in.Step] = true
				for k := range e.above[in.Step] {
					m[k] = true
				}
			}
		}
		e.above = append(e.above, m)
	}
	return e
}

// needs reports whether step i needs step j.
func (e *explainer) needs(i, j int) bool { return e.above[i][j] }

// step explains a step that was run.
func (e *explainer) step(i int) Finding {
	s := e.now.Steps[i]
	group, _ := splitName(s)
	f := Finding{Step: s.Name, Stage: group, Source: s.Source, Platform: s.Platform, index: i}
	for _, in := range s.Inputs {
		if in.Step >= 0 && missed(e.now.Steps[in.Step]) {
			f.Follows = append(f.Follows, e.now.Steps[in.Step].Name)
		}
	}
	p, o := e.counterpart(i)
	if p != nil {
		f.Against = p.Ref
	}
	switch {
	case s.Miss == builds.MissNoCache:
		if len(f.Follows) == 0 {
			f.Causes = []Cause{{Kind: NoCache}}
		}
	case p == nil:
		f.Causes = e.new(s, &f)
	default:
		seen := map[int]bool{}
		causes := e.differences(p, i, o, seen)
		if len(causes) == 0 && len(f.Follows) == 0 {
			causes = []Cause{unchanged(s, p.Steps[o])}
		}
		for k := range causes {
			e.blame(p, &causes[k])
		}
		f.Causes = causes
	}
	if n := len(f.Causes); n > maxCauses {
		f.More, f.Causes = n-maxCauses, f.Causes[:maxCauses]
	}
	return f
}

// counterpart is the step of an earlier build to compare step i with: one that
// was built on the same, if there is such a build. Then what differs is in the
// step itself.
func (e *explainer) counterpart(i int) (p *past, o int) {
	o = -1
	for k := range e.before {
		q := &e.before[k]
		j := q.step[i]
		if j < 0 || q.Steps[j].Key == "" {
			continue
		}
		if p == nil {
			p, o = q, j
		}
		if slices.EqualFunc(e.now.Steps[i].Inputs, q.Steps[j].Inputs, func(a, b builds.Input) bool {
			return a.ID == b.ID || !strings.HasPrefix(a.ID, "key:")
		}) {
			return q, j
		}
	}
	return p, o
}

// new is why there is nothing to compare a step with.
func (e *explainer) new(s builds.Step, f *Finding) []Cause {
	if len(e.before) == 0 {
		return []Cause{{Kind: New}}
	}
	f.Against = e.before[0].Ref
	var others []string
	for _, o := range e.before[0].Steps {
		if o.Platform == s.Platform {
			return []Cause{{Kind: New, Change: Added}}
		}
		if o.Kind != "local" && !slices.Contains(others, o.Platform) {
			others = append(others, o.Platform)
		}
	}
	return []Cause{{Kind: Platform, Subject: s.Platform, Change: Added, Old: strings.Join(others, ","), New: s.Platform}}
}

// unchanged is why a step was run though nothing differs.
func unchanged(s, o builds.Step) Cause {
	switch {
	case s.Key != o.Key:
		return Cause{Kind: Unknown}
	case o.Outcome == builds.StepFailed:
		return Cause{Kind: Failed, Change: "failed"}
	case o.Outcome == builds.StepStopped || o.Outcome == builds.Unneeded:
		return Cause{Kind: Failed, Change: "stopped"}
	}
	return Cause{Kind: Pruned}
}

// differences compares step i with step o of p, and what they use.
func (e *explainer) differences(p *past, i, o int, seen map[int]bool) []Cause {
	if seen[i] {
		return nil
	}
	seen[i] = true
	s, old := e.now.Steps[i], p.Steps[o]
	if s.Key != "" && s.Key == old.Key {
		return nil
	}
	var causes []Cause
	for k := range max(len(s.Inputs), len(old.Inputs)) {
		causes = append(causes, e.input(p, s, old, k, seen)...)
	}
	return append(causes, compareParts(s, old)...)
}

// none is the input of a step that has none in its place.
var none = builds.Input{Step: -1}

// input compares input k of two steps.
func (e *explainer) input(p *past, s, old builds.Step, k int, seen map[int]bool) []Cause {
	a, b := none, none
	if k < len(s.Inputs) {
		a = s.Inputs[k]
	}
	if k < len(old.Inputs) {
		b = old.Inputs[k]
	}
	if a.ID == b.ID && a.ID != "" || a.Step < 0 && b.Step < 0 {
		return nil
	}
	if a.Step < 0 || b.Step < 0 || k >= len(s.Inputs) || k >= len(old.Inputs) {
		return []Cause{{Kind: Base, Change: Changed, Old: inputName(p.Steps, b), New: inputName(e.now.Steps, a)}}
	}
	as, bs := e.now.Steps[a.Step], p.Steps[b.Step]
	if isSource(as) || isSource(bs) {
		if missed(as) {
			return nil // it is explained itself
		}
		if as.Kind != bs.Kind {
			return []Cause{{Kind: Base, Change: Changed, Old: inputName(p.Steps, b), New: inputName(e.now.Steps, a)}}
		}
		return append(compareSources(as, bs), e.files(p, a, b)...)
	}
	if as.Kind == "local" && bs.Kind == "local" {
		if causes := e.files(p, a, b); len(causes) > 0 {
			return causes
		}
		return []Cause{{Kind: File, Change: Changed}}
	}
	if missed(as) {
		return nil
	}
	if to := p.step[a.Step]; to >= 0 && to != b.Step && splitGroup(as) != splitGroup(bs) {
		return []Cause{{Kind: From, Change: Changed, Old: inputName(p.Steps, b), New: inputName(e.now.Steps, a)}}
	}
	// Its result was there, but another one than before.
	if causes := e.files(p, a, b); len(causes) > 0 {
		return causes
	}
	causes := e.differences(p, a.Step, b.Step, seen)
	for n := range causes {
		if causes[n].In == "" {
			causes[n].In = as.Name
		}
	}
	return causes
}

func isSource(s builds.Step) bool { return s.Kind == "image" || s.Kind == "git" || s.Kind == "http" }

// inputName names what a step starts from or copies from.
func inputName(steps []builds.Step, in builds.Input) string {
	if in.Step < 0 {
		return "scratch"
	}
	s := steps[in.Step]
	switch s.Kind {
	case "image":
		return partValue(s, "base")
	case "git", "http":
		return partValue(s, "url")
	case "local":
		return "the build context"
	}
	if group := splitGroup(s); group != "" {
		return "stage " + group
	}
	return s.Name
}

// files compares the lists of files that two inputs stand for.
func (e *explainer) files(p *past, a, b builds.Input) []Cause {
	da, ok := a.Content()
	db, okb := b.Content()
	if !ok || !okb || e.now.Files == nil || p.Files == nil {
		return nil
	}
	now, err := e.now.Files(da)
	if err != nil {
		return nil
	}
	defer now.Close()
	old, err := p.Files(db)
	if err != nil {
		return nil
	}
	defer old.Close()
	return compareFiles(now, old)
}

// blame finds the build argument that made a difference.
func (e *explainer) blame(p *past, c *Cause) {
	if c.Kind == Arg || c.Kind == File || c.Old == c.New {
		return
	}
	for k, v := range e.now.Attrs {
		name, ok := strings.CutPrefix(k, "build-arg:")
		old := p.Attrs[k]
		if ok && v != old && v != "" && strings.Contains(c.New, v) && !strings.Contains(c.Old, v) && (c.Arg == "" || name < c.Arg) {
			c.Arg = name
		}
	}
}
