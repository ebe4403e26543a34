package parser

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	bparser "github.com/moby/buildkit/frontend/dockerfile/parser"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/parser/ignore"
	"github.com/strake-build/strake/plan"
)

// planBuild plans all targets: first it reads the stages of each and resolves
// their base images, all at once, then it makes the steps, one target after the
// other so that they can share them.
func planBuild(ctx context.Context, f *File, o *Options) (*plan.Build, error) {
	targets, err := planTargets(ctx, f, o)
	if err != nil {
		var found []plan.Warning
		for _, t := range targets {
			if t != nil {
				found = append(found, t.warnings...)
			}
		}
		return &plan.Build{Warnings: sortWarnings(found)}, err
	}
	out := &plan.Build{}
	for i, t := range targets {
		pt, err := t.plan()
		if i == 0 { // the others find the same, or what is of their platform
			out.Warnings = t.warnings
		}
		if err != nil {
			return &plan.Build{Warnings: sortWarnings(out.Warnings)}, err
		}
		out.Targets = append(out.Targets, pt)
	}
	out.Warnings = sortWarnings(out.Warnings)
	return out, nil
}

// planTargets reads the stages of each target and resolves their base images.
// The targets that come with an error may be nil, or have warnings.
func planTargets(ctx context.Context, f *File, o *Options) ([]*target, error) {
	if o.BuildPlatform.OS == "" || o.BuildPlatform.Architecture == "" {
		return nil, errors.New("the platform of this machine is not known")
	}
	b := &builder{file: f, o: o, args: maps.Clone(o.Args), steps: map[[sha256.Size]byte]*plan.Step{}, images: newImages(o.Resolve)}
	if b.args == nil {
		b.args = map[string]string{}
	}
	if _, ok := b.args[epochArg]; !ok && o.Epoch != nil {
		b.args[epochArg] = strconv.FormatInt(o.Epoch.Unix(), 10)
	}
	if ref := b.args["BUILDKIT_SYNTAX"]; ref != "" && !builtinSyntax(ref) {
		return nil, fmt.Errorf("build arg BUILDKIT_SYNTAX: syntax image %q is not supported: only docker/dockerfile is built in", ref)
	}
	if v := b.args[gitAdviceArg]; v != "" {
		var err error
		if b.gitAdvice, err = strconv.ParseBool(v); err != nil {
			return nil, fmt.Errorf("build arg %s=%s: it is true or false", gitAdviceArg, shorten(v))
		}
	}
	if len(o.Exclude) > 0 {
		m, err := ignore.New(o.Exclude)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.IgnoreFile, err)
		}
		b.ignore = m
	}

	wanted := o.Platforms
	if len(wanted) == 0 {
		wanted = []ocispec.Platform{o.BuildPlatform}
	}
	targets := make([]*target, len(wanted))
	errs := make([]error, len(wanted))
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range wanted {
		g.Go(func() error {
			targets[i], errs[i] = newTarget(gctx, b, platforms.Normalize(p))
			return errs[i]
		})
	}
	if err := g.Wait(); err != nil {
		return targets, firstCause(ctx, errs)
	}
	return targets, nil
}

// firstCause returns the first error that is not the echo of another one.
func firstCause(ctx context.Context, errs []error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var echo error
	for _, err := range errs {
		if err == nil {
			continue
		}
		if !errors.Is(err, context.Canceled) {
			return err
		}
		echo = err
	}
	return echo
}

// gitAdviceArg is the build arg that has git's advice shown.
const gitAdviceArg = "BUILDKIT_GIT_ADVICE"

// A builder holds what the targets of one build share.
type builder struct {
	file      *File
	o         *Options
	args      map[string]string // build args
	images    *images
	ignore    *ignore.Matcher // of the main context; nil for none
	gitAdvice bool

	steps map[[sha256.Size]byte]*plan.Step // made so far, by what they are
}

