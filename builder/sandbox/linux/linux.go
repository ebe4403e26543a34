// Package linux starts sandboxed processes directly, in a few milliseconds and
// without a runtime binary.
//
// A thread leaves the process's namespaces for new ones and builds the root
// file system there, in Go. It writes the rest, what has to happen in the new
// process, as a script of system calls (script.go), and clones:
//
//	strake ── warden ── process 1
//
// The warden is process 1 of a pid namespace of its own and does nothing but
// wait for the end of either neighbour; with it the kernel kills all that is
// in the sandbox, however it was started and whatever it did to stay. It is
// never visible in the sandbox, where process 1 is the program itself.
// Mounts are in a mount namespace that these three share, and gone with them.
//
// A sandbox without rights to devices has nodev on all file systems but the few
// device nodes it is given, in place of a device cgroup: what mknod makes in
// it, or an image brings, can't be opened.
//
// Needed is Linux 5.12 or newer, 6.7 for roots of more than about 200 layers.
package linux

import (
	"context"
	"errors"
	"fmt"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/linux/seccomp"
)

// Options says how the runner starts processes.
type Options struct {
	// Reexec makes it use the fallback path: a re-execution of this program
	// (see Main) instead of a raw clone.
	Reexec   bool
	Rootless bool
	// CgroupRoot is the cgroup below which steps get their own; empty: found
	// out. Without cgroups that can be written, resource limits are an error.
	CgroupRoot string
}

type runner struct {
	o    Options
	self int // pidfd of this process

	sweep sync.Once

	mu      sync.Mutex
	filters map[*specs.LinuxSeccomp][]unix.SockFilter
}

// New returns the runner.
func New(o Options) (sandbox.Runner, error) {
	if !direct {
		o.Reexec = true
	}
	self, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open (Linux 5.12 or newer is needed): %w", err)
	}
	return &runner{o: o, self: self, filters: map[*specs.LinuxSeccomp][]unix.SockFilter{}}, nil
}

func (r *runner) Name() string { return "linux" }

// filter compiles a profile once: sandbox.New gives the same to all.
func (r *runner) filter(p *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	if p == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, ok := r.filters[p]; ok {
		return f, nil
	}
	f, err := seccomp.Compile(p)
	if err == nil {
		r.filters[p] = f
	}
	return f, err
}

// check refuses what would otherwise be ignored.
func check(p sandbox.Process) error {
	s := p.Spec
	if s == nil || s.Process == nil || s.Linux == nil || len(s.Process.Args) == 0 {
		return errors.New("incomplete configuration")
	}
	for _, ns := range s.Linux.Namespaces {
		switch {
		case ns.Type == specs.UserNamespace || ns.Type == specs.TimeNamespace:
			return fmt.Errorf("a %s namespace: %w", ns.Type, errors.ErrUnsupported)
		case ns.Path != "" && ns.Type != specs.NetworkNamespace:
			return fmt.Errorf("joining a %s namespace: %w", ns.Type, errors.ErrUnsupported)
		}
	}
	unsupported := map[string]bool{
		"hooks":             s.Hooks != nil,
		"id mappings":       len(s.Linux.UIDMappings)+len(s.Linux.GIDMappings) > 0,
		"AppArmor profiles": s.Process.ApparmorProfile != "",
		"SELinux labels":    s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "",
		"schedulers":        s.Process.Scheduler != nil,
		"resctrl":           s.Linux.IntelRdt != nil,
		"seccomp notify":    s.Linux.Seccomp != nil && s.Linux.Seccomp.ListenerPath != "",
	}
	for what, set := range unsupported {
		if set {
			return fmt.Errorf("%s: %w", what, errors.ErrUnsupported)
		}
	}
	if s.Process.Terminal != (p.Terminal != nil) {
		return errors.New("the configuration and its user disagree about a terminal")
	}
	return nil
}

func (r *runner) Run(ctx context.Context, p sandbox.Process) (exit int, err error) {
	if err := check(p); err != nil {
		return 0, fmt.Errorf("sandbox: %w", err)
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	filter, err := r.filter(p.Spec.Linux.Seccomp)
	if err != nil {
		return 0, err
	}
	job := &job{
		Spec: p.Spec, Root: p.Root, Files: p.Files, Trees: p.Trees,
		Rootless: r.o.Rootless, NetNS: -1, Filter: filter,
	}
	if p.NetNS != nil {
		job.NetNS = int(p.NetNS.Fd())
	}
	var group *cgroup
	if grouped(p.Spec.Linux) {
		r.sweep.Do(func() { sweepCgroups(r.o.CgroupRoot) })
		group, err = newCgroup(r.o.CgroupRoot, p.Spec.Linux.CgroupsPath, p.Spec.Linux.Resources)
		if err != nil {
			return 0, fmt.Errorf("control group: %w", err)
		}
		defer func() { err = errors.Join(err, group.remove()) }()
		job.Cgroup, job.CgroupDirs = group.procs, group.dirs
	}
	io, err := newStdio(p)
	if err != nil {
		return 0, fmt.Errorf("pipes: %w", err)
	}
	job.Stdio = io.child

	run := &run{ctx: ctx, p: p, job: job, cgroup: group, io: io, self: r.self}
	start := run.direct
	if r.o.Reexec {
		start = run.reexec
	}
	exit, err = start()
	io.ends.close()
	err = errors.Join(err, io.finish())
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return 0, r.explain(err)
	}
	return exit, nil
}

// explain adds what a user can do about an error.
func (r *runner) explain(err error) error {
	if r.o.Rootless && errors.Is(err, unix.EINVAL) {
		var se *scriptError
		if errors.As(err, &se) && (len(se.What) > 8 && (se.What[:8] == "set user" || se.What[:8] == "set grou")) {
			return fmt.Errorf("%w (it has no mapping in this user namespace: see /etc/subuid and /etc/subgid)", err)
		}
	}
	return err
}
