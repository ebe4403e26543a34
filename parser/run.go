package parser

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	bparser "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/strake-build/strake/plan"
)

// runStep is the RUN instruction.
func (s *stage) runStep(c *instructions.RunCommand) error {
	x := &execBuilder{stage: s, inputs: []plan.Input{{Step: s.step}}, hidden: map[string]bool{}}
	args, err := x.command(c)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return s.t.errorf(c, "RUN: no command")
	}
	if err := x.addMounts(c); err != nil {
		return err
	}
	op := &plan.Exec{
		Args: args, Env: s.env.environ(), Dir: s.dir, User: s.user,
		Network: s.t.o.Network, Insecure: instructions.GetSecurity(c) == instructions.SecurityInsecure,
		Hostname: s.t.o.Hostname, Hosts: s.t.o.Hosts, Mounts: x.mounts, Ulimits: s.t.o.Ulimits, ShmSize: s.t.o.ShmSize,
		Proxy: s.t.proxy, Resources: s.t.o.Resources, BuildArgs: s.buildArgs(),
	}
	for _, d := range instructions.GetDevices(c) {
		op.Devices = append(op.Devices, plan.Device{Name: d.Name, Optional: !d.Required})
	}
	if h := s.t.args["BUILDKIT_SANDBOX_HOSTNAME"]; h != "" {
		op.Hostname = h
	}
	switch instructions.GetNetwork(c) {
	case instructions.NetworkNone:
		op.Network = plan.NetworkNone
	case instructions.NetworkHost:
		op.Network = plan.NetworkHost
	}
	if x.sshTarget != "" {
		if _, ok := s.env.Get("SSH_AUTH_SOCK"); !ok {
			op.Env = append(op.Env[:len(op.Env):len(op.Env)], "SSH_AUTH_SOCK="+x.sshTarget)
		}
	}

	name := c.String()
	if x.summary != "" {
		name += " (" + x.summary + ")"
	}
	name = s.stepName(s.displayText(s.t.display, name, masked{s.env, x.hidden}), s.env)
	step := &plan.Step{
		Op: op, Inputs: x.inputs, Platform: *s.platform, NoCache: s.noCache, Name: name, Source: s.t.file.sourceAt(c.Location()),
	}
	s.step = s.t.share(step)
	if err := s.t.budget.charge(len(name) + 16*(len(op.Env)+len(op.BuildArgs))); err != nil {
		return err
	}

	text := "RUN "
	if n := len(op.BuildArgs); n > 0 {
		text += fmt.Sprintf("|%d %s ", n, strings.Join(op.BuildArgs, " "))
	}
	return s.record(text+strings.Join(args, " ")+" # buildkit", true)
}

// An execBuilder gathers the parts of an Exec.
type execBuilder struct {
	*stage
	inputs    []plan.Input
	mounts    []plan.Mount
	summary   string // of a here-document
	hidden    map[string]bool
	sshTarget string
	sshCount  int
}

// command returns the arguments of the process, and mounts the script of a
// here-document that is one.
func (x *execBuilder) command(c *instructions.RunCommand) ([]string, error) {
	args := c.CmdLine
	if len(c.Files) > 0 {
		if len(args) != 1 || !c.PrependShell {
			return nil, errors.New("RUN: here-documents need the shell form")
		}
		if doc := bparser.MustParseHeredoc(args[0]); doc != nil {
			args = x.hereDocument(c.Files[0])
		} else {
			// The shell reads the here-documents itself.
			var b strings.Builder
			b.WriteString(args[0])
			for _, f := range c.Files {
				b.WriteString("\n" + f.Data + f.Name)
			}
			args = []string{b.String()}
		}
	}
	if c.PrependShell {
		args = x.withShell(args)
	}
	return args, nil
}

// hereDocument returns the command for a RUN that is one here-document and
// nothing else: its text for the shell, or if it begins with "#!" a script.
func (x *execBuilder) hereDocument(f instructions.ShellInlineFile) []string {
	first, _, more := strings.Cut(strings.ReplaceAll(strings.TrimSpace(f.Data), "\r\n", "\n"), "\n")
	x.summary = first
	if more {
		x.summary += "..."
	}
	data := f.Data
	if f.Chomp {
		data = bparser.ChompHeredocContent(data)
	}
	if !strings.HasPrefix(data, "#!") {
		return []string{data}
	}
	const dir = "/dev/pipes/"
	x.mounts = append(x.mounts, plan.Mount{
		Type: plan.MountBind, Target: path.Clean(dir), Given: dir, Input: x.addInput(x.inlineFile(f.Name, data, 0o755)), Source: "/", Readonly: true,
	})
	return []string{path.Join(dir, f.Name)}
}

// inlineFile is a step that makes one file.
func (s *stage) inlineFile(name, data string, mode uint32) *plan.Step {
	return s.t.share(&plan.Step{
		Op:       &plan.File{Actions: []plan.Action{&plan.Mkfile{Path: path.Join("/", name), Mode: mode, Data: []byte(data)}}},
		Inputs:   []plan.Input{{}},
		Platform: *s.platform, Name: "[internal] preparing inline document", Internal: true,
		Source: s.t.file.sourceAt(s.current.Location()),
	})
}

// addInput adds an input, once, and returns its index; -1 for the empty tree.
func (x *execBuilder) addInput(step *plan.Step) int {
	if step == nil {
		return -1
	}
	for i := 1; i < len(x.inputs); i++ {
		if x.inputs[i].Step == step {
			return i
		}
	}
	x.inputs = append(x.inputs, plan.Input{Step: step})
	return len(x.inputs) - 1
}