// share returns the step made before that is equal to s, or s. An image or
// directory that several stages use keeps the name that it got first.
func (b *builder) share(s *plan.Step) *plan.Step {
	k := plan.Canonical(s.Op)
	text := func(t string) {
		k = append(strconv.AppendInt(k, int64(len(t)), 10), ':')
		k = append(k, t...)
	}
	k = strconv.AppendBool(k, s.NoCache)
	k = strconv.AppendBool(k, s.Internal)
	for _, part := range []string{s.Platform.OS, s.Platform.Architecture, s.Platform.Variant, s.Platform.OSVersion} {
		text(part)
	}
	for _, part := range s.Platform.OSFeatures {
		text(part)
	}
	k = append(k, '|')
	switch op := s.Op.(type) {
	case *plan.Image:
		text(op.Ref)
		text(op.Layout)
	case *plan.Local:
		text(op.Name)
	case *plan.Exec:
		text(s.Name)
		for _, a := range op.BuildArgs {
			text(a)
		}
	default:
		text(s.Name)
	}
	for _, in := range s.Inputs {
		// Inputs are shared already: equal ones are the same step.
		k = strconv.AppendUint(append(k, '@'), uint64(reflect.ValueOf(in.Step).Pointer()), 16)
		k = strconv.AppendInt(append(k, '.'), int64(in.Output), 10)
	}
	key := sha256.Sum256(k)
	if same, ok := b.steps[key]; ok {
		return same
	}
	b.steps[key] = s
	return s
}

// A target is the plan of one platform in the making.
type target struct {
	*builder
	platform ocispec.Platform
	implicit bool // nobody asked for a platform
	multi    bool // several platforms were asked for

	syntax   *syntax
	globals  *env // arguments that FROM sees
	declared map[string]globalArg
	epoch    *time.Time
	budget   *budget
	expander *expander
	display  *expander
	proxy    []string

	lint      *linter.Linter
	plainLint bool // nobody gave it options
	warnings  []plan.Warning

	stages []*stage          // of the file, in order
	extern []*stage          // images that COPY --from and RUN --mount name
	byName map[string]*stage // the last stage of a name
	final  *stage

	mounts   bool  // some RUN has a --mount
	mainBase *base // main context, if it is an image
}

// newTarget reads the stages that a platform's target needs and resolves their
// bases.
func newTarget(ctx context.Context, b *builder, p ocispec.Platform) (*target, error) {
	t := &target{
		builder: b, platform: p, implicit: len(b.o.Platforms) == 0, multi: len(b.o.Platforms) > 1,
		budget: &budget{}, byName: map[string]*stage{}, declared: map[string]globalArg{}, proxy: proxyEnv(b.args),
	}
	if err := t.openLinter(); err != nil {
		return t, err
	}
	var err error
	if t.syntax, err = t.read(); err != nil {
		return t, err
	}
	t.expander = newExpander(t.syntax.escape, t.budget)
	t.display = t.expander.display()
	t.lintStageNames()
	t.lintCasing()
	if err := t.openArgs(ctx); err != nil {
		return t, err
	}
	if err := t.openStages(); err != nil {
		return t, err
	}
	if err := t.openFinal(); err != nil {
		return t, err
	}
	if err := t.link(); err != nil {
		return t, err
	}
	return t, t.resolve(ctx)
}

// read parses the file, unless that was done already.
func (t *target) read() (*syntax, error) {
	if t.plainLint {
		if p := t.file.parsed.Swap(nil); p != nil {
			t.warnings = append(t.warnings, p.warnings...)
			return p.syntax, nil
		}
	}
	return t.file.read(t.lint)
}

