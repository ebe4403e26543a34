package parser

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// scratch is the name of the empty image.
const scratch = "scratch"

// A command is an instruction of a stage.
type command struct {
	instructions.Command
	// sources are the stages that COPY --from (one) and the mounts of RUN
	// (one each) name; nil entries name none.
	sources []*stage
	trigger bool // it is an ONBUILD trigger of the base
}

// A dependency is a stage that another one needs besides its base.
type dependency struct {
	on  *stage
	loc location
}

// openStages reads the FROM instructions.
func (t *target) openStages() error {
	for i, st := range t.syntax.stages {
		s, err := t.newStage(i, st)
		if err != nil {
			return t.file.at(st.Location, err)
		}
		t.stages = append(t.stages, s)
		if st.Name != "" {
			t.byName[st.Name] = s
		}
	}
	return nil
}

// newStage makes a stage of its FROM.
func (t *target) newStage(index int, st instructions.Stage) (*stage, error) {
	lint := t.lint.WithMergedConfigFromComments(st.Comments)
	name, err := t.expander.word(st.BaseName, t.globals)
	if err != nil {
		return nil, err
	}
	t.lintUndefinedInFrom(name, st.Location, lint)
	if name.Result == "" {
		e := t.file.fault(st.Location, fmt.Errorf("base name (%s) should not be blank", shorten(st.BaseName)))
		e.Hint = t.undefinedHint(name.Unmatched)
		return nil, mark(e, st.BaseName)
	}
	st.BaseName = name.Result
	s := &stage{t: t, Stage: st, index: index, label: st.Name, noCache: t.o.NoCache || t.noCacheStage(st.Name)}
	if st.Name == "" {
		s.label = "stage-" + strconv.Itoa(index)
	}
	s.needs.use(name.Matched)
	if st.Platform != "" {
		if err := s.openPlatform(lint); err != nil {
			return nil, err
		}
	}
	if st.Name != "" {
		switch c, ok := t.context(st.Name, s.platformOr()); {
		case ok && c.Stage != "":
			s.BaseName, s.Commands = c.Stage, nil
			st = s.Stage
		case ok:
			s.context, s.replaced = c, true
			return s, nil
		}
	}
	if s.base = t.byName[st.BaseName]; s.base == nil {
		if s.base, err = t.contextStage(st.BaseName, s.platformOr()); err != nil {
			return nil, err
		}
	}
	if s.base == nil && st.BaseName != scratch {
		s.total = 1
	}
	for _, c := range st.Commands {
		switch c.(type) {
		case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
			s.total++
		}
	}
	return s, nil
}

// contextStage is the stage that a named context puts in the place of an image;
// nil if there is no such context.
func (t *target) contextStage(name string, p ocispec.Platform) (*stage, error) {
	if len(t.o.Contexts) == 0 || name == scratch {
		return nil, nil
	}
	c, ok := t.context(tagged(name), p)
	if !ok || c.Stage == "" {
		return nil, nil
	}
	if s := t.byName[strings.ToLower(c.Stage)]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("context %s: there is no stage %q before this instruction", name, c.Stage)
}

// tagged is an image name in its long form; names that are none stay.
func tagged(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.TagNameOnly(named).String()
}

func (t *target) noCacheStage(name string) bool {
	return name != "" && slices.ContainsFunc(t.o.NoCacheStages, func(n string) bool { return strings.EqualFold(n, name) })
}

// openPlatform reads FROM --platform.
func (s *stage) openPlatform(lint *linter.Linter) error {
	t, flag := s.t, s.Platform
	res, err := t.expander.word(flag, t.globals)
	if err != nil {
		return err
	}
	s.needs.use(res.Matched)
	t.lintUndefinedInFrom(res, s.Location, lint)
	t.lintPlatform(s.Name, flag, res, s.Location, lint)
	fault := func(err error) error {
		e := t.file.fault(s.Location, err)
		e.Hint = t.undefinedHint(res.Unmatched)
		return mark(e, flag)
	}
	if res.Result == "" {
		return fault(fmt.Errorf("empty platform value from expression %s", flag))
	}
	p, err := platforms.Parse(res.Result)
	if err != nil {
		return fault(fmt.Errorf("failed to parse platform %s: %w", shorten(flag), err))
	}
	s.platform = &p
	return nil
}

// undefinedHint suggests a global argument in place of an undefined one.
func (t *target) undefinedHint(unmatched map[string]struct{}) string {
	for _, name := range sortedKeys(unmatched) {
		if hint := didYouMean(name, t.globals.Keys()); hint != "" {
			return hint
		}
	}
	return ""
}

func (t *target) stageByName(name string) (*stage, bool) {
	s, ok := t.byName[strings.ToLower(name)]
	return s, ok
}

func (t *target) stageNames() []string {
	var names []string
	for _, s := range t.stages {
		if s.Name != "" {
			names = append(names, s.Name)
		}
	}
	return names
}

// link finds the stages that instructions name.
func (t *target) link() error {
	for _, s := range t.stages {
		for _, c := range s.Commands {
			cmd, err := t.command(s, c)
			if err != nil {
				return err
			}
			s.commands = append(s.commands, cmd)
			s.dependOn(cmd)
		}
	}
	if err := t.checkCycles(); err != nil {
		return err
	}
	// As in BuildKit, to which a mount is a stage, too.
	if len(t.stages) == 1 && len(t.extern) == 0 && !t.mounts {
		t.stages[0].label = ""
	}
	return nil
}

