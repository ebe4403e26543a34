package parser

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
)

// A stage is a stage of the file, or an image that an instruction names.
type stage struct {
	instructions.Stage
	t     *target
	index int    // in the file; -1 for an image
	label string // in the names of steps
	what  string // the words of the file that name it, of an image

	base     *stage            // stage it is made of; nil for an image or scratch
	platform *ocispec.Platform // given by FROM, then that of the base
	context  *Context          // stands for the stage if replaced
	replaced bool
	deps     []dependency
	commands []command

	resolved  *base
	triggered bool // ONBUILD triggers have been added
	noCache   bool
	done      bool // its steps are made
	needs     stageNeeds

	// What the instructions so far have made.
	step      *plan.Step
	image     dockerspec.DockerOCIImage // Env and History are below
	imageEnv  *configEnv
	history   *history
	env       *env
	dir, user string
	args      []instructions.KeyValuePairOptional
	argTexts  []string // see buildArgs

	current      command
	lint         *linter.Linter // for the current instruction
	count, total int            // of numbered steps
	workdirSet   bool           // by the file
	cmd          usedOnce
	entrypoint   usedOnce
	healthcheck  usedOnce
}

// history is a list of entries, the last one first. Stages share what they have
// in common.
type history struct {
	before *history
	entry  ocispec.History
}

// open makes the first step of a stage that is not made of another one.
func (s *stage) open() error {
	b := s.resolved
	s.image = cloneImage(b.image)
	s.imageEnv = newConfigEnv(b.image.Config.Env)
	s.env = newEnv()
	for _, h := range b.image.History {
		s.history = &history{s.history, h}
	}
	s.platform = &b.platform
	switch {
	case b.step != nil:
		s.step = b.step
	case b.op != nil:
		name := b.name
		if name == "" {
			name = s.stepName("FROM "+b.ref, noEnv{})
		}
		s.step = s.t.share(&plan.Step{Op: b.op, Platform: b.platform, Name: name, Source: s.t.file.sourceAt(s.Location)})
		if s.what == "" && !s.replaced && b.name == "" {
			s.lintBasePlatform(b)
		}
	}
	s.done = s.replaced || s.index < 0
	return s.t.budget.charge(64 * (len(b.image.History) + len(b.image.Config.Env)))
}

// inherit starts a stage with what its base stage came to.
func (s *stage) inherit() error {
	b := s.base
	s.step, s.history, s.platform = b.step, b.history, b.platform
	s.image = cloneImage(b.image)
	s.image.Config.OnBuild = nil
	s.imageEnv, s.env = b.imageEnv.clone(), b.env.clone()
	s.args = slices.Clone(b.args)
	s.workdirSet = b.workdirSet
	c := &s.image.Config
	return s.t.budget.charge(b.env.size() + 64*(len(b.imageEnv.list)+len(c.Labels)+len(c.Volumes)+len(c.ExposedPorts)+len(s.args)))
}

// run makes the steps of a stage.
func (s *stage) run() error {
	if s.base != nil {
		if err := s.inherit(); err != nil {
			return s.t.file.at(s.Location, err)
		}
	} else {
		s.image.Config.OnBuild = nil // they have run
	}
	if !s.imageEnv.has("PATH") && s.image.OS != "windows" {
		s.imageEnv.list = append(s.imageEnv.list, defaultPath)
		s.imageEnv.index["PATH"] = len(s.imageEnv.list) - 1
	}
	for _, e := range s.imageEnv.list {
		k, v, _ := strings.Cut(e, "=")
		s.env.set(k, v)
	}
	s.dir, s.user = "/", s.image.Config.User
	if wd := s.image.Config.WorkingDir; wd != "" {
		s.setDir(wd)
	}
	for _, c := range s.commands {
		s.current = c
		s.lint = s.t.lint.WithMergedConfigFromComments(c.Comments())
		if err := s.dispatch(c); err != nil {
			err = s.t.file.at(c.Location(), err)
			var fault *plan.Error
			if errors.As(err, &fault) && c.trigger {
				fault.Err = fmt.Errorf("ONBUILD trigger of %s: %w", s.BaseName, fault.Err)
			}
			return err
		}
		if s.env.bytes > maxEnv {
			return s.t.file.fault(c.Location(), fmt.Errorf("the environment is larger than %d MiB", maxEnv>>20))
		}
	}
	return nil
}