// plan makes the steps.
func (t *target) plan() (plan.Target, error) {
	reached := t.reached()
	for _, s := range slices.Concat(t.stages, t.extern) {
		if reached[s] && s.base == nil {
			if err := s.open(); err != nil {
				return plan.Target{}, t.file.at(s.Location, err)
			}
		}
	}
	for _, s := range t.stages {
		if !reached[s] || s.done {
			continue
		}
		if err := s.run(); err != nil {
			return plan.Target{}, err
		}
		s.done = true
	}
	if err := t.lintFailed(); err != nil {
		return plan.Target{}, err
	}
	out := t.finish()
	var err error
	out.Scans, err = t.scans()
	return out, err
}

// reached are the stages that are planned.
func (t *target) reached() map[*stage]bool {
	reached := reachable(t.final)
	if t.o.AllStages {
		for _, s := range t.stages {
			maps.Copy(reached, reachable(s))
		}
	}
	return reached
}

// finish gives the target its image.
func (t *target) finish() plan.Target {
	s := t.final
	img := s.finalImage()
	if len(t.o.Labels) > 0 {
		if img.Config.Labels == nil {
			img.Config.Labels = map[string]string{}
		}
		maps.Copy(img.Config.Labels, t.o.Labels)
	}
	if !t.implicit {
		same := img.OS == t.platform.OS && img.Architecture == t.platform.Architecture
		img.OS, img.Architecture = t.platform.OS, t.platform.Architecture
		if t.platform.Variant != "" || !same {
			img.Variant = t.platform.Variant
		}
		if t.platform.OSVersion != "" || !same {
			img.OSVersion = t.platform.OSVersion
		}
		if t.platform.OSFeatures != nil {
			img.OSFeatures = slices.Clone(t.platform.OSFeatures)
		}
	}
	img.Platform = platforms.Normalize(img.Platform)
	img.Created = t.epoch
	name := s.Name
	if name == "" {
		name = strconv.Itoa(s.index)
	}
	return plan.Target{Platform: t.platform, Step: s.step, Image: img, Stage: name}
}

// openFinal finds the target stage, by name or number.
func (t *target) openFinal() error {
	name := t.o.Target
	if name == "" {
		t.final = t.stages[len(t.stages)-1]
		return nil
	}
	if s, ok := t.stageByName(name); ok {
		t.final = s
		return nil
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n < len(t.stages) {
		t.final = t.stages[n]
		return nil
	}
	err := t.file.fault(nil, fmt.Errorf("target stage %q could not be found", name))
	if err.Hint = didYouMean(name, t.stageNames()); err.Hint == "" {
		err.Hint = stageList(t.stageNames())
	}
	return err
}

// stageList tells which stages there are.
func stageList(names []string) string {
	const most = 10
	switch {
	case len(names) == 0:
		return "no stage has a name"
	case len(names) > most:
		return fmt.Sprintf("stages are %q and %d more", names[:most], len(names)-most)
	}
	return fmt.Sprintf("stages are %q", names)
}

// sortWarnings orders warnings by place and drops those that several targets
// gave.
func sortWarnings(ws []plan.Warning) []plan.Warning {
	line := func(w plan.Warning) plan.Range {
		if len(w.Source.Ranges) == 0 {
			return plan.Range{}
		}
		return w.Source.Ranges[0]
	}
	slices.SortStableFunc(ws, func(a, b plan.Warning) int {
		x, y := line(a), line(b)
		return cmp.Or(cmp.Compare(x.StartLine, y.StartLine), cmp.Compare(x.EndLine, y.EndLine))
	})
	var out []plan.Warning
	seen := map[string]bool{}
	for _, w := range ws {
		key := fmt.Sprintf("%s\x00%s\x00%v", w.Rule, w.Text, line(w))
		if !seen[key] {
			seen[key] = true
			out = append(out, w)
		}
	}
	return out
}

// errorf is a fault at an instruction.
func (t *target) errorf(c instructions.Command, format string, args ...any) *plan.Error {
	return t.file.fault(c.Location(), fmt.Errorf(format, args...))
}

// location is a place in a file, as the syntax packages give it.
type location = []bparser.Range
