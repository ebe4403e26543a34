package parser

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
)

func (s *stage) setEnv(c *instructions.EnvCommand) error {
	text := "ENV"
	for _, kv := range c.Env {
		if kv.NoDelim {
			s.lint.Run(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format(c.Name()))
		}
		s.lintSecret("ENV", kv.Key, c)
		text += " " + kv.String()
		s.env.set(kv.Key, kv.Value)
		s.imageEnv.set(kv.Key, kv.Value)
	}
	s.argTexts = nil
	return s.record(text, false)
}

func (s *stage) setLabels(c *instructions.LabelCommand) error {
	text := "LABEL"
	if s.image.Config.Labels == nil {
		s.image.Config.Labels = map[string]string{}
	}
	for _, kv := range c.Labels {
		if kv.NoDelim {
			s.lint.Run(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format(c.Name()))
		}
		s.image.Config.Labels[kv.Key] = kv.Value
		text += " " + kv.String()
	}
	return s.record(text, false)
}

func (s *stage) workdir(c *instructions.WorkdirCommand) error {
	if !s.workdirSet && !path.IsAbs(c.Path) {
		s.lint.Run(&linter.RuleWorkdirRelativePath, c.Location(), linter.RuleWorkdirRelativePath.Format(c.Path))
	}
	s.workdirSet = true
	s.setDir(c.Path)
	text := "WORKDIR " + s.image.Config.WorkingDir
	if s.dir == "/" {
		return s.record(text, false)
	}
	dir := &plan.Mkdir{Path: s.dir, Mode: 0o755, Parents: true}
	if s.user != "" {
		dir.Owner, _ = owner(s.user)
	}
	name := s.stepName(s.displayText(s.t.expander, c.String(), s.env), s.env)
	s.step = s.addStep(&plan.File{Actions: []plan.Action{dir}}, name, []plan.Input{{Step: s.step}})
	return s.record(text, true)
}

// setDir makes dir, absolute or relative to the current one, the working
// directory.
func (s *stage) setDir(dir string) {
	if !path.IsAbs(dir) {
		dir = path.Join("/", s.image.Config.WorkingDir, dir)
	}
	s.image.Config.WorkingDir = dir
	s.dir = path.Clean(dir)
}

func (s *stage) setCmd(c *instructions.CmdCommand) error {
	s.lintUsedOnce(c, &s.cmd)
	args := s.commandLine(c, c.ShellDependantCmdLine)
	s.image.Config.Cmd = args
	//lint:ignore SA1019 Docker images have it
	s.image.Config.ArgsEscaped = true
	return s.record(fmt.Sprintf("CMD %q", args), false)
}

func (s *stage) setEntrypoint(c *instructions.EntrypointCommand) error {
	s.lintUsedOnce(c, &s.entrypoint)
	args := s.commandLine(c, c.ShellDependantCmdLine)
	s.image.Config.Entrypoint = args
	if !s.cmd.set {
		s.image.Config.Cmd = nil
	}
	return s.record(fmt.Sprintf("ENTRYPOINT %q", args), false)
}

// commandLine is the command line of CMD and ENTRYPOINT.
func (s *stage) commandLine(c instructions.Command, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	if len(s.image.Config.Shell) == 0 {
		s.lint.Run(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(c.Name()))
	}
	return s.withShell(line.CmdLine)
}

// withShell puts the shell before a command in shell form.
func (s *stage) withShell(args []string) []string {
	shell := s.image.Config.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
		if s.image.OS == "windows" {
			shell = []string{"cmd", "/S", "/C"}
		}
	}
	return append(slices.Clone(shell), strings.Join(args, " "))
}

func (s *stage) setHealthcheck(c *instructions.HealthCheckCommand) error {
	s.lintUsedOnce(c, &s.healthcheck)
	h := dockerspec.HealthcheckConfig{
		Test: c.Health.Test, Interval: c.Health.Interval, Timeout: c.Health.Timeout,
		StartPeriod: c.Health.StartPeriod, StartInterval: c.Health.StartInterval, Retries: c.Health.Retries,
	}
	s.image.Config.Healthcheck = &h
	return s.record(fmt.Sprintf("HEALTHCHECK %+v", h), false)
}

func (s *stage) volume(c *instructions.VolumeCommand) error {
	if s.image.Config.Volumes == nil {
		s.image.Config.Volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return s.t.errorf(c, "VOLUME: a path is empty")
		}
		s.image.Config.Volumes[v] = struct{}{}
	}
	return s.record(fmt.Sprintf("VOLUME %v", c.Volumes), false)
}

func (s *stage) stopSignal(c *instructions.StopSignalCommand) error {
	if !isSignal(c.Signal) {
		e := s.t.errorf(c, "STOPSIGNAL %s: no such signal", shorten(c.Signal))
		e.Hint = didYouMean(strings.ToUpper(c.Signal), signalNames())
		return e
	}
	s.image.Config.StopSignal = c.Signal
	return s.record("STOPSIGNAL "+c.Signal, false)
}