// dispatch does one instruction.
func (s *stage) dispatch(c command) error {
	if err := s.expandCommand(c.Command); err != nil {
		return err
	}
	if s.image.OS == "windows" || s.resolved != nil && s.platformOr().OS == "windows" {
		switch c.Command.(type) {
		case *instructions.RunCommand, *instructions.WorkdirCommand:
			return s.t.errorf(c, "%s for Windows is not supported", strings.ToUpper(c.Name()))
		}
	}
	switch c := c.Command.(type) {
	case *instructions.RunCommand:
		return s.runStep(c)
	case *instructions.CopyCommand:
		return s.copyFiles(c)
	case *instructions.AddCommand:
		return s.addFiles(c)
	case *instructions.WorkdirCommand:
		return s.workdir(c)
	case *instructions.ArgCommand:
		return s.arg(c)
	case *instructions.EnvCommand:
		return s.setEnv(c)
	case *instructions.LabelCommand:
		return s.setLabels(c)
	case *instructions.UserCommand:
		s.user, s.image.Config.User = c.User, c.User
		return s.record("USER "+c.User, false)
	case *instructions.CmdCommand:
		return s.setCmd(c)
	case *instructions.EntrypointCommand:
		return s.setEntrypoint(c)
	case *instructions.HealthCheckCommand:
		return s.setHealthcheck(c)
	case *instructions.ExposeCommand:
		return s.expose(c)
	case *instructions.VolumeCommand:
		return s.volume(c)
	case *instructions.StopSignalCommand:
		return s.stopSignal(c)
	case *instructions.ShellCommand:
		s.image.Config.Shell = c.Shell
		return s.record(fmt.Sprintf("SHELL %v", c.Shell), false)
	case *instructions.OnbuildCommand:
		s.image.Config.OnBuild = append(s.image.Config.OnBuild, c.Expression)
		return nil
	case *instructions.MaintainerCommand:
		s.image.Author = c.Maintainer
		return s.record("MAINTAINER "+c.Maintainer, false)
	}
	return s.t.errorf(c, "instruction %s is not supported", strings.ToUpper(c.Name()))
}

// expandCommand expands the variables in an instruction, in place.
func (s *stage) expandCommand(c instructions.Command) error {
	// An ARG may be overridden, and then its default isn't expanded at all.
	if _, isArg := c.(*instructions.ArgCommand); isArg {
		return nil
	}
	if x, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if err := x.Expand(func(word string) (string, error) { return s.expand(c, word) }); err != nil {
			return err
		}
	}
	if x, ok := c.(instructions.SupportsSingleWordExpansionRaw); ok {
		raw := s.t.expander.raw()
		return x.ExpandRaw(func(word string) (string, error) {
			res, err := raw.word(word, s.env)
			s.lintUndefined(c, res.Unmatched)
			return res.Result, err
		})
	}
	return nil
}

// expand expands the variables of a word of an instruction.
func (s *stage) expand(c instructions.Command, word string) (string, error) {
	res, err := s.t.expander.word(word, s.env)
	s.lintUndefined(c, res.Unmatched)
	return res.Result, err
}

// record adds a history entry; layer tells that the instruction made one.
func (s *stage) record(text string, layer bool) error {
	s.history = &history{s.history, ocispec.History{
		CreatedBy: plan.Redact(text), Comment: "buildkit.dockerfile.v0", EmptyLayer: !layer, Created: s.t.epoch,
	}}
	return s.t.budget.charge(len(text) + 128)
}