// dependOn remembers the stages that a command needs. A stage that a named
// context replaces needs none.
func (s *stage) dependOn(cmd command) {
	if s.replaced {
		return
	}
	for _, on := range cmd.sources {
		if on != nil {
			s.deps = append(s.deps, dependency{on, cmd.Location()})
		}
	}
}

// command finds the sources of an instruction of s.
func (t *target) command(s *stage, c instructions.Command) (command, error) {
	cmd := command{Command: c}
	switch c := c.(type) {
	case *instructions.CopyCommand:
		if c.From == "" {
			break
		}
		from, err := t.copySource(s, c)
		if err != nil {
			return cmd, err
		}
		cmd.sources = []*stage{from}
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			var from *stage
			t.mounts = true
			if m.From != "" && m.From != scratch {
				var ok bool
				if from, ok = t.stageByName(m.From); !ok {
					var err error
					if from, err = t.contextStage(m.From, s.platformOr()); err != nil {
						return cmd, t.file.at(c.Location(), err)
					}
				}
				if from == nil {
					from = t.external(m.From, c.Location(), "RUN --mount=from="+m.From)
				}
			}
			cmd.sources = append(cmd.sources, from)
		}
	}
	return cmd, nil
}

// copySource finds what COPY --from names: a stage by name or number, else an
// image or named context.
func (t *target) copySource(s *stage, c *instructions.CopyCommand) (*stage, error) {
	what := "COPY --from=" + c.From
	if res, err := t.expander.word(c.From, noEnv{}); err != nil || res.Result != c.From {
		e := t.errorf(c, "%s: variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround", what)
		e.Hint = "name a stage: FROM " + shorten(c.From) + " AS name"
		return nil, mark(e, c.From)
	}
	if n, err := strconv.Atoi(c.From); err == nil {
		if n < 0 || n >= len(t.stages) {
			e := t.errorf(c, "%s: there is no stage %d", what, n)
			e.Hint = fmt.Sprintf("stages are numbered from 0 to %d", len(t.stages)-1)
			return nil, mark(e, c.From)
		}
		return t.stages[n], nil
	}
	if from, ok := t.stageByName(c.From); ok {
		return from, nil
	}
	if from, err := t.contextStage(c.From, s.platformOr()); from != nil || err != nil {
		return from, t.file.at(c.Location(), err)
	}
	return t.external(c.From, c.Location(), what), nil
}

// external makes a stage of an image or named context that is not a FROM.
func (t *target) external(name string, loc location, what string) *stage {
	s := &stage{t: t, Stage: instructions.Stage{BaseName: name, Location: loc}, index: -1, what: what}
	t.extern = append(t.extern, s)
	return s
}

// checkCycles refuses stages that need themselves.
func (t *target) checkCycles() error {
	const (
		visiting = 1
		visited  = 2
	)
	state := map[*stage]int{}
	var path []*stage
	var visit func(s *stage) error
	visit = func(s *stage) error {
		state[s] = visiting
		path = append(path, s)
		next := s.deps
		if s.base != nil {
			next = append(slices.Clip(next), dependency{s.base, s.Location})
		}
		for _, d := range next {
			switch state[d.on] {
			case visiting:
				return t.cycle(path[slices.Index(path, d.on):], d.loc)
			case visited:
				continue
			}
			if err := visit(d.on); err != nil {
				return err
			}
		}
		path = path[:len(path)-1]
		state[s] = visited
		return nil
	}
	for _, s := range t.stages {
		if state[s] == 0 {
			if err := visit(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// cycle is the error for stages that need each other in a circle.
func (t *target) cycle(stages []*stage, loc location) error {
	if len(stages) == 1 {
		return t.file.fault(loc, fmt.Errorf("stage %q needs itself", stages[0].label))
	}
	var b strings.Builder
	for i, s := range stages {
		if i == 10 {
			b.WriteString("… → ")
			break
		}
		fmt.Fprintf(&b, "%s → ", s.label)
	}
	return t.file.fault(loc, fmt.Errorf("circular dependency of stages: %s%s", b.String(), stages[0].label))
}

// reachable returns the stages that s needs, with s.
func reachable(s *stage) map[*stage]bool {
	seen := map[*stage]bool{s: true}
	for todo := []*stage{s}; len(todo) > 0; {
		s, todo = todo[len(todo)-1], todo[:len(todo)-1]
		add := func(d *stage) {
			if d != nil && !seen[d] {
				seen[d] = true
				todo = append(todo, d)
			}
		}
		add(s.base)
		for _, d := range s.deps {
			add(d.on)
		}
	}
	return seen
}

// addTriggers puts the ONBUILD triggers of the base before the instructions of
// the stage, and reports whether they need other stages.
func (s *stage) addTriggers() (more bool, err error) {
	var triggers []string
	switch {
	case s.replaced:
	case s.base != nil:
		for _, c := range s.base.commands {
			if c, ok := c.Command.(*instructions.OnbuildCommand); ok {
				triggers = append(triggers, c.Expression)
			}
		}
	case s.resolved != nil:
		triggers = s.resolved.image.Config.OnBuild
	}
	if len(triggers)+len(s.commands) > maxInstructions {
		return false, errors.New("too many ONBUILD triggers")
	}
	var cmds []command
	for _, text := range triggers {
		c, err := s.t.file.readTrigger(text, s.Location, linter.New(&linter.Config{}))
		if err != nil {
			return false, err
		}
		cmd, err := s.t.command(s, c)
		if err != nil {
			return false, err
		}
		cmd.trigger = true
		s.dependOn(cmd)
		more = more || len(cmd.sources) > 0
		cmds = append(cmds, cmd)
	}
	s.commands = append(cmds, s.commands...)
	s.total += len(cmds)
	return more, nil
}
