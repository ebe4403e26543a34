package buildkitapi

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/go-csvvalue"

	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
)

// options reads the frontend's attributes. Those of other frontends, and of
// clients newer than this, are passed over, as BuildKit does.
func (f *dockerfile) options() (parser.Options, error) {
	o := parser.Options{
		Target: f.attrs["target"], BuildPlatform: f.job.s.o.Platforms[0], Args: f.prefixed("build-arg:"), Labels: f.prefixed("label:"),
		Hostname: f.attrs["hostname"],
	}
	if v := o.Args["BUILDKIT_SANDBOX_HOSTNAME"]; v != "" {
		o.Hostname = v
	}
	f.noCache(&o)
	var err error
	for p := range strings.SplitSeq(f.attrs["platform"], ",") {
		if p == "" {
			continue
		}
		parsed, err := platforms.Parse(p)
		if err != nil {
			return o, fmt.Errorf("failed to parse target platform %s: %w", p, err)
		}
		o.Platforms = append(o.Platforms, platforms.Normalize(parsed))
	}
	f.multi = len(o.Platforms) > 1
	v := f.attrs["multi-platform"]
	if a := o.Args["BUILDKIT_MULTI_PLATFORM"]; a != "" {
		v = a
	}
	if v != "" {
		multi, err := strconv.ParseBool(v)
		if err != nil {
			return o, fmt.Errorf("invalid boolean value for multi-platform: %s", v)
		}
		if !multi && f.multi {
			return o, fmt.Errorf("conflicting config: returning multiple target platforms is not allowed")
		}
		f.multi = multi
	}
	switch v := f.attrs["image-resolve-mode"]; v {
	case "", pb.AttrImageResolveModeDefault, pb.AttrImageResolveModeForcePull, pb.AttrImageResolveModePreferLocal:
	default:
		return o, fmt.Errorf("invalid image-resolve-mode: %s", v)
	}
	switch v := f.attrs["force-network-mode"]; v {
	case "", "sandbox":
	case "none", "host":
		o.Network = plan.NetworkMode(v)
	default:
		return o, fmt.Errorf("invalid netmode %s", v)
	}
	if o.Hosts, err = hostsOf(f.attrs["add-hosts"]); err != nil {
		return o, fmt.Errorf("failed to parse additional hosts: %w", err)
	}
	if v := f.attrs["shm-size"]; v != "" {
		if o.ShmSize, err = strconv.ParseInt(v, 10, 64); err != nil || o.ShmSize < 0 {
			return o, fmt.Errorf("failed to parse shm size %q", v)
		}
	}
	if o.Ulimits, err = ulimitsOf(f.attrs["ulimit"]); err != nil {
		return o, fmt.Errorf("failed to parse ulimit: %w", err)
	}
	o.Resources, err = f.resources()
	return o, err
}

func hostsOf(v string) ([]plan.Host, error) {
	if v == "" {
		return nil, nil
	}
	fields, err := csvvalue.Fields(v, nil)
	if err != nil {
		return nil, err
	}
	var out []plan.Host
	for _, field := range fields {
		name, ip, ok := strings.Cut(strings.ToLower(field), "=")
		if !ok {
			return nil, fmt.Errorf("invalid key-value pair %s", field)
		}
		if net.ParseIP(ip) == nil {
			return nil, fmt.Errorf("failed to parse IP %s", ip)
		}
		out = append(out, plan.Host{Name: name, IP: ip})
	}
	return out, nil
}

func ulimitsOf(v string) ([]plan.Ulimit, error) {
	if v == "" {
		return nil, nil
	}
	fields, err := csvvalue.Fields(v, nil)
	if err != nil {
		return nil, err
	}
	var out []plan.Ulimit
	for _, field := range fields {
		u, err := units.ParseUlimit(field)
		if err != nil {
			return nil, err
		}
		out = append(out, plan.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return out, nil
}

func (f *dockerfile) resources() (r plan.Resources, err error) {
	number := func(key string, lowest int64) int64 {
		v := f.attrs[key]
		if v == "" || err != nil {
			return 0
		}
		n, perr := strconv.ParseInt(v, 10, 64)
		switch {
		case perr != nil:
			err = fmt.Errorf("invalid %s value: %s: %w", key, v, perr)
		case n < lowest || n == 0:
			err = fmt.Errorf("invalid %s value: %s: must be > 0", key, v)
		}
		return n
	}
	r.Memory = number("memory", 1)
	r.MemorySwap = number("memswap", -1)
	r.CPUShares = uint64(number("cpushares", 1))
	r.CPUPeriod = uint64(number("cpuperiod", 1))
	r.CPUQuota = number("cpuquota", 1)
	r.CPUSetCPUs, r.CPUSetMems = f.attrs["cpusetcpus"], f.attrs["cpusetmems"]
	r.CgroupParent = f.attrs["cgroup-parent"]
	return r, err
}
