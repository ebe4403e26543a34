package linux

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

// child is the script of the sandbox's process 1: from the new pid namespace to
// its program.
type child struct {
	*script
	job   *job
	execs []*inst
}

// child writes the script. The stage's thread must be the one that runs or
// clones it.
func (s *stage) child() (*child, error) {
	p := s.Spec.Process
	extra := 256 * 8
	for _, list := range [][]string{p.Args, p.Env} {
		for _, v := range list {
			extra += len(v) + 32
		}
	}
	// The program's name is repeated for each directory of PATH.
	candidates := candidates(p)
	for _, c := range candidates {
		extra += len(c) + 256
	}
	extra += 8*len(s.Filter) + 512*(len(s.Spec.Linux.MaskedPaths)+len(s.Spec.Linux.ReadonlyPaths)+len(p.Rlimits)+len(s.Spec.Linux.Sysctl))
	sc, err := newScript(extra)
	if err != nil {
		return nil, err
	}
	c := &child{script: sc, job: s.job}
	c.session()
	c.pidMounts(s)
	c.pivot(int(s.root))
	if err := c.limits(); err != nil {
		return nil, errors.Join(err, sc.close())
	}
	c.add("close descriptors", unix.SYS_CLOSE_RANGE, 3+s.Keep, uintptr(^uint32(0)), unix.CLOSE_RANGE_UNSHARE)
	c.add("change to working directory "+p.Cwd, unix.SYS_CHDIR, p.Cwd)
	if err := c.privileges(); err != nil {
		return nil, errors.Join(err, sc.close())
	}
	argv, envp := c.strs(p.Args), c.strs(p.Env)
	for _, name := range candidates {
		in := c.add("", unix.SYS_EXECVE, name, argv, envp)
		c.execs = append(c.execs, in)
	}
	c.seal()
	return c, nil
}

