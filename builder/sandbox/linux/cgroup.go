package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroupV2 says that the host has the unified hierarchy only.
var cgroupV2 = sync.OnceValue(func() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
})

// setting is a value to be written to a cgroup's file.
type setting struct {
	controller string
	file       string
	value      string
}

// grouped says whether l asks for a cgroup, for its place or for a limit.
func grouped(l *specs.Linux) bool {
	r := l.Resources
	return l.CgroupsPath != "" || r != nil && (r.Memory != nil || r.CPU != nil || r.Pids != nil || len(r.Unified) > 0)
}

// settings translates resources to files, for v2 or v1.
func settings(r *specs.LinuxResources, v2 bool) ([]setting, error) {
	if r == nil {
		return nil, nil
	}
	if r.BlockIO != nil || len(r.HugepageLimits) > 0 || r.Network != nil || len(r.Rdma) > 0 {
		return nil, fmt.Errorf("limits other than of memory, cpu and pids: %w", errors.ErrUnsupported)
	}
	var out []setting
	add := func(controller, file, value string) { out = append(out, setting{controller, file, value}) }
	num := func(n int64) string {
		if n < 0 {
			if v2 {
				return "max"
			}
			return "-1"
		}
		return strconv.FormatInt(n, 10)
	}
	if m := r.Memory; m != nil {
		if v2 {
			if m.Limit != nil {
				add("memory", "memory.max", num(*m.Limit))
			}
			if m.Reservation != nil {
				add("memory", "memory.low", num(*m.Reservation))
			}
			if m.Swap != nil {
				// The runtime-spec's number is the sum of both.
				swap := *m.Swap
				if swap >= 0 {
					if m.Limit == nil || *m.Limit < 0 {
						return nil, errors.New("a limit of swap needs one of memory")
					}
					if swap -= *m.Limit; swap < 0 {
						return nil, errors.New("the limit of memory and swap is below that of memory")
					}
				}
				add("memory", "memory.swap.max", num(swap))
			}
		} else {
			if m.Limit != nil {
				add("memory", "memory.limit_in_bytes", num(*m.Limit))
			}
			if m.Reservation != nil {
				add("memory", "memory.soft_limit_in_bytes", num(*m.Reservation))
			}
			if m.Swap != nil {
				add("memory", "memory.memsw.limit_in_bytes", num(*m.Swap))
			}
		}
	}
	if c := r.CPU; c != nil {
		period := uint64(100000)
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		switch {
		case v2 && (c.Quota != nil || c.Period != nil):
			quota := "max"
			if c.Quota != nil && *c.Quota > 0 {
				quota = strconv.FormatInt(*c.Quota, 10)
			}
			add("cpu", "cpu.max", fmt.Sprintf("%s %d", quota, period))
		case !v2:
			if c.Period != nil {
				add("cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10))
			}
			if c.Quota != nil {
				add("cpu", "cpu.cfs_quota_us", num(*c.Quota))
			}
		}
		if c.Shares != nil && *c.Shares > 0 {
			if v2 {
				add("cpu", "cpu.weight", strconv.FormatUint(weight(*c.Shares), 10))
			} else {
				add("cpu", "cpu.shares", strconv.FormatUint(*c.Shares, 10))
			}
		}
		if c.Cpus != "" {
			add("cpuset", "cpuset.cpus", c.Cpus)
		}
		if c.Mems != "" {
			add("cpuset", "cpuset.mems", c.Mems)
		}
	}
	if p := r.Pids; p != nil && p.Limit != nil && *p.Limit != 0 {
		limit := *p.Limit
		value := "max"
		if limit > 0 {
			value = strconv.FormatInt(limit, 10)
		}
		add("pids", "pids.max", value)
	}
	for file, value := range r.Unified {
		if !v2 {
			return nil, errors.New("this machine has no cgroup v2")
		}
		controller, _, ok := strings.Cut(file, ".")
		if !ok || strings.Contains(file, "/") || controller == "cgroup" {
			return nil, fmt.Errorf("bad cgroup file %q", file)
		}
		add(controller, file, value)
	}
	return out, nil
}

// weight converts cpu shares (2 to 262144, 1024 by default) to a weight (1 to
// 10000, 100 by default) as the runtimes do.
func weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

// cgroup is the cgroup of one sandbox: a directory per hierarchy.
type cgroup struct {
	dirs    []string
	parents fds // opened parents of dirs
	procs   fds // opened cgroup.procs of dirs
}

var cgroupCount atomic.Uint64

// accounting are the controllers of v1 in whose hierarchies a step is put below
// the parent it is given, whether it is limited or not.
var accounting = []string{"memory", "cpu", "cpuacct", "pids"}

// newCgroup makes a cgroup below root (empty: the default), a sibling of path
// if that is not empty.
func newCgroup(root, path string, r *specs.LinuxResources) (_ *cgroup, err error) {
	v2 := cgroupV2()
	var st unix.Statfs_t
	if root != "" && unix.Statfs(root, &st) == nil {
		v2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	list, err := settings(r, v2)
	if err != nil {
		return nil, err
	}
	parent := "/strake"
	if path != "" {
		parent = filepath.Dir(filepath.Clean("/" + path))
	}
	name := fmt.Sprintf("strake-%d-%d", os.Getpid(), cgroupCount.Add(1))
	c := &cgroup{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.remove())
		}
	}()
	if v2 {
		if root == "" {
			root = cgroupRoot
		}
		return c, c.makeV2(root, filepath.Join(parent, name), list)
	}
	if root == "" {
		root = cgroupRoot
	}
	var controllers []string
	for _, s := range list {
		controllers = append(controllers, s.controller)
	}
	if path != "" {
		controllers = append(controllers, accounting...)
	}
	var made []string
	for _, controller := range controllers {
		dir, err := filepath.EvalSymlinks(filepath.Join(root, controller)) // cpu and cpuacct may be one
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(accounting, controller) {
			continue
		}
		if err != nil {
			return c, err
		}
		if slices.Contains(made, dir) {
			continue
		}
		made = append(made, dir)
		if err := c.makeV1(dir, filepath.Join(parent, name), controller, list); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *cgroup) makeV2(root, name string, list []setting) error {
	dir := root
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i, part := range parts {
		for _, s := range list {
			enable := filepath.Join(dir, "cgroup.subtree_control")
			if have, err := os.ReadFile(enable); err == nil && slices.Contains(strings.Fields(string(have)), s.controller) {
				continue
			}
			if err := os.WriteFile(enable, []byte("+"+s.controller), 0); err != nil {
				return fmt.Errorf("enable the cgroup controller %s: %w", s.controller, err)
			}
		}
		dir = filepath.Join(dir, part)
		if err := c.mkdir(dir, i == len(parts)-1); err != nil {
			return err
		}
	}
	return c.fill(dir, list)
}

func (c *cgroup) makeV1(root, name, controller string, list []setting) error {
	dir := root
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i, part := range parts {
		parent := dir
		dir = filepath.Join(dir, part)
		if err := c.mkdir(dir, i == len(parts)-1); err != nil {
			return err
		}
		if controller != "cpuset" {
			continue
		}
		// A new cpuset is empty, and nothing can run in it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(own)) != "" {
				continue
			}
			value, err := os.ReadFile(filepath.Join(parent, file))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), value, 0)
			}
			if err != nil {
				return err
			}
		}
	}
	var mine []setting
	for _, s := range list {
		if s.controller == controller {
			mine = append(mine, s)
		}
	}
	return c.fill(dir, mine)
}

