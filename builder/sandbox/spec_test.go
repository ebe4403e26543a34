package sandbox

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func mustNew(t *testing.T, c Config) *specs.Spec {
	t.Helper()
	if c.Args == nil {
		c.Args = []string{"true"}
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func namespaces(s *specs.Spec) string {
	var names []string
	for _, n := range s.Linux.Namespaces {
		names = append(names, string(n.Type))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func mountAt(t *testing.T, s *specs.Spec, name string) specs.Mount {
	t.Helper()
	for _, m := range s.Mounts {
		if m.Destination == name {
			return m
		}
	}
	t.Fatalf("nothing is mounted on %s", name)
	return specs.Mount{}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	s := mustNew(t, Config{})
	if got := namespaces(s); got != "cgroup ipc mount network pid uts" {
		t.Errorf("namespaces %s", got)
	}
	p := s.Process
	if p.Cwd != "/" || p.NoNewPrivileges || p.Terminal || !slices.Contains(p.Env, defaultPath) {
		t.Errorf("process %+v", p)
	}
	if len(p.Capabilities.Bounding) != 14 || len(p.Capabilities.Effective) != 14 || len(p.Capabilities.Ambient) != 0 || len(p.Capabilities.Inheritable) != 0 {
		t.Errorf("capabilities %+v", p.Capabilities)
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno {
		t.Error("no seccomp profile")
	}
	for _, name := range []string{"/proc/kcore", "/proc/keys", "/sys/firmware"} {
		if !slices.Contains(s.Linux.MaskedPaths, name) {
			t.Errorf("%s is not masked", name)
		}
	}
	if !slices.Contains(s.Linux.ReadonlyPaths, "/proc/sys") {
		t.Error("/proc/sys is not read-only")
	}
	if m := mountAt(t, s, "/sys"); m.Type != "sysfs" || !slices.Contains(m.Options, "ro") {
		t.Errorf("/sys: %+v", m)
	}
	if m := mountAt(t, s, "/dev/shm"); !slices.Contains(m.Options, "size=67108864") {
		t.Errorf("/dev/shm: %+v", m)
	}
	if d := s.Linux.Resources.Devices; len(d) == 0 || d[0].Allow || d[0].Access != "rwm" {
		t.Errorf("devices: %+v", d)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	mine := specs.Mount{Destination: "/mine", Type: "tmpfs"}
	s := mustNew(t, Config{
		Env: []string{"PATH=/x"}, Dir: "/work", UID: 5, GID: 6, Groups: []uint32{7}, Hostname: "h",
		HostNetwork: true, Readonly: true, ShmSize: 100, Terminal: true, Mounts: []specs.Mount{mine},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}, CgroupsPath: "/a/b",
	})
	p := s.Process
	if got := namespaces(s); got != "cgroup ipc mount pid uts" {
		t.Errorf("namespaces %s", got)
	}
	if !slices.Equal(p.Env, []string{"PATH=/x", "TERM=xterm"}) {
		t.Errorf("environment %v", p.Env)
	}
	if p.Cwd != "/work" || p.User.UID != 5 || p.User.GID != 6 || !slices.Equal(p.User.AdditionalGids, []uint32{7}) || !p.Terminal {
		t.Errorf("process %+v", p)
	}
	if len(p.Rlimits) != 1 || p.Rlimits[0].Hard != 2 {
		t.Errorf("limits %+v", p.Rlimits)
	}
	if len(p.Capabilities.Effective) != 0 || len(p.Capabilities.Bounding) != 14 {
		t.Errorf("a user's capabilities %+v", p.Capabilities)
	}
	if !s.Root.Readonly || s.Hostname != "h" || s.Linux.CgroupsPath != "/a/b" {
		t.Errorf("root %+v, host name %s, cgroup %s", s.Root, s.Hostname, s.Linux.CgroupsPath)
	}
	if last := s.Mounts[len(s.Mounts)-1]; last.Destination != "/mine" {
		t.Errorf("the last mount is %+v", last)
	}
	if m := mountAt(t, s, "/dev/shm"); !slices.Contains(m.Options, "size=100") {
		t.Errorf("/dev/shm: %+v", m)
	}
}

func TestPrivileged(t *testing.T) {
	t.Parallel()
	s := mustNew(t, Config{Privileged: true})
	if s.Linux.Seccomp != nil || len(s.Linux.MaskedPaths)+len(s.Linux.ReadonlyPaths) > 0 {
		t.Error("there is a filter, or something is masked")
	}
	if d := s.Linux.Resources.Devices; len(d) != 1 || !d[0].Allow {
		t.Errorf("devices: %+v", d)
	}
	null := slices.ContainsFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool {
		return d.Path == "/dev/null" && d.Type == "c" && d.Major == 1 && d.Minor == 3
	})
	if !null {
		t.Errorf("the host's /dev/null is not there: %+v", s.Linux.Devices)
	}
	if m := mountAt(t, s, "/sys"); slices.Contains(m.Options, "ro") {
		t.Errorf("/sys: %+v", m)
	}
}

func TestRootless(t *testing.T) {
	t.Parallel()
	s := mustNew(t, Config{Rootless: true})
	if m := mountAt(t, s, "/dev/pts"); slices.Contains(m.Options, "gid=5") {
		t.Errorf("/dev/pts: %+v", m)
	}
	if len(s.Linux.Resources.Devices) > 0 {
		t.Errorf("device rules %+v", s.Linux.Resources.Devices)
	}
	s = mustNew(t, Config{Rootless: true, HostNetwork: true})
	if m := mountAt(t, s, "/sys"); !slices.Contains(m.Options, "rbind") || !slices.Contains(m.Options, "ro") {
		t.Errorf("/sys: %+v", m)
	}
}

// What New returns belongs to the caller, but for the profile.
func TestNothingShared(t *testing.T) {
	t.Parallel()
	c := Config{Args: []string{"a"}, Env: []string{"PATH=b"}, Groups: []uint32{1}}
	s := mustNew(t, c)
	s.Process.Args[0], s.Process.Env[0], s.Process.User.AdditionalGids[0] = "x", "x", 9
	s.Process.Capabilities.Bounding[0] = "x"
	s.Linux.MaskedPaths[0], s.Linux.ReadonlyPaths[0] = "x", "x"
	s = mustNew(t, c)
	if s.Process.Args[0] != "a" || s.Process.Env[0] != "PATH=b" || s.Process.User.AdditionalGids[0] != 1 ||
		s.Process.Capabilities.Bounding[0] != "CAP_CHOWN" || s.Linux.MaskedPaths[0] != "/proc/acpi" || s.Linux.ReadonlyPaths[0] != "/proc/bus" {
		t.Error("one configuration changed another")
	}
}

func TestNoProgram(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {""}} {
		if _, err := New(Config{Args: args}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestExecError(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  ExecError
		want string
	}{
		{ExecError{Path: "foo", Err: unix.ENOENT}, `exec "foo": executable file not found in $PATH`},
		{ExecError{Path: "/foo", Err: unix.ENOENT}, `exec "/foo": no such file or directory`},
		{ExecError{Path: "foo", Err: unix.EACCES}, `exec "foo": permission denied`},
		{ExecError{Path: "/foo", Err: unix.ENOENT, Hint: "why"}, `exec "/foo": no such file or directory (why)`},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
		if !errors.Is(&tt.err, tt.err.Err) {
			t.Errorf("%s does not unwrap", tt.want)
		}
	}
}

func TestCapability(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{"CAP_CHOWN": unix.CAP_CHOWN, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE, "CAP_SETFCAP": unix.CAP_SETFCAP} {
		if got, ok := Capability(name); !ok || got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
	if _, ok := Capability("CAP_NONE"); ok {
		t.Error("CAP_NONE is there")
	}
}