// session separates the process from ours: signals, session, stdio, keys.
func (c *child) session() {
	j := c.job
	zero := put(c.script, [4]uint64{}) // struct sigaction: SIG_DFL
	for sig := 1; sig <= 31; sig++ {
		// An ignored SIGHUP of ours would survive execve.
		c.add("", unix.SYS_RT_SIGACTION, sig, zero, 0, 8)
	}
	c.add("new session", unix.SYS_SETSID)
	for i, fd := range j.Stdio {
		c.add("set up stdio", unix.SYS_DUP3, fd, i, 0)
	}
	if j.Spec.Process.Terminal {
		c.add("set controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	// Where it isn't allowed there are no keyrings to be kept out of.
	c.add("", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	for _, fd := range j.Cgroup {
		c.add("join cgroup", unix.SYS_WRITE, fd, "0", 1)
	}
	if j.has(specs.CgroupNamespace) {
		c.add("new cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
}

const (
	fsConfigFlag   = 0 // FSCONFIG_SET_FLAG
	fsConfigString = 1 // FSCONFIG_SET_STRING
	fsConfigCreate = 6 // FSCONFIG_CMD_CREATE
)

// pidMounts mounts what belongs to the pid and cgroup namespaces.
func (c *child) pidMounts(s *stage) {
	for _, m := range s.later {
		kind, what := m.kind, "mount "+m.name
		if kind == "cgroup" {
			// Nobody depends on it, and in a user namespace it may be
			// forbidden.
			kind, what = "cgroup2", ""
		}
		ctx := c.add(what, unix.SYS_FSOPEN, kind, unix.FSOPEN_CLOEXEC)
		c.add(what, unix.SYS_FSCONFIG, ref{ctx}, fsConfigString, "source", kind, 0)
		for _, o := range m.options.data {
			if k, v, ok := strings.Cut(o, "="); ok {
				c.add(what, unix.SYS_FSCONFIG, ref{ctx}, fsConfigString, k, v, 0)
			} else {
				c.add(what, unix.SYS_FSCONFIG, ref{ctx}, fsConfigFlag, o, 0, 0)
			}
		}
		c.add(what, unix.SYS_FSCONFIG, ref{ctx}, fsConfigCreate, 0, 0, 0)
		mount := c.add(what, unix.SYS_FSMOUNT, ref{ctx}, unix.FSMOUNT_CLOEXEC, uintptr(m.options.set))
		c.add(what, unix.SYS_MOVE_MOUNT, ref{mount}, "", m.target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
		if kind == "proc" && m.name == "/proc" {
			c.proc(s, mount)
		}
	}
}

// proc does what needs the new /proc.
func (c *child) proc(s *stage, proc *inst) {
	for name, value := range s.Spec.Linux.Sysctl {
		what := "set sysctl " + name
		fd := c.add(what, unix.SYS_OPENAT, ref{proc}, "sys/"+strings.ReplaceAll(name, ".", "/"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		c.add(what, unix.SYS_WRITE, ref{fd}, value, len(value))
	}
	if adj := s.Spec.Process.OOMScoreAdj; adj != nil {
		own := ownOOMScore()
		what := "set OOM score"
		if *adj < own {
			what = "" // takes a privilege that we may not have
		}
		if *adj != own {
			v := strconv.Itoa(*adj)
			fd := c.add(what, unix.SYS_OPENAT, ref{proc}, "self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			c.add(what, unix.SYS_WRITE, ref{fd}, v, len(v))
		}
	}
	// Which of them exist, and as what, is the same in every /proc of this
	// kernel.
	attr := func(set uint64) uintptr { return put(c.script, unix.MountAttr{Attr_set: set}) }
	size := int(unsafe.Sizeof(unix.MountAttr{}))
	readonly, masked := attr(unix.MOUNT_ATTR_RDONLY), attr(maskAttrs)
	const clone = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	for _, p := range s.Spec.Linux.ReadonlyPaths {
		name, ok := inProc(p)
		if !ok || !exists(p) {
			continue
		}
		what := "make " + p + " read-only"
		fd := c.add(what, unix.SYS_OPEN_TREE, ref{proc}, name, clone|unix.AT_RECURSIVE)
		c.add(what, unix.SYS_MOUNT_SETATTR, ref{fd}, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, readonly, size)
		c.add(what, unix.SYS_MOVE_MOUNT, ref{fd}, "", ref{proc}, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	for _, p := range s.Spec.Linux.MaskedPaths {
		name, ok := inProc(p)
		if !ok || !exists(p) {
			continue
		}
		what := "mask " + p
		from := s.null
		if isDir(p) {
			from = s.empty
		}
		fd := c.add(what, unix.SYS_OPEN_TREE, from, "", clone|unix.AT_EMPTY_PATH)
		c.add(what, unix.SYS_MOUNT_SETATTR, ref{fd}, "", unix.AT_EMPTY_PATH, masked, size)
		c.add(what, unix.SYS_MOVE_MOUNT, ref{fd}, "", ref{proc}, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
}

func exists(name string) bool {
	var st unix.Stat_t
	return unix.Lstat(name, &st) == nil
}

func isDir(name string) bool {
	var st unix.Stat_t
	return unix.Lstat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func ownOOMScore() int {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return n
}

// pivot makes root the root and lets go of the host's.
func (c *child) pivot(root int) {
	c.add("enter root", unix.SYS_FCHDIR, root)
	c.add("pivot root", unix.SYS_PIVOT_ROOT, ".", ".")
	// The old root is now mounted over the new one, and "." is in it.
	c.add("unmount old root", unix.SYS_UMOUNT2, ".", unix.MNT_DETACH)
	c.add("enter root", unix.SYS_CHDIR, "/")
}

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS,
	"RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

func (c *child) limits() error {
	p := c.job.Spec.Process
	for _, l := range p.Rlimits {
		n, ok := rlimits[l.Type]
		if !ok {
			return fmt.Errorf("unknown limit %q", l.Type)
		}
		v := put(c.script, unix.Rlimit{Cur: l.Soft, Max: l.Hard})
		c.add(fmt.Sprintf("set %s to %d:%d", l.Type, l.Soft, l.Hard), unix.SYS_PRLIMIT64, 0, n, v, 0)
	}
	umask := uint32(0o022)
	if p.User.Umask != nil {
		umask = *p.User.Umask
	}
	c.add("set umask", unix.SYS_UMASK, int(umask))
	return nil
}

// lastCapability is the number of the last one that the kernel knows.
var lastCapability = sync.OnceValue(func() int {
	n := 0
	for {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n+1), 0, 0, 0); err != nil {
			return n
		}
		n++
	}
})

type capSets struct{ effective, permitted, inheritable, bounding, ambient uint64 }

func parseCaps(c *specs.LinuxCapabilities) (capSets, error) {
	var sets capSets
	if c == nil {
		return sets, nil
	}
	for _, l := range []struct {
		names []string
		set   *uint64
	}{{c.Effective, &sets.effective}, {c.Permitted, &sets.permitted}, {c.Inheritable, &sets.inheritable}, {c.Bounding, &sets.bounding}, {c.Ambient, &sets.ambient}} {
		for _, name := range l.names {
			n, ok := sandbox.Capability(name)
			if !ok {
				return sets, fmt.Errorf("unknown capability %q", name)
			}
			*l.set |= 1 << n
		}
	}
	return sets, nil
}

// privileges sets ids, capabilities and the seccomp filter.
func (c *child) privileges() error {
	p := c.job.Spec.Process
	caps, err := parseCaps(p.Capabilities)
	if err != nil {
		return err
	}
	// Without no_new_privs a filter takes CAP_SYS_ADMIN, so it comes before the
	// loss of it; what follows is allowed by all profiles that let programs
	// like su work. With no_new_privs it comes last.
	if p.NoNewPrivileges {
		c.add("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	} else {
		c.filter()
	}
	for n := range 64 {
		if caps.bounding&(1<<n) == 0 && n <= lastCapability() {
			c.add("drop capability "+strconv.Itoa(n), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, n, 0, 0, 0)
		}
	}
	keep := caps.permitted|caps.ambient|caps.inheritable != 0 && p.User.UID != 0
	if keep {
		c.add("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	what := "set groups"
	if c.job.Rootless {
		what = "" // with a single id there are none to be had
	}
	c.add(what, unix.SYS_SETGROUPS, len(p.User.AdditionalGids), putSlice(c.script, p.User.AdditionalGids))
	uid, gid := int(p.User.UID), int(p.User.GID)
	c.add(fmt.Sprintf("set group %d", gid), unix.SYS_SETRESGID, gid, gid, gid)
	c.add(fmt.Sprintf("set user %d", uid), unix.SYS_SETRESUID, uid, uid, uid)
	if uid != 0 {
		// On the direct path the process still has our memory. The kernel
		// has just denied the user's other processes to look into it,
		// unless fs.suid_dumpable says otherwise.
		c.add("", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	if uid == 0 || keep {
		head := put(c.script, unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3})
		data := put(c.script, [2]unix.CapUserData{
			{Effective: uint32(caps.effective), Permitted: uint32(caps.permitted), Inheritable: uint32(caps.inheritable)},
			{Effective: uint32(caps.effective >> 32), Permitted: uint32(caps.permitted >> 32), Inheritable: uint32(caps.inheritable >> 32)},
		})
		c.add("set capabilities", unix.SYS_CAPSET, head, data)
	}
	for n := range 64 {
		if caps.ambient&(1<<n) != 0 {
			c.add("raise ambient capability "+strconv.Itoa(n), unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0)
		}
	}
	c.add("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, put(c.script, uint64(0)), 0, 8)
	if p.NoNewPrivileges {
		c.filter()
	}
	return nil
}

func (c *child) filter() {
	if len(c.job.Filter) == 0 {
		return
	}
	type fprog struct {
		n      uint16
		filter uintptr
	}
	prog := put(c.script, fprog{uint16(len(c.job.Filter)), putSlice(c.script, c.job.Filter)})
	c.add("load seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, int(c.flags()), prog)
}

func (c *child) flags() uint {
	var f uint
	for _, name := range c.job.Spec.Linux.Seccomp.Flags {
		switch name {
		case specs.LinuxSeccompFlagLog:
			f |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			f |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		}
	}
	return f
}

// candidates are the files that the program may be, in the order to be tried.
func candidates(p *specs.Process) []string {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var out []string
	for _, kv := range p.Env {
		dirs, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		out = nil // the last one counts
		for _, dir := range strings.Split(dirs, ":") {
			if dir != "" {
				out = append(out, path.Join(dir, name))
			}
		}
	}
	if len(out) == 0 {
		// No PATH: nothing can be found, and execve says so.
		out = []string{"/" + name + "/."}
	}
	return out
}

// execErr is why no candidate could be executed, or nil.
func (c *child) execErr() error {
	var errno unix.Errno
	for _, in := range c.execs {
		e := in.errno()
		if e == 0 {
			return nil
		}
		if errno == 0 || e != unix.ENOENT && e != unix.ENOTDIR {
			if errno == 0 || errno == unix.ENOENT || errno == unix.ENOTDIR {
				errno = e
			}
		}
	}
	name := c.job.Spec.Process.Args[0]
	if !strings.Contains(name, "/") && errno == unix.ENOTDIR {
		errno = unix.ENOENT
	}
	return &sandbox.ExecError{Path: name, Err: errno}
}
