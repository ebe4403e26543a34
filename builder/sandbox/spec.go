package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultCaps are Docker's.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
	"CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCaps are all that Linux knows, in the order of their numbers.
var allCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
	"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// Capability returns the number of a capability, such as "CAP_CHOWN".
func Capability(name string) (int, bool) {
	i := slices.Index(allCaps, name)
	return i, i >= 0
}

var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore",
	"/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
	"/sys/devices/virtual/powercap",
}

var readonlyPaths = []string{
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
}

// thermalPaths tell neighbours' load, as Docker found; they are masked too.
var thermalPaths = sync.OnceValue(func() []string {
	paths, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
	if err != nil {
		panic(err) // the pattern is wrong
	}
	return paths
})

// defaultSeccomp is Docker's profile for the default capabilities. It is made
// once: it is large, and every step of every build has the same.
var defaultSeccomp = sync.OnceValues(func() (*specs.LinuxSeccomp, error) {
	return seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps},
	}})
})

const (
	defaultPath    = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultShmSize = 64 << 20
	// What an ordinary login gets, and Docker since 25. Programs that close
	// every descriptor up to the soft limit take long with a higher one.
	softFiles = 1024
	hardFiles = 524288
)

// New makes the configuration that strake runs steps with: new pid, mount, ipc,
// uts, cgroup and net namespaces, Docker's 14 capabilities and seccomp profile,
// its masked and read-only paths, no new privileges not set (setuid works).
// The seccomp profile is shared between configurations: it must not be changed.
func New(c Config) (*specs.Spec, error) {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return nil, errors.New("no program to run")
	}
	s := &specs.Spec{
		// The oldest that has all of it: runtimes refuse what is newer than
		// they are.
		Version: "1.0.2",
		Process: process(c),
		Root:    &specs.Root{Path: "rootfs", Readonly: c.Readonly},
		Mounts:  append(standardMounts(c), c.Mounts...),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.CgroupNamespace},
			},
			CgroupsPath: c.CgroupsPath,
			Resources:   resources(c),
		},
		Hostname: c.Hostname,
	}
	if !c.HostNetwork {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if c.Privileged {
		if !c.Rootless {
			devices, err := hostDevices()
			if err != nil {
				return nil, fmt.Errorf("list devices: %w", err)
			}
			s.Linux.Devices = devices
		}
		return s, nil
	}
	s.Linux.MaskedPaths = append(slices.Clone(maskedPaths), thermalPaths()...)
	s.Linux.ReadonlyPaths = slices.Clone(readonlyPaths)
	profile, err := defaultSeccomp()
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	s.Linux.Seccomp = profile
	return s, nil
}

func process(c Config) *specs.Process {
	bounding := defaultCaps
	if c.Privileged {
		bounding = ownCaps()
	}
	caps := &specs.LinuxCapabilities{Bounding: slices.Clone(bounding)}
	if c.UID == 0 {
		// Others have none until they run a setuid program.
		caps.Effective = caps.Bounding
		caps.Permitted = caps.Bounding
	}
	dir := c.Dir
	if dir == "" {
		dir = "/"
	}
	p := &specs.Process{
		Terminal:     c.Terminal,
		User:         specs.User{UID: c.UID, GID: c.GID, AdditionalGids: slices.Clone(c.Groups)},
		Args:         slices.Clone(c.Args),
		Env:          slices.Clone(c.Env),
		Cwd:          dir,
		Capabilities: caps,
		Rlimits:      slices.Clone(c.Rlimits),
		OOMScoreAdj:  new(int),
	}
	if !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		p.Env = append(p.Env, defaultPath)
	}
	if c.Terminal && !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	files := func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" }
	var own unix.Rlimit
	if !slices.ContainsFunc(p.Rlimits, files) && unix.Getrlimit(unix.RLIMIT_NOFILE, &own) == nil {
		hard := min(own.Max, hardFiles)
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: min(softFiles, hard), Hard: hard})
	}
	return p
}

// ownCaps are all capabilities that this process can give.
func ownCaps() []string {
	var caps []string
	for i, name := range allCaps {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && has == 1 {
			caps = append(caps, name)
		}
	}
	return caps
}

func resources(c Config) *specs.LinuxResources {
	var r specs.LinuxResources
	if c.Resources != nil {
		r = *c.Resources
	}
	if c.Privileged {
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return &r
	}
	if c.Rootless {
		// Device nodes cannot be made or opened anyway, and runtimes that
		// may not set device rules fail over them.
		return &r
	}
	r.Devices = append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, r.Devices...)
	return &r
}

func standardMounts(c Config) []specs.Mount {
	shm := c.ShmSize
	if shm <= 0 {
		shm = defaultShmSize
	}
	sysro := "ro"
	if c.Privileged {
		sysro = "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}
	if c.Rootless {
		pts = pts[:len(pts)-1] // group 5 may have no mapping
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	if c.Rootless && c.HostNetwork {
		// Only the owner of the network namespace may mount sysfs.
		return append(mounts, specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", sysro}})
	}
	mounts = append(mounts, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysro}})
	if !c.Rootless {
		mounts = append(mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sysro}})
	}
	return mounts
}

// hostDevices lists the device nodes of the host's /dev.
func hostDevices() ([]specs.LinuxDevice, error) {
	var devices []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.udev":
				return fs.SkipDir
			}
			return nil
		}
		if d.Type()&fs.ModeDevice == 0 || path == "/dev/console" || path == "/dev/ptmx" {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		kind := "b"
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			kind = "c"
		}
		mode := os.FileMode(st.Mode & 0o7777)
		uid, gid := st.Uid, st.Gid
		devices = append(devices, specs.LinuxDevice{
			Path: path, Type: kind, FileMode: &mode, UID: &uid, GID: &gid,
			Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		})
		return nil
	})
	return devices, err
}
