package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/network"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// defaultHostname is the host name that steps see. Build files can tell it
// apart from BuildKit's in nothing.
const defaultHostname = "buildkitsandbox"

// execution is one run of an Exec.
type execution struct {
	bd *build
	v  *vertex
	op *plan.Exec

	trees   []layers.Tree            // of the inputs
	root    *snapshot.Active         // the root file system
	actives map[int]*snapshot.Active // writable mounts, by index in op.Mounts
	process sandbox.Process
	config  sandbox.Config
	stubs   []string // paths in the root that only exist as mount points
	cleanup []func() error
	given   []string // marks of secrets (leak.Mark)
}

// exec runs an Exec and returns the trees it made.
func (bd *build) exec(ctx context.Context, v *vertex, op *plan.Exec) (_ []layers.Tree, err error) {
	e := &execution{bd: bd, v: v, op: op, trees: make([]layers.Tree, len(v.inputs)), actives: map[int]*snapshot.Active{}}
	for i := range v.inputs {
		if e.trees[i], err = bd.inputTree(ctx, v, i); err != nil {
			return nil, err
		}
	}
	for i, t := range e.trees {
		// Downloading and unpacking takes no slot.
		if _, err := bd.b.Layers.Ensure(ctx, t, bd.sources()); err != nil {
			return nil, bd.stepError(v, err)
		}
		bd.pulled(v.inputs[i])
	}
	release, err := bd.b.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	bd.started(v)
	defer func() {
		err = bd.stepError(v, err)
		bd.done(v, err)
	}()
	outputs, err := e.run(ctx)
	return outputs, errors.Join(err, e.close())
}