// finalImage returns the image configuration the stage came to.
func (s *stage) finalImage() dockerspec.DockerOCIImage {
	img := cloneImage(s.image)
	img.Config.Env = slices.Clone(s.imageEnv.list)
	for h := s.history; h != nil; h = h.before {
		img.History = append(img.History, h.entry)
	}
	slices.Reverse(img.History)
	return img
}

// cloneImage copies an image but for Env and History, which it leaves out.
func cloneImage(img dockerspec.DockerOCIImage) dockerspec.DockerOCIImage {
	c := &img.Config
	c.Env, img.History = nil, nil
	c.Cmd, c.Entrypoint, c.Shell, c.OnBuild = slices.Clone(c.Cmd), slices.Clone(c.Entrypoint), slices.Clone(c.Shell), slices.Clone(c.OnBuild)
	c.ExposedPorts, c.Volumes, c.Labels = maps.Clone(c.ExposedPorts), maps.Clone(c.Volumes), maps.Clone(c.Labels)
	if c.Healthcheck != nil {
		h := *c.Healthcheck
		h.Test = slices.Clone(h.Test)
		c.Healthcheck = &h
	}
	img.OSFeatures = slices.Clone(img.OSFeatures)
	return img
}

// addStep makes a step of the current instruction the state of the stage.
func (s *stage) addStep(op plan.Op, name string, inputs []plan.Input) *plan.Step {
	return s.t.share(&plan.Step{
		Op: op, Inputs: inputs, Platform: *s.platform, Name: name, Source: s.t.file.sourceAt(s.current.Location()),
	})
}

// displayText is an instruction as names of steps have it, variables expanded
// where that is possible, without the passwords of URLs.
func (s *stage) displayText(x *expander, text string, e shell.EnvGetter) string {
	if res, err := x.word(text, e); err == nil {
		text = res.Result
	}
	first, rest, more := strings.Cut(plan.Redact(text), " ")
	if more {
		return strings.ToUpper(first) + " " + rest
	}
	return strings.ToUpper(first)
}

// stepName puts the stage and the number of the step before text, and counts
// it: "[linux/arm64 build 2/5] RUN make".
func (s *stage) stepName(text string, e shell.EnvGetter) string {
	if s.total == 0 {
		return text
	}
	var b strings.Builder
	b.WriteByte('[')
	if s.t.multi {
		b.WriteString(platforms.FormatAll(*s.platform) + crossSuffix(*s.platform, e) + " ")
	}
	if s.label != "" {
		b.WriteString(s.label + " ")
	}
	s.count++
	fmt.Fprintf(&b, "%*d/%d] ", 1+int(math.Log10(float64(s.total))), s.count, s.total)
	if s.current.trigger {
		b.WriteString("ONBUILD ")
	}
	b.WriteString(text)
	return b.String()
}

// crossSuffix is "->arm64" for a step on one platform that is told, by an ARG,
// to make something for another.
func crossSuffix(on ocispec.Platform, e shell.EnvGetter) string {
	var to ocispec.Platform
	if v, ok := e.Get("TARGETPLATFORM"); ok {
		p, err := platforms.Parse(v)
		if err != nil {
			return ""
		}
		to = p
	} else {
		to.OS, _ = e.Get("TARGETOS")
		to.Architecture, _ = e.Get("TARGETARCH")
		to.Variant, _ = e.Get("TARGETVARIANT")
		if to.OS == "" && to.Architecture == "" && to.Variant == "" {
			return ""
		}
	}
	if to.OS == "" {
		to.OS = on.OS
	}
	if to.Architecture == "" {
		to.Architecture = on.Architecture
	}
	to = platforms.Normalize(to)
	switch {
	case to.OS != on.OS:
		return "->" + platforms.FormatAll(to)
	case to.Architecture == on.Architecture:
		return ""
	case to.Variant != "":
		return "->" + to.Architecture + "/" + to.Variant
	}
	return "->" + to.Architecture
}