func (c *cgroup) mkdir(dir string, own bool) error {
	err := os.Mkdir(dir, 0o755)
	if err != nil && (own || !errors.Is(err, fs.ErrExist)) {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	if !own {
		return nil
	}
	c.dirs = append(c.dirs, dir)
	if _, err := c.parents.take(unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)); err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(dir), err)
	}
	return nil
}

func (c *cgroup) fill(dir string, list []setting) error {
	for _, s := range list {
		// Without swap accounting there is no swap to be limited.
		if err := os.WriteFile(filepath.Join(dir, s.file), []byte(s.value), 0); err != nil {
			if strings.Contains(s.file, "sw") && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return fmt.Errorf("limit %s=%s: %w", s.file, s.value, err)
		}
	}
	if _, err := c.procs.take(unix.Open(filepath.Join(dir, "cgroup.procs"), unix.O_WRONLY|unix.O_CLOEXEC, 0)); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// remove removes the cgroup, in which nothing runs any more.
func (c *cgroup) remove() error {
	c.procs.close()
	c.parents.close()
	var errs []error
	for _, dir := range c.dirs {
		err := unix.Rmdir(dir)
		// A process is gone a little before its cgroup knows.
		for range 1000 {
			if err != unix.EBUSY && err != unix.EINTR {
				break
			}
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
			err = unix.Rmdir(dir)
		}
		if err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	c.dirs = nil
	return errors.Join(errs...)
}

// sweepCgroups removes what killed processes left below root.
func sweepCgroups(root string) {
	if root == "" {
		root = cgroupRoot
	}
	var left []string
	for _, pattern := range []string{"strake/strake-*", "*/strake/strake-*"} {
		dirs, _ := filepath.Glob(filepath.Join(root, pattern)) // the patterns are good
		left = append(left, dirs...)
	}
	for _, dir := range left {
		f := strings.Split(filepath.Base(dir), "-")
		if len(f) != 3 {
			continue
		}
		pid, err := strconv.Atoi(f[1])
		if err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			_ = unix.Rmdir(dir) // fails if it is in use
		}
	}
}