func (e *execution) close() error {
	var errs []error
	for _, f := range slices.Backward(e.cleanup) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (e *execution) run(ctx context.Context) ([]layers.Tree, error) {
	if err := e.prepare(ctx); err != nil {
		return nil, err
	}
	if e.bd.r.verify {
		if err := e.disordered(); err != nil {
			return nil, err
		}
	}
	spec, err := sandbox.New(e.config)
	if err != nil {
		return nil, err
	}
	devices, err := e.bd.b.Devices.Find(e.op.Devices)
	if err == nil {
		err = devices.Apply(spec)
	}
	if err != nil {
		return nil, err
	}
	e.process.Spec = spec
	log := &tail{}
	stdout, stderr := e.bd.r.Guard.Redact(e.log(1, log)), e.bd.r.Guard.Redact(e.log(2, log))
	e.process.Stdout, e.process.Stderr = stdout, stderr
	code, err := e.bd.b.Runner.Run(ctx, e.process)
	_ = errors.Join(stdout.Flush(), stderr.Flush()) // to the log, which never fails
	if err != nil {
		return nil, &StepError{Step: e.v.step, Vertex: e.v.id, Log: log.bytes(), Err: err}
	}
	if ok := e.op.ExitCodes; code != 0 && len(ok) == 0 || len(ok) > 0 && !slices.Contains(ok, code) {
		err := &StepError{Step: e.v.step, Vertex: e.v.id, Exit: code, Log: log.bytes(),
			Err: fmt.Errorf("process %q did not complete successfully: exit code: %d", strings.Join(e.op.Args, " "), code)}
		if e.bd.r.OnError != nil {
			e.bd.r.OnError(err, func(args []string, terminal func(*os.File)) (int, error) { return e.shell(ctx, args, terminal) })
		}
		return nil, err
	}
	return e.commit(ctx)
}

// shell runs another process, on a terminal, where that of the step failed: in
// its root file system as it left it, with its mounts and network.
func (e *execution) shell(ctx context.Context, args []string, terminal func(*os.File)) (int, error) {
	c, p := e.config, e.process
	c.Args, c.Terminal = args, true
	spec, err := sandbox.New(c)
	if err != nil {
		return 0, err
	}
	p.Spec, p.Stdout, p.Stderr, p.Terminal = spec, nil, nil, terminal
	return e.bd.b.Runner.Run(ctx, p)
}

// commit makes layers of what was written.
func (e *execution) commit(ctx context.Context) ([]layers.Tree, error) {
	outputs := []layers.Tree{e.trees[0]}
	if !e.op.ReadonlyRoot {
		id, err := e.layer(ctx, e.root, e.stubs)
		if err != nil {
			return nil, err
		}
		outputs[0] = appendLayer(e.trees[0], id)
	}
	for i, m := range e.op.Mounts {
		if m.Output <= 0 {
			continue
		}
		id, err := e.layer(ctx, e.actives[i], nil)
		if err != nil {
			return nil, err
		}
		for len(outputs) <= m.Output {
			outputs = append(outputs, nil)
		}
		outputs[m.Output] = appendLayer(e.input(m), id)
	}
	return outputs, nil
}

// layer commits what was written to a file system, and notes which secrets might
// be in it.
func (e *execution) layer(ctx context.Context, a *snapshot.Active, stubs []string) (layers.ID, error) {
	id, err := a.Commit(ctx, stubs)
	if err != nil || len(e.given) == 0 {
		return id, err
	}
	return id, e.bd.b.Layers.Update(id, func(l *snapshot.Layer) { l.Given = e.given })
}

func appendLayer(t layers.Tree, id layers.ID) layers.Tree {
	return append(t[:len(t):len(t)], id)
}

func (e *execution) input(m plan.Mount) layers.Tree {
	if m.Input < 0 {
		return nil
	}
	return e.trees[m.Input]
}

// log sends what is written to the progress display and to tail.
func (e *execution) log(stream int, tail *tail) io.Writer {
	display := e.bd.log(e.v, stream)
	return writerFunc(func(p []byte) (int, error) {
		e.v.mu.Lock()
		_, _ = tail.Write(p)
		e.v.mu.Unlock()
		return display.Write(p)
	})
}

// log sends what is written to the progress display.
func (bd *build) log(v *vertex, stream int) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		bd.event(v, progress.Event{Kind: progress.Log, Stream: stream, Data: bytes.Clone(p)})
		return len(p), nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// prepare fills in the sandbox's configuration.
func (e *execution) prepare(ctx context.Context) error {
	b, op := e.bd.b, e.op
	active, err := b.Layers.Prepare(ctx, e.trees[0], e.bd.sources())
	if err != nil {
		return err
	}
	e.root = active
	e.cleanup = append(e.cleanup, active.Discard)
	e.process.Root = sandboxRoot(active.Mount)

	e.config = sandbox.Config{
		Args:        op.Args,
		Env:         append(slices.Clone(op.Env), op.Proxy...),
		Dir:         op.Dir,
		Hostname:    op.Hostname,
		Privileged:  op.Insecure,
		HostNetwork: op.Network == plan.NetworkHost,
		Readonly:    op.ReadonlyRoot,
		ShmSize:     op.ShmSize,
		Rootless:    b.Rootless,
		Resources:   resources(op.Resources),
	}
	if e.config.Hostname == "" {
		e.config.Hostname = defaultHostname
	}
	for _, u := range op.Ulimits {
		e.config.Rlimits = append(e.config.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if op.Resources.CgroupParent != "" {
		e.config.CgroupsPath = path.Join("/", op.Resources.CgroupParent, "strake", e.v.id)
	}
	if err := e.user(ctx); err != nil {
		return err
	}
	if err := e.network(ctx); err != nil {
		return err
	}
	for i, m := range op.Mounts {
		if err := e.mount(ctx, i, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	return nil
}

// user looks the user up in the root file system.
func (e *execution) user(ctx context.Context) error {
	var tree file.Tree
	if len(e.trees[0]) > 0 {
		view, err := e.bd.b.Layers.View(ctx, e.trees[0], e.bd.sources())
		if err != nil {
			return err
		}
		tree = view
	}
	uid, gid, groups, home, err := file.User(tree, e.op.User)
	if err != nil {
		return err
	}
	e.config.UID, e.config.GID = uint32(uid), uint32(gid)
	// The primary group is one of the additional ones, as in Docker.
	e.config.Groups = []uint32{uint32(gid)}
	for _, g := range groups {
		if g != gid {
			e.config.Groups = append(e.config.Groups, uint32(g))
		}
	}
	if !slices.ContainsFunc(e.config.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		if home == "" {
			home = "/"
		}
		e.config.Env = append(e.config.Env, "HOME="+home)
	}
	return nil
}

// network connects the sandbox and writes its resolv.conf and hosts.
func (e *execution) network(ctx context.Context) error {
	var resolv []byte
	switch e.op.Network {
	case plan.NetworkHost:
		var err error
		if resolv, err = network.HostResolvConf(); err != nil {
			return err
		}
	case plan.NetworkDefault:
		ep, err := e.bd.b.Network.Connect(ctx)
		if err != nil {
			return fmt.Errorf("network: %w", err)
		}
		e.cleanup = append(e.cleanup, ep.Close)
		e.process.NetNS = ep.NetNS
		resolv = ep.ResolvConf
	}
	hosts := fmt.Appendf(nil, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", e.config.Hostname)
	for _, h := range e.op.Hosts {
		hosts = fmt.Appendf(hosts, "%s\t%s\n", h.IP, h.Name)
	}
	e.addFile(sandbox.File{Path: "/etc/hosts", Data: hosts, Mode: 0o644})
	e.addFile(sandbox.File{Path: "/etc/resolv.conf", Data: resolv, Mode: 0o644})
	return nil
}

func (e *execution) addFile(f sandbox.File) {
	e.process.Files = append(e.process.Files, f)
	e.stub(f.Path)
}

// stub notes that a path of the root may come to exist because something is
// mounted there. /proc, /sys and /dev stay in the image, as with BuildKit:
// whoever runs it needs them.
func (e *execution) stub(target string) {
	for p := path.Clean("/" + target)[1:]; p != "" && p != "."; p = path.Dir(p) {
		e.stubs = append(e.stubs, p)
	}
}

func sandboxRoot(m snapshot.Mount) sandbox.Root {
	return sandbox.Root{Lower: m.Lower, Upper: m.Upper, Work: m.Work, UserXattr: m.UserXattr, Bind: m.Bind}
}

func resources(r plan.Resources) *specs.LinuxResources {
	var out specs.LinuxResources
	set := false
	if r.Memory > 0 || r.MemorySwap != 0 {
		out.Memory = &specs.LinuxMemory{}
		if r.Memory > 0 {
			out.Memory.Limit = &r.Memory
		}
		if r.MemorySwap != 0 {
			out.Memory.Swap = &r.MemorySwap
		}
		set = true
	}
	if r.CPUShares > 0 || r.CPUPeriod > 0 || r.CPUQuota > 0 || r.CPUSetCPUs != "" || r.CPUSetMems != "" {
		out.CPU = &specs.LinuxCPU{Cpus: r.CPUSetCPUs, Mems: r.CPUSetMems}
		if r.CPUShares > 0 {
			out.CPU.Shares = &r.CPUShares
		}
		if r.CPUPeriod > 0 {
			out.CPU.Period = &r.CPUPeriod
		}
		if r.CPUQuota > 0 {
			out.CPU.Quota = &r.CPUQuota
		}
		set = true
	}
	if r.Pids > 0 {
		out.Pids = &specs.LinuxPids{Limit: &r.Pids}
		set = true
	}
	if !set {
		return nil
	}
	return &out
}

// notExist reports whether a path is not there.
func notExist(p string) bool {
	_, err := os.Lstat(p)
	return errors.Is(err, os.ErrNotExist)
}
