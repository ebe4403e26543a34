package parser

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/strake-build/strake/plan"
)

// Outline is what a target of a build file can be given, as far as the stages
// that it needs ask for it.
type Outline struct {
	Stage       string // name of the target stage
	Description string // the comment "# <stage> <description>" above its FROM
	Args        []Arg
	Secrets     []Need
	SSH         []Need
}

// Arg is a build arg that a file declares.
type Arg struct {
	Name        string
	Description string // the comment "# <name> <description>" above it
	Value       string // with the build args of the Options
	Source      *plan.Source
}

// Need is a secret or an SSH agent that a step mounts.
type Need struct {
	ID       string
	Required bool
	Source   *plan.Source
}

// Stage is a stage of a build file.
type Stage struct {
	Name, Description string
	Base, Platform    string // as written
	Source            *plan.Source
}

// List returns the stages, in order. Nothing is looked up.
func (f *File) List() ([]Stage, error) {
	s, err := f.read(linter.New(&linter.Config{}))
	if err != nil {
		return nil, err
	}
	var out []Stage
	for _, st := range s.stages {
		out = append(out, Stage{
			Name: st.Name, Description: st.DocComment, Base: st.BaseName, Platform: st.Platform, Source: f.sourceAt(st.Location),
		})
	}
	return out, nil
}

// Outline plans the file to find out what its target, for the first platform,
// can be given. Bases are looked up, since their triggers may ask for more.
func (f *File) Outline(ctx context.Context, o Options) (*Outline, error) {
	if len(o.Platforms) > 1 {
		o.Platforms = o.Platforms[:1]
	}
	targets, err := planTargets(ctx, f, &o)
	if err != nil {
		return nil, err
	}
	t := targets[0]
	if _, err := t.plan(); err != nil {
		return nil, err
	}
	out := &Outline{Stage: t.final.Name, Description: t.final.DocComment}
	c := outliner{t: t, out: out, stages: map[*stage]bool{}, seen: map[string]bool{}}
	c.stage(t.final)
	slices.SortStableFunc(out.Args, func(a, b Arg) int { return compareSources(a.Source, b.Source) })
	byPlace := func(a, b Need) int { return compareSources(a.Source, b.Source) }
	slices.SortStableFunc(out.Secrets, byPlace)
	slices.SortStableFunc(out.SSH, byPlace)
	return out, nil
}

func compareSources(a, b *plan.Source) int {
	line := func(s *plan.Source) int {
		if len(s.Ranges) == 0 {
			return 0
		}
		return s.Ranges[0].StartLine
	}
	return cmp.Compare(line(a), line(b))
}

// globalArg is an argument declared before the first FROM.
type globalArg struct {
	Arg
	uses map[string]struct{} // the arguments that its value is made of
}

// declareGlobal remembers a global argument. A declaration that repeats one and
// is made of its value uses what that one uses.
func (t *target) declareGlobal(c *instructions.ArgCommand, arg instructions.KeyValuePairOptional, value string, uses map[string]struct{}) {
	before, again := t.declared[arg.Key]
	all := map[string]struct{}{}
	for name := range uses {
		if name != arg.Key {
			all[name] = struct{}{}
		} else if again {
			for old := range before.uses {
				all[old] = struct{}{}
			}
		}
	}
	t.declared[arg.Key] = globalArg{
		Arg:  Arg{Name: arg.Key, Description: arg.DocComment, Value: value, Source: t.file.sourceAt(c.Location())},
		uses: all,
	}
}

// stageNeeds are what a stage asks for.
type stageNeeds struct {
	from         map[string]struct{} // arguments in its FROM
	args         []Arg               // declared by its ARGs
	inherited    []string            // global arguments that its ARGs take over
	secrets, ssh []Need
}

// use remembers arguments that a FROM names.
func (n *stageNeeds) use(names map[string]struct{}) {
	if len(names) > 0 && n.from == nil {
		n.from = map[string]struct{}{}
	}
	maps.Copy(n.from, names)
}

// outliner gathers the needs of stages, each need once: where several stages
// have one of a name, that of the one nearest to the target.
type outliner struct {
	t      *target
	out    *Outline
	stages map[*stage]bool
	seen   map[string]bool // by kind and name
}

func (c *outliner) stage(s *stage) {
	if s == nil || c.stages[s] {
		return
	}
	c.stages[s] = true
	n := s.needs
	for _, a := range slices.Backward(n.args) { // the last one counts
		if c.first("arg " + a.Name) {
			if a.Description == "" {
				a.Description = c.t.declared[a.Name].Description
			}
			c.out.Args = append(c.out.Args, a)
		}
	}
	for _, name := range n.inherited {
		c.global(name)
	}
	for _, name := range sortedKeys(n.from) {
		c.global(name)
	}
	for _, secret := range n.secrets {
		if c.first("secret " + secret.ID) {
			c.out.Secrets = append(c.out.Secrets, secret)
		}
	}
	for _, ssh := range n.ssh {
		if c.first("ssh " + ssh.ID) {
			c.out.SSH = append(c.out.SSH, ssh)
		}
	}
	c.stage(s.base)
	for _, d := range s.deps {
		c.stage(d.on)
	}
}

func (c *outliner) first(key string) bool {
	seen := c.seen[key]
	c.seen[key] = true
	return !seen
}

// global adds a global argument, and those that it is made of.
func (c *outliner) global(name string) {
	a, ok := c.t.declared[name]
	if !ok || !c.first("arg "+name) {
		return
	}
	c.out.Args = append(c.out.Args, a.Arg)
	for _, used := range sortedKeys(a.uses) {
		c.global(used)
	}
}
