package linux

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

// job is what it takes to start a process. It goes through a pipe to a
// re-executed child as JSON; numbers of descriptors are valid there.
type job struct {
	Spec     *specs.Spec
	Root     sandbox.Root
	Files    []sandbox.File
	Trees    []sandbox.TreeMount
	Rootless bool
	NetNS    int    // -1: none given
	Stdio    [3]int // -1: the sandbox's /dev/null; unused with a terminal
	Keep     int    // descriptors from 3 up to here stay open until execve
	Filter   []unix.SockFilter
	// Cgroup has the opened cgroup.procs of the cgroups to join, CgroupDirs
	// the cgroups.
	Cgroup     []int
	CgroupDirs []string
}

func (j *job) has(kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(j.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// devices says that device nodes may be used: the sandbox is privileged.
func (j *job) devices() bool {
	r := j.Spec.Linux.Resources
	return r != nil && slices.ContainsFunc(r.Devices, func(d specs.LinuxDeviceCgroup) bool {
		return d.Allow && d.Major == nil && d.Minor == nil && (d.Type == "" || d.Type == "a")
	})
}

// stage is a sandbox under construction. Its methods run on a thread that has
// left the process's namespaces for the sandbox's, and after that runs nothing
// else. Each of them leaves what it opened in open.
type stage struct {
	*job
	open    fds
	staging int // a tmpfs outside of the root: masks, devices, files
	null    int // a real /dev/null
	empty   int // an empty read-only directory, to be cloned; -1 until needed
	root    rootDir
	binds   map[int]int // by index in Spec.Mounts: unattached mounts
	trees   []int       // likewise of Trees
	later   []procMount // to be mounted in the pid namespace
	pts     int         // the mounted devpts; -1
	dev     int         // the mounted /dev; -1
	master  int         // of the terminal
}

// procMount is a mount that only a process in the sandbox's pid or cgroup
// namespace can make.
type procMount struct {
	name    string
	kind    string
	options mountOptions
	target  int
}

// setup makes everything but what has to be done in the new pid namespace. The
// thread is in the sandbox's namespaces even after an error.
func (j *job) setup() (*stage, error) {
	s := &stage{job: j, staging: -1, null: -1, empty: -1, pts: -1, dev: -1, master: -1, binds: map[int]int{}}
	for _, f := range []func() error{s.namespaces, s.stagingArea, s.sources, s.mountRoot, s.mounts, s.mountTrees, s.mountFiles, s.maskPaths, s.finish} {
		if err := f(); err != nil {
			s.open.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) namespaces() error {
	flags := unix.CLONE_FS | unix.CLONE_NEWNS
	newnet := false
	join := s.NetNS
	for _, n := range s.Spec.Linux.Namespaces {
		switch n.Type {
		case specs.IPCNamespace:
			flags |= unix.CLONE_NEWIPC
		case specs.UTSNamespace:
			flags |= unix.CLONE_NEWUTS
		case specs.NetworkNamespace:
			switch {
			case join >= 0:
			case n.Path != "":
				fd, err := s.open.take(unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0))
				if err != nil {
					return fmt.Errorf("network namespace %s: %w", n.Path, err)
				}
				join = fd
			default:
				newnet = true
				flags |= unix.CLONE_NEWNET
			}
		}
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	unix.Umask(0) // this thread's own, since CLONE_FS
	if join >= 0 {
		if err := unix.Setns(join, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if newnet {
		if err := loopback(); err != nil {
			return fmt.Errorf("loopback interface: %w", err)
		}
	}
	if s.has(specs.UTSNamespace) {
		if err := unix.Sethostname([]byte(s.Spec.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", s.Spec.Hostname, err)
		}
		if d := s.Spec.Domainname; d != "" {
			if err := unix.Setdomainname([]byte(d)); err != nil {
				return fmt.Errorf("set domain name %q: %w", d, err)
			}
		}
	}
	return nil
}

// loopback brings lo up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// cover attaches a mount to a directory of the host.
func cover(mount int, dir string) error {
	return unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// stagingArea opens what masks and devices are made of.
func (s *stage) stagingArea() error {
	// Secrets are not to reach a disk by swapping, where that can be had.
	attrs := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	fd, err := newFS("tmpfs", "staging", []string{"mode=700", "noswap"}, attrs)
	if err != nil {
		fd, err = newFS("tmpfs", "staging", []string{"mode=700"}, attrs)
	}
	if s.staging, err = s.open.take(fd, err); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	return nil
}

// sources opens what of the host is shown in the sandbox, before the root
// covers any of it.
func (s *stage) sources() error {
	for i, m := range s.Spec.Mounts {
		o := parseOptions(m)
		if !o.bind {
			continue
		}
		fd, err := s.clone(unix.AT_FDCWD, m.Source, o.recursive)
		if err != nil {
			return fmt.Errorf("mount %s: source %s: %w", m.Destination, m.Source, err)
		}
		s.binds[i] = fd
	}
	for _, t := range s.Trees {
		fd, err := openTree(t, s.Rootless, s.nodev(), &s.open)
		if err != nil {
			return fmt.Errorf("mount %s: %w", t.Target, err)
		}
		s.trees = append(s.trees, fd)
	}
	return nil
}

// clone makes an unattached copy of the mount at name.
func (s *stage) clone(dir int, name string, recursive bool) (int, error) {
	return clone(dir, name, recursive, s.Rootless, &s.open)
}

// nodev is MOUNT_ATTR_NODEV unless the sandbox may use devices. Processes have
// CAP_MKNOD, and images contain what their makers like: without it, a device
// node would open the host's disks.
func (s *stage) nodev() int {
	if s.devices() {
		return 0
	}
	return unix.MOUNT_ATTR_NODEV
}

func (s *stage) mountRoot() error {
	fd, at, err := mountRoot(s.Root, s.nodev())
	if fd, err = s.open.take(fd, err); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	// The staging area is attached below it, so that it can be cloned from.
	if err := cover(s.staging, at); err != nil {
		return fmt.Errorf("mount staging area on %s: %w", at, err)
	}
	if err := s.stageNull(); err != nil {
		return err
	}
	if err := cover(fd, at); err != nil {
		return fmt.Errorf("mount root on %s: %w", at, err)
	}
	s.root = rootDir(fd)
	return nil
}

// target opens a mount point.
func (s *stage) target(name string, dir bool) (int, error) {
	return s.open.take(s.root.target(name, dir))
}

func (s *stage) mounts() error {
	for i, m := range s.Spec.Mounts {
		if err := s.mount(i, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	return nil
}

func (s *stage) mount(i int, m specs.Mount) error {
	o := parseOptions(m)
	name := path.Clean("/" + m.Destination)
	if strings.HasPrefix(name, "/proc/") {
		return errors.New("nothing can be mounted inside /proc")
	}
	if name == "/proc" || name == "/sys" {
		// Behind a symlink of the image they would be of no use, and hide
		// that what should be masked is elsewhere.
		if fd, err := s.root.open(name, unix.O_PATH|unix.O_NOFOLLOW, 0); err == nil {
			var st unix.Stat_t
			err = unix.Fstat(fd, &st)
			_ = unix.Close(fd)
			if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return errors.New("it is not a directory in the image")
			}
		}
	}
	dir := true
	if o.bind {
		var st unix.Stat_t
		if err := unix.Fstat(s.binds[i], &st); err != nil {
			return err
		}
		dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	}
	target, err := s.target(name, dir)
	if err != nil {
		return err
	}
	switch {
	case o.bind:
		return s.bind(s.binds[i], target, o)
	case m.Type == "proc", m.Type == "cgroup" && cgroupV2():
		s.later = append(s.later, procMount{name, m.Type, o, target})
		return nil
	case m.Type == "cgroup":
		// The hierarchies of cgroup v1 would show the host's tree.
		m.Type, m.Source, o.data = "tmpfs", "cgroup", []string{"mode=755", "size=0"}
	case m.Type == "tmpfs" && !s.devices():
		o.set |= unix.MOUNT_ATTR_NODEV
	}
	fd, err := s.open.take(newFS(m.Type, m.Source, o.data, int(o.set)))
	if err != nil {
		if m.Type == "sysfs" && s.Rootless && errors.Is(err, unix.EPERM) {
			return s.bindSys(target, o)
		}
		return err
	}
	if err := attach(fd, target); err != nil {
		return err
	}
	switch {
	case m.Type == "devpts":
		s.pts = fd
	case m.Type == "tmpfs" && name == "/dev":
		s.dev = fd
		return s.makeDevices()
	}
	return nil
}

func (s *stage) bind(fd, target int, o mountOptions) error {
	if !s.devices() {
		o.set |= unix.MOUNT_ATTR_NODEV
		o.clr &^= unix.MOUNT_ATTR_NODEV
	}
	// In a user namespace flags of the host's mounts are locked.
	if s.Rootless {
		o.clr = 0
	}
	if err := setAttrs(fd, o.set, o.clr, true); err != nil {
		return err
	}
	return attach(fd, target)
}

// bindSys shows the host's /sys, for want of the right to mount one.
func (s *stage) bindSys(target int, o mountOptions) error {
	fd, err := s.clone(unix.AT_FDCWD, "/sys", true)
	if err != nil {
		return err
	}
	return s.bind(fd, target, mountOptions{set: o.set | unix.MOUNT_ATTR_RDONLY})
}

func (s *stage) mountTrees() error {
	for i, t := range s.Trees {
		var st unix.Stat_t
		err := unix.Fstat(s.trees[i], &st)
		if err != nil {
			return fmt.Errorf("mount %s: %w", t.Target, err)
		}
		target, err := s.target(t.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
		if err == nil {
			err = attach(s.trees[i], target)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", t.Target, err)
		}
	}
	return nil
}

// mountFiles puts Files on the staging area and shows them.
func (s *stage) mountFiles() error {
	for i, f := range s.Files {
		if err := s.mountFile("file"+strconv.Itoa(i), f); err != nil {
			return fmt.Errorf("mount %s: %w", f.Path, err)
		}
	}
	return nil
}

func (s *stage) mountFile(name string, f sandbox.File) error {
	fd, err := s.open.take(unix.Openat(s.staging, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600))
	if err != nil {
		return err
	}
	for data := f.Data; len(data) > 0; {
		n, err := unix.Write(fd, data)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	if err := unix.Fchown(fd, f.UID, f.GID); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", f.UID, f.GID, err)
	}
	if err := unix.Fchmod(fd, f.Mode&0o7777); err != nil {
		return err
	}
	mount, err := s.clone(s.staging, name, false)
	if err != nil {
		return err
	}
	if err := setAttrs(mount, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, unix.MOUNT_ATTR_NOEXEC, false); err != nil {
		return err
	}
	target, err := s.target(f.Path, false)
	if err != nil {
		return err
	}
	return attach(mount, target)
}

func isRoot(name string) bool { return path.Clean("/"+name) == "/" }

// inProc cuts /proc/ off a path.
func inProc(name string) (string, bool) { return strings.CutPrefix(path.Clean("/"+name), "/proc/") }

// maskPaths masks what is not in /proc, which doesn't exist yet.
func (s *stage) maskPaths() error {
	for _, name := range s.Spec.Linux.MaskedPaths {
		if _, ok := inProc(name); ok {
			continue
		}
		if err := s.mask(name); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	for _, name := range s.Spec.Linux.ReadonlyPaths {
		if _, ok := inProc(name); ok {
			continue
		}
		if err := s.readonly(name); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	return nil
}

func (s *stage) mask(name string) error {
	target, err := s.open.take(s.root.open(name, unix.O_PATH, 0))
	if err == unix.ENOENT {
		return nil
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(target, &st)
	}
	if err != nil {
		return err
	}
	var fd int
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := s.needEmpty(); err != nil {
			return err
		}
		fd, err = s.clone(s.empty, "", false)
	} else {
		fd, err = s.clone(s.null, "", false)
		if err == nil {
			err = setAttrs(fd, maskAttrs, 0, false)
		}
	}
	if err != nil {
		return err
	}
	return attach(fd, target)
}

const maskAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC

// needEmpty makes s.empty. Clones of it mask directories at a fraction of the
// price of a file system each.
func (s *stage) needEmpty() error {
	if s.empty >= 0 {
		return nil
	}
	if err := unix.Mkdirat(s.staging, "empty", 0o755); err != nil {
		return err
	}
	fd, err := s.clone(s.staging, "empty", false)
	if err != nil {
		return err
	}
	if err := setAttrs(fd, maskAttrs|unix.MOUNT_ATTR_NODEV, 0, false); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", s.staging, "empty", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	s.empty = fd
	return nil
}

func (s *stage) readonly(name string) error {
	target, err := s.open.take(s.root.open(name, unix.O_PATH, 0))
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := s.clone(target, "", true)
	if err != nil {
		return err
	}
	if err := setAttrs(fd, unix.MOUNT_ATTR_RDONLY, 0, true); err != nil {
		return err
	}
	return attach(fd, target)
}

// finish makes the working directory, the terminal and the root's mode.
func (s *stage) finish() error {
	if !strings.HasPrefix(s.Spec.Process.Cwd, "/") {
		return fmt.Errorf("the working directory %q is not absolute", s.Spec.Process.Cwd)
	}
	if _, err := s.target(s.Spec.Process.Cwd, true); err != nil {
		// Inside /proc and the like it may come to be later: chdir will see.
		if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("working directory %s: %w", s.Spec.Process.Cwd, err)
		}
	}
	if s.Spec.Process.Terminal {
		if err := s.terminal(); err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
	}
	for i, fd := range s.Stdio {
		if fd >= 0 {
			continue
		}
		var err error
		if s.Stdio[i], err = s.open.take(unix.Openat(s.staging, "null", unix.O_RDWR|unix.O_CLOEXEC, 0)); errors.Is(err, unix.ENOENT) {
			s.Stdio[i], err = s.open.take(unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0))
		}
		if err != nil {
			return fmt.Errorf("/dev/null: %w", err)
		}
	}
	if s.Spec.Root != nil && s.Spec.Root.Readonly {
		if err := setAttrs(int(s.root), unix.MOUNT_ATTR_RDONLY, 0, false); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return nil
}
