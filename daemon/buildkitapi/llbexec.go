package buildkitapi

import (
	"errors"
	"fmt"
	"path"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-build/strake/plan"
)

// execOp translates a process. In BuildKit the root is one of the mounts, and
// results are numbered over all of them; in plans it is input and result 0.
func (t *translation) execOp(n *node, step *plan.Step, x *pb.ExecOp, inputs []plan.Input, md *pb.OpMetadata) error {
	meta := x.GetMeta()
	if meta == nil || len(meta.Args) == 0 {
		return errors.New("exec op without arguments")
	}
	op := &plan.Exec{
		Args: meta.Args, Env: meta.Env, Dir: path.Join("/", meta.Cwd), User: meta.User, Hostname: meta.Hostname,
		Insecure: x.Security == pb.SecurityMode_INSECURE, Proxy: proxyEnv(meta.ProxyEnv), Resources: resourcesOf(md.GetLinuxResources()),
	}
	op.Resources.CgroupParent = meta.CgroupParent
	switch x.Network {
	case pb.NetMode_HOST:
		op.Network = plan.NetworkHost
	case pb.NetMode_NONE:
		op.Network = plan.NetworkNone
	}
	for _, h := range meta.ExtraHosts {
		op.Hosts = append(op.Hosts, plan.Host{Name: h.GetHost(), IP: h.GetIP()})
	}
	for _, u := range meta.Ulimit {
		op.Ulimits = append(op.Ulimits, plan.Ulimit{Name: u.GetName(), Soft: u.GetSoft(), Hard: u.GetHard()})
	}
	for _, c := range meta.ValidExitCodes {
		op.ExitCodes = append(op.ExitCodes, int(c))
	}
	for _, d := range x.CdiDevices {
		op.Devices = append(op.Devices, plan.Device{Name: d.GetName(), Optional: d.GetOptional()})
	}
	e := &execMounts{op: op, step: step, inputs: inputs, outputs: n.outputs}
	if err := e.root(x.Mounts); err != nil {
		return err
	}
	for i, m := range x.Mounts {
		if i == e.rootAt {
			continue
		}
		if err := e.mount(m); err != nil {
			return fmt.Errorf("mount %s: %w", m.GetDest(), err)
		}
	}
	for _, s := range x.Secretenv {
		op.Mounts = append(op.Mounts, plan.Mount{
			Type: plan.MountSecret, Input: -1, ID: s.GetID(), Env: s.GetName(), Required: !s.GetOptional(),
		})
	}
	step.Op = op
	return nil
}

// execMounts are the mounts of a process on their way to a plan.
type execMounts struct {
	op      *plan.Exec
	step    *plan.Step
	inputs  []plan.Input
	outputs map[int64]plan.Input
	rootAt  int
	next    int // number of the next result
}

const rootMount = "/"

func (e *execMounts) root(mounts []*pb.Mount) error {
	e.rootAt, e.next = -1, 1
	for i, m := range mounts {
		if m == nil {
			return errors.New("exec op with an empty mount")
		}
		if path.Clean(m.Dest) != rootMount {
			continue
		}
		if e.rootAt >= 0 {
			return errors.New("exec op with two root mounts")
		}
		e.rootAt = i
	}
	if e.rootAt < 0 {
		return errors.New("exec op without a root mount")
	}
	m := mounts[e.rootAt]
	if m.MountType != pb.MountType_BIND {
		return errors.New("exec op whose root is not a bind mount")
	}
	if m.Selector != "" && path.Clean("/"+m.Selector) != "/" {
		return unsupported("a root that is a directory of an input")
	}
	root, err := e.input(m.Input)
	if err != nil {
		return err
	}
	e.step.Inputs = append(e.step.Inputs, root)
	e.op.ReadonlyRoot = m.Readonly
	if m.Output >= 0 {
		e.outputs[m.Output] = plan.Input{Step: e.step}
	}
	return nil
}

func (e *execMounts) input(i int64) (plan.Input, error) {
	if i == -1 {
		return plan.Input{}, nil
	}
	if i < 0 || i >= int64(len(e.inputs)) {
		return plan.Input{}, fmt.Errorf("invalid input index %d", i)
	}
	return e.inputs[i], nil
}

// add makes an input one of the step, and returns its index; -1 for scratch.
func (e *execMounts) add(i int64) (int, error) {
	in, err := e.input(i)
	if err != nil || in.Step == nil {
		return -1, err
	}
	for k, have := range e.step.Inputs {
		if k > 0 && have == in {
			return k, nil
		}
	}
	e.step.Inputs = append(e.step.Inputs, in)
	return len(e.step.Inputs) - 1, nil
}

func (e *execMounts) mount(m *pb.Mount) error {
	in, err := e.add(m.Input)
	if err != nil {
		return err
	}
	out := plan.Mount{Target: path.Join("/", m.Dest), Input: in, Source: m.Selector, Readonly: m.Readonly}
	if path.IsAbs(m.Dest) && m.Dest != out.Target {
		out.Given = m.Dest
	}
	switch m.MountType {
	case pb.MountType_BIND:
		out.Type = plan.MountBind
		if m.Output >= 0 {
			if _, ok := e.outputs[m.Output]; ok {
				return fmt.Errorf("two mounts are output %d", m.Output)
			}
			if m.Readonly {
				// What can't be written to is what it was.
				e.outputs[m.Output], err = e.input(m.Input)
				break
			}
			out.Output = e.next
			e.outputs[m.Output] = plan.Input{Step: e.step, Output: e.next}
			e.next++
		}
	case pb.MountType_CACHE:
		out.Type, out.ID = plan.MountCache, m.CacheOpt.GetID()
		if out.ID == "" {
			out.ID = out.Target
		}
		switch m.CacheOpt.GetSharing() {
		case pb.CacheSharingOpt_PRIVATE:
			out.Sharing = plan.SharingPrivate
		case pb.CacheSharingOpt_LOCKED:
			out.Sharing = plan.SharingLocked
		default:
			out.Sharing = plan.SharingShared
		}
	case pb.MountType_TMPFS:
		out.Type, out.Size, out.Input = plan.MountTmpfs, m.TmpfsOpt.GetSize(), -1
	case pb.MountType_SECRET:
		s := m.SecretOpt
		if s == nil {
			return errors.New("secret mount without options")
		}
		out.Type, out.ID, out.Required, out.Input = plan.MountSecret, s.ID, !s.Optional, -1
		out.Mode, out.UID, out.GID = s.Mode&0o7777, int(s.Uid), int(s.Gid)
	case pb.MountType_SSH:
		s := m.SSHOpt
		if s == nil {
			return errors.New("ssh mount without options")
		}
		out.Type, out.ID, out.Required, out.Input = plan.MountSSH, s.ID, !s.Optional, -1
		out.Mode, out.UID, out.GID = s.Mode&0o7777, int(s.Uid), int(s.Gid)
	default:
		return fmt.Errorf("unknown mount type %d", m.MountType)
	}
	e.op.Mounts = append(e.op.Mounts, out)
	return err
}

func proxyEnv(p *pb.ProxyEnv) []string {
	var out []string
	add := func(upper, lower, v string) {
		if v != "" {
			out = append(out, upper+"="+v, lower+"="+v)
		}
	}
	add("HTTP_PROXY", "http_proxy", p.GetHttpProxy())
	add("HTTPS_PROXY", "https_proxy", p.GetHttpsProxy())
	add("FTP_PROXY", "ftp_proxy", p.GetFtpProxy())
	add("NO_PROXY", "no_proxy", p.GetNoProxy())
	add("ALL_PROXY", "all_proxy", p.GetAllProxy())
	return out
}

func resourcesOf(r *pb.LinuxResources) plan.Resources {
	return plan.Resources{
		Memory: r.GetMemory(), MemorySwap: r.GetMemorySwap(), CPUShares: r.GetCpuShares(), CPUPeriod: r.GetCpuPeriod(),
		CPUQuota: r.GetCpuQuota(), CPUSetCPUs: r.GetCpusetCpus(), CPUSetMems: r.GetCpusetMems(),
	}
}
