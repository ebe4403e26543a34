package sandboxtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

func exitCodes(t *testing.T, s *suite) {
	for script, want := range map[string]int{
		"exit 0": 0, "exit 1": 1, "exit 127": 127, "exit 255": 255,
		"sh -c 'kill -9 $$'; exit $?": 137,
	} {
		res := s.try(t.Context(), t, sh(script))
		if res.err != nil || res.exit != want {
			t.Errorf("%s: exit %d, error %v, want %d", script, res.exit, res.err, want)
		}
	}
}

func output(t *testing.T, s *suite) {
	res := s.try(t.Context(), t, sh("echo out; echo err >&2; echo more > /dev/stdout; dd if=/dev/zero bs=1024 count=300 2>/dev/null"))
	if res.err != nil || res.exit != 0 {
		t.Fatalf("exit %d, error %v", res.exit, res.err)
	}
	if want := "out\nmore\n" + strings.Repeat("\x00", 300<<10); res.stdout != want {
		t.Errorf("stdout has %d bytes, want %d", len(res.stdout), len(want))
	}
	want(t, "stderr", res.stderr, "err")

	// A user can open it too.
	if !s.SingleID {
		r := sh("echo hi > /dev/stdout")
		r.config.UID, r.config.GID = 1000, 1000
		want(t, "user's stdout", s.ok(t, r), "hi")
	}
}

func input(t *testing.T, s *suite) {
	r := sh("cat; cat")
	r.process.Stdin = strings.NewReader("some input\n")
	want(t, "stdin", s.ok(t, r), "some input")
	want(t, "no stdin", s.ok(t, sh("cat; echo end")), "end")
	// Nobody reads on when the process has ended.
	never, w := io.Pipe()
	defer w.Close()
	r = sh("echo end")
	r.process.Stdin = never
	want(t, "endless stdin", s.ok(t, r), "end")
}

func environment(t *testing.T, s *suite) {
	r := sh(`echo "$A|$PATH|$(pwd)|$(hostname)|$$"; env | wc -l`)
	r.config.Env = []string{"A=b c", "PATH=/bin:/nowhere"}
	r.config.Dir = "/made/for/this"
	r.config.Hostname = "somehost"
	got := strings.Fields(s.ok(t, r))
	if len(got) < 2 || strings.Join(got[:2], " ") != "b c|/bin:/nowhere|/made/for/this|somehost|1" {
		t.Errorf("got %q", got)
	}
}

func users(t *testing.T, s *suite) {
	rep := s.report(t, run{})
	if rep.UID != 0 || rep.GID != 0 || len(rep.Groups) > 0 && !s.SingleID && !slices.Equal(rep.Groups, []int{0}) {
		t.Errorf("root is %d:%d %v", rep.UID, rep.GID, rep.Groups)
	}
	if rep.PID != 1 || rep.Session != 1 {
		t.Errorf("process %d in session %d, want 1 in 1", rep.PID, rep.Session)
	}
	r := run{config: sandbox.Config{Args: []string{"helper", "report"}, UID: 1234, GID: 2345, Groups: []uint32{3456, 4567}}}
	if s.SingleID {
		res := s.try(t.Context(), t, r)
		if res.err == nil {
			t.Error("a user without mapping: no error")
		}
		return
	}
	rep = s.report(t, r)
	if rep.UID != 1234 || rep.EUID != 1234 || rep.GID != 2345 || rep.EGID != 2345 {
		t.Errorf("got %d/%d:%d/%d", rep.UID, rep.EUID, rep.GID, rep.EGID)
	}
	slices.Sort(rep.Groups)
	if got := slices.DeleteFunc(rep.Groups, func(g int) bool { return g == 2345 }); !slices.Equal(got, []int{3456, 4567}) {
		t.Errorf("groups %v", got)
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapAmb", "CapInh"} {
		if rep.Status[set] != "0000000000000000" {
			t.Errorf("a user's %s is %s", set, rep.Status[set])
		}
	}
}

func missingProgram(t *testing.T, s *suite) {
	bad := layer(t, map[string]string{"bin/garbage": "\x7fELFgarbage", "bin/orphan": "#!/no/such/interpreter\n", "bin/plain": "x"})
	must(t, os.Chmod(filepath.Join(bad, "bin/plain"), 0o644))
	for _, tt := range []struct {
		program string
		is      error
		text    []string
	}{
		{"no-such-program", fs.ErrNotExist, []string{"no-such-program", "not found in $PATH"}},
		{"/no/such/program", fs.ErrNotExist, []string{"/no/such/program", "no such file or directory"}},
		{"/bin/plain", fs.ErrPermission, []string{"/bin/plain", "permission denied"}},
		{"/bin/orphan", fs.ErrNotExist, []string{"/bin/orphan"}},
		{"/bin/garbage", nil, []string{"exec format error"}},
	} {
		if s.OCI && (tt.program == "/bin/garbage" || tt.program == "/bin/orphan") {
			continue // some say so on stderr, from inside
		}
		res := s.try(t.Context(), t, run{config: sandbox.Config{Args: []string{tt.program}}, process: sandbox.Process{Root: s.root(t, bad)}})
		if res.err == nil {
			t.Errorf("%s: no error, exit %d", tt.program, res.exit)
			continue
		}
		var ee *sandbox.ExecError
		if !errors.As(res.err, &ee) || tt.is != nil && !errors.Is(res.err, tt.is) {
			t.Errorf("%s: got %#v", tt.program, res.err)
		}
		for _, text := range tt.text {
			if !strings.Contains(strings.ToLower(res.err.Error()), strings.ToLower(text)) {
				t.Errorf("%s: got %q, want %q in it", tt.program, res.err, text)
			}
		}
	}
}

// dockerCaps is the mask of Docker's capabilities.
const dockerCaps = "00000000a80425fb"

func privileges(t *testing.T, s *suite) {
	rep := s.report(t, run{})
	for _, set := range []string{"CapEff", "CapPrm", "CapBnd"} {
		if got := rep.Status[set]; got != dockerCaps {
			t.Errorf("%s is %s, want %s", set, got, dockerCaps)
		}
	}
	for k, v := range map[string]string{"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "Seccomp": "2", "NoNewPrivs": "0", "SigBlk": "0000000000000000", "SigIgn": "0000000000000000"} {
		if got := rep.Status[k]; got != v {
			t.Errorf("%s is %s, want %s", k, got, v)
		}
	}
	if want := []string{"0", "1", "2"}; !slices.Equal(rep.FDs, want) {
		t.Errorf("open descriptors %v, want %v", rep.FDs, want)
	}
	if rep.Terminal {
		t.Error("there is a controlling terminal")
	}
	if rep.Umask != 0o022 {
		t.Errorf("umask %o", rep.Umask)
	}
	if rep.Files.Cur == 0 || rep.Files.Cur > rep.Files.Max || rep.Files.Cur > 1<<20 {
		t.Errorf("file limit %+v", rep.Files)
	}
	nnp := run{spec: func(sp *specs.Spec) { sp.Process.NoNewPrivileges = true }}
	if rep = s.report(t, nnp); rep.Status["NoNewPrivs"] != "1" || rep.Status["Seccomp"] != "2" {
		t.Errorf("no_new_privs %s, seccomp %s", rep.Status["NoNewPrivs"], rep.Status["Seccomp"])
	}
}

func (s *suite) tried(t *testing.T, c sandbox.Config) map[string]string {
	t.Helper()
	c.Args = []string{"helper", "try"}
	var got map[string]string
	must(t, json.Unmarshal([]byte(s.ok(t, run{config: c})), &got))
	return got
}

func systemCalls(t *testing.T, s *suite) {
	got := s.tried(t, sandbox.Config{})
	for call, want := range map[string][]string{
		"unshare": {"EPERM"}, "mount": {"EPERM"}, "keyctl": {"EPERM", "ENOSYS"}, "bpf": {"EPERM"},
		"clone3": {"ENOSYS"}, "setns": {"EPERM"}, "open_by_handle_at": {"EPERM"}, "chroot": {"ok"}, "chown": {"ok"},
	} {
		if !slices.Contains(want, got[call]) {
			t.Errorf("%s: %s, want %v", call, got[call], want)
		}
	}
	for _, file := range []string{"sysctl", "sysfs"} {
		if !strings.Contains(got[file], "read-only") && !strings.Contains(got[file], "no such file") && !strings.Contains(got[file], "denied") {
			t.Errorf("write to %s: %s", file, got[file])
		}
	}
	if got["open node"] == "ok" {
		t.Error("a block device that the sandbox made can be opened")
	}
	if !s.OCI && got["open null"] == "ok" {
		t.Error("a device node in /dev that the sandbox made can be opened")
	}
}

func privileged(t *testing.T, s *suite) {
	rep := s.report(t, run{config: sandbox.Config{Privileged: true}})
	if rep.Status["Seccomp"] != "0" {
		t.Errorf("seccomp %s", rep.Status["Seccomp"])
	}
	eff, err := strconv.ParseUint(rep.Status["CapEff"], 16, 64)
	if err != nil || eff&(1<<unix.CAP_SYS_ADMIN) == 0 {
		t.Errorf("CapEff %s", rep.Status["CapEff"])
	}
	if got := s.tried(t, sandbox.Config{Privileged: true}); got["mount"] != "ok" {
		t.Errorf("mount: %s", got["mount"])
	}
}

func procPaths(t *testing.T, s *suite) {
	got := s.ok(t, sh(`
for f in kcore keys timer_list sched_debug interrupts; do
	[ -e /proc/$f ] && wc -c < /proc/$f
done
for d in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
	[ -d $d ] && ls $d
done
true`))
	if strings.Trim(got, "0\n") != "" {
		t.Errorf("masked paths are not empty: %s", got)
	}
	mounts := s.ok(t, sh("cat /proc/self/mounts"))
	for _, name := range []string{"/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/sys"} {
		line := ""
		for l := range strings.Lines(mounts) {
			if f := strings.Fields(l); f[1] == name {
				line = f[3]
			}
		}
		if !strings.HasPrefix(line, "ro,") {
			t.Errorf("%s is mounted %q", name, line)
		}
	}
	if got := s.ok(t, sh("ls -d /proc/[0-9]* | wc -l")); strings.TrimSpace(got) > "4" {
		t.Errorf("there are %s processes to be seen", got)
	}
}

func devices(t *testing.T, s *suite) {
	got := s.ok(t, sh(`
set -e
for d in null zero full random urandom tty; do [ -c /dev/$d ]; done
echo x > /dev/null
[ "$(head -c 3 /dev/zero | wc -c)" = 3 ]
[ "$(head -c 3 /dev/urandom | wc -c)" = 3 ]
! echo x > /dev/full
[ -e /dev/pts/ptmx ]
[ -d /dev/mqueue ]
echo x > /dev/shm/x
echo in | cat /dev/stdin
df -k /dev/shm | { read -r l; read -r fs size rest; echo $size; }
stat -c %a /dev/null
`))
	want(t, "devices", got, "in\n65536\n666")
	r := sh("df -k /dev/shm | { read -r l; read -r fs size rest; echo $size; }")
	r.config.ShmSize = 1 << 20
	want(t, "shm size", s.ok(t, r), "1024")
	if s.Rootless {
		return
	}
	// The host's device is not this one.
	s.ok(t, sh("chmod 600 /dev/null"))
	var st unix.Stat_t
	must(t, unix.Stat("/dev/null", &st))
	if st.Mode&0o777 != 0o666 {
		t.Errorf("the host's /dev/null has mode %o now", st.Mode&0o777)
		must(t, os.Chmod("/dev/null", 0o666))
	}
}

func networkNone(t *testing.T, s *suite) {
	got := s.ok(t, sh("ip -o link | wc -l; ip -o link show lo up | wc -l; ip -o addr show lo | head -1"))
	f := strings.Fields(got)
	if len(f) < 2 || f[0] != "1" || f[1] != "1" || !strings.Contains(got, "127.0.0.1") {
		t.Errorf("got %q, want lo only, and up", got)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	host := sh("ls -l /proc/self/ns/net")
	host.config.HostNetwork = true
	if got := s.ok(t, host); !strings.Contains(got, own) {
		t.Errorf("host network: got %s, want %s", got, own)
	}
}

func networkJoined(t *testing.T, s *suite) {
	type made struct {
		ns  *os.File
		err error
	}
	c := make(chan made)
	var namespace func()
	namespace = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		if unix.Gettid() == os.Getpid() {
			// The main thread would not end.
			defer runtime.UnlockOSThread()
			done := make(chan struct{})
			go func() { defer close(done); namespace() }()
			<-done
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- made{f, err}
	}
	go namespace()
	m := <-c
	must(t, m.err)
	defer m.ns.Close()
	var st unix.Stat_t
	must(t, unix.Fstat(int(m.ns.Fd()), &st))
	r := sh("ls -l /proc/self/ns/net")
	r.process.NetNS = m.ns
	if got := s.ok(t, r); !strings.Contains(got, fmt.Sprintf("net:[%d]", st.Ino)) {
		t.Errorf("got %s, want namespace %d", got, st.Ino)
	}
}

func readonlyRoot(t *testing.T, s *suite) {
	r := sh("touch /x; echo $?; touch /dev/shm/x; echo $?")
	r.config.Readonly = true
	want(t, "writes", s.ok(t, r), "1\n0")
	// Without an upper directory nothing can be written either.
	r = sh("touch /x; echo $?")
	r.process.Root = sandbox.Root{Lower: []string{s.lower, layer(t, map[string]string{"proc/.x": "", "sys/.x": "", "dev/.x": ""})}, UserXattr: s.Rootless}
	want(t, "write to layers", s.ok(t, r), "1")
}

func bindMounts(t *testing.T, s *suite) {
	host := layer(t, map[string]string{"sub/file": "content\n", "single": "one\n"})
	must(t, os.Chmod(host, 0o777))
	r := sh("cat /a/sub/file /file; touch /a/x 2>/dev/null; echo $?; touch /b/new; echo $?; cat /b/sub/file; echo x > /file; echo $?")
	r.config.Mounts = []specs.Mount{
		{Destination: "/a", Type: "bind", Source: host, Options: []string{"rbind", "ro"}},
		{Destination: "/b", Type: "bind", Source: host, Options: []string{"bind", "rw"}},
		{Destination: "/file", Type: "bind", Source: filepath.Join(host, "single"), Options: []string{"bind", "ro"}},
	}
	res := s.try(t.Context(), t, r)
	want(t, "mounts", res.stdout, "content\none\n1\n0\ncontent\n1")
	if _, err := os.Stat(filepath.Join(host, "new")); err != nil {
		t.Errorf("what was written to a mount: %v", err)
	}
	// Mount points in the root are all that is left.
	for _, name := range []string{"a", "b", "file"} {
		if _, err := os.Lstat(filepath.Join(res.root.Upper, name)); err != nil {
			t.Errorf("mount point: %v", err)
		}
	}
	r.config.Mounts = []specs.Mount{{Destination: "/a", Type: "bind", Source: "/no/such/source", Options: []string{"rbind"}}}
	if res := s.try(t.Context(), t, r); res.err == nil || !strings.Contains(res.err.Error(), "/no/such/source") {
		t.Errorf("missing source: %v", res.err)
	}
}

func tmpfs(t *testing.T, s *suite) {
	r := sh("df -k /t | { read -r l; read -r fs size rest; echo $size; }; stat -c %a /t; dd if=/dev/zero of=/t/big bs=1024 count=2000 2>/dev/null; echo $?")
	r.config.Mounts = []specs.Mount{{Destination: "/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=1048576", "mode=1700"}}}
	want(t, "tmpfs", s.ok(t, r), "1024\n1700\n1")
}

func files(t *testing.T, s *suite) {
	r := sh("cat /run/secrets/a; stat -c '%a %u' /run/secrets/a; echo x 2>/dev/null > /run/secrets/a; echo $?; cat /etc/passwd; echo end")
	uid := 0
	if !s.SingleID {
		uid = 7
	}
	r.process.Files = []sandbox.File{
		{Path: "/run/secrets/a", Data: []byte("secret\n"), Mode: 0o400, UID: uid},
		{Path: "/etc/passwd", Data: nil, Mode: 0o644},
	}
	res := s.try(t.Context(), t, r)
	want(t, "files", res.stdout, fmt.Sprintf("secret\n400 %d\n1\nend", uid))
	if data, err := os.ReadFile(filepath.Join(res.root.Upper, "run/secrets/a")); err != nil || len(data) > 0 {
		t.Errorf("the mount point has %q, error %v", data, err)
	}
}

func trees(t *testing.T, s *suite) {
	one := layer(t, map[string]string{"dir/file": "one\n", "escape": "-> ../../../../..", "dir/other": "x\n"})
	two := layer(t, map[string]string{"dir/file": "two\n"})
	writable := s.root(t, one)
	r := sh("cat /whole/dir/file /part/file /single; touch /part/x 2>/dev/null; echo $?; touch /rw/new; echo $?; ls /escaped | head -3 > /dev/null; [ -e /escaped/dir ] && echo inside")
	r.process.Trees = []sandbox.TreeMount{
		{Root: sandbox.Root{Lower: []string{one, two}, UserXattr: s.Rootless}, Source: "/", Target: "/whole", Readonly: true},
		{Root: sandbox.Root{Lower: []string{one, two}, UserXattr: s.Rootless}, Source: "/dir", Target: "/part", Readonly: true},
		{Root: sandbox.Root{Bind: one}, Source: "dir/file", Target: "/single", Readonly: true},
		{Root: writable, Source: "/dir", Target: "/rw"},
		{Root: sandbox.Root{Lower: []string{one, two}, UserXattr: s.Rootless}, Source: "/escape", Target: "/escaped", Readonly: true},
	}
	want(t, "trees", s.ok(t, r), "two\ntwo\none\n1\n0\ninside")
	if _, err := os.Stat(filepath.Join(writable.Upper, "dir/new")); err != nil {
		t.Errorf("what was written: %v", err)
	}
	r.process.Trees = []sandbox.TreeMount{{Root: sandbox.Root{Bind: one}, Source: "/none", Target: "/x"}}
	if res := s.try(t.Context(), t, r); res.err == nil || !strings.Contains(res.err.Error(), "/none") {
		t.Errorf("missing source: %v", res.err)
	}
}

// hostileRoot has symlinks where things are to be mounted.
func hostileRoot(t *testing.T, s *suite) {
	outside := t.TempDir()
	escape := strings.Repeat("../", 20) + outside
	host := layer(t, map[string]string{"file": "content\n"})
	bind := []specs.Mount{{Destination: "/out/here", Type: "bind", Source: host, Options: []string{"rbind", "ro"}}}
	for name, root := range map[string]map[string]string{
		"relative":  {"out": "-> " + escape},
		"absolute":  {"out": "-> " + outside},
		"dangling":  {"out": "-> /not/there/yet"},
		"two steps": {"out": "-> /step", "step": "-> " + escape},
	} {
		r := sh("cat /out/here/file")
		r.config.Mounts = bind
		r.process.Root = s.root(t, layer(t, root))
		res := s.try(t.Context(), t, r)
		if res.err != nil && s.OCI {
			continue // not every runtime makes what a symlink dangles to
		}
		want(t, fmt.Sprintf("%s (error %v)", name, res.err), res.stdout, "content")
	}
	for name, root := range map[string]map[string]string{
		"proc": {"proc": "-> /etc"},
		"sys":  {"sys": "-> " + escape},
		"dev":  {"dev": "-> " + escape},
		"loop": {"out": "-> /out"},
		"file": {"out": "x"},
	} {
		r := sh("cat /out/here/file; touch /dev/x /proc/x /sys/x 2>/dev/null")
		r.config.Mounts = bind
		r.process.Root = s.root(t, layer(t, root))
		res := s.try(t.Context(), t, r)
		if res.err == nil && (name == "loop" || name == "file" || name == "proc") {
			t.Errorf("%s: no error", name)
		}
	}
	left, err := os.ReadDir(outside)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("made outside of the root: %v", left)
	}
}

func manyLayers(t *testing.T, s *suite) {
	var more []string
	dir := t.TempDir()
	for i := range 499 {
		d := filepath.Join(dir, fmt.Sprintf("a-layer-with-a-longer-name-%d", i))
		must(t, os.Mkdir(d, 0o755))
		must(t, os.WriteFile(filepath.Join(d, "top"), fmt.Appendln(nil, i), 0o644))
		must(t, os.WriteFile(filepath.Join(d, fmt.Sprintf("file%d", i)), nil, 0o644))
		more = append(more, d)
	}
	r := sh("cat /top; ls / | wc -l; touch /written")
	r.process.Root = s.root(t, more...)
	res := s.try(t.Context(), t, r)
	if s.OCI && res.err != nil && strings.Contains(res.err.Error(), "token too long") {
		t.Skipf("SKIPPED: the runtime can't read a list of mounts that long: %v", res.err)
	}
	if res.err != nil && errors.Is(res.err, unix.ENAMETOOLONG) {
		t.Skipf("SKIPPED: needs Linux 6.7: %v", res.err)
	}
	if res.err != nil || !strings.HasPrefix(res.stdout, "498\n5") {
		t.Errorf("got %q, error %v", res.stdout, res.err)
	}
}

func setuid(t *testing.T, s *suite) {
	if s.SingleID {
		t.Skip("SKIPPED: there is a single user")
	}
	bin := layer(t, nil)
	must(t, os.Mkdir(filepath.Join(bin, "bin"), 0o755))
	must(t, copyFile(filepath.Join(s.lower, "bin/helper"), filepath.Join(bin, "bin/suid"), 0o755))
	must(t, os.Chmod(filepath.Join(bin, "bin/suid"), 0o755|os.ModeSetuid))
	rep := s.report(t, run{
		config:  sandbox.Config{Args: []string{"suid", "report"}, UID: 1000, GID: 1000},
		process: sandbox.Process{Root: s.root(t, bin)},
	})
	if rep.UID != 1000 || rep.EUID != 0 || rep.Status["CapEff"] != dockerCaps {
		t.Errorf("uid %d, euid %d, capabilities %s", rep.UID, rep.EUID, rep.Status["CapEff"])
	}
}

func limits(t *testing.T, s *suite) {
	r := sh("ulimit -Sn; ulimit -Hn; ulimit -Sc")
	r.config.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}
	want(t, "limits", s.ok(t, r), "100\n200\n0")
	bad := run{config: sandbox.Config{Args: []string{"true"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NONE"}}}}
	if res := s.try(t.Context(), t, bad); res.err == nil {
		t.Error("unknown limit: no error")
	}
}

func memoryLimit(t *testing.T, s *suite) {
	limit := int64(64 << 20)
	pids := int64(50)
	r := sh("cat /sys/fs/cgroup/memory.max 2>/dev/null; head -c 300000000 /dev/zero | { read -r x; echo $?; }; helper report > /dev/null; echo alive")
	r.config.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}}
	r.config.Args = []string{"sh", "-c", "dd if=/dev/zero of=/dev/shm/big bs=1048576 count=100 2>/dev/null; echo $?"}
	r.config.ShmSize = 200 << 20
	res := s.try(t.Context(), t, r)
	if s.Rootless {
		if res.err == nil && strings.TrimSpace(res.stdout) == "0" {
			t.Error("the limit was ignored")
		}
		return
	}
	if res.err != nil {
		t.Skipf("SKIPPED: no cgroups can be made here: %v", res.err)
	}
	if strings.TrimSpace(res.stdout) == "0" {
		t.Errorf("100 MiB fit into a limit of 64")
	}
	for _, pattern := range []string{"/sys/fs/cgroup/strake/*/cgroup.procs", "/sys/fs/cgroup/*/strake/*/cgroup.procs"} {
		left, err := filepath.Glob(pattern)
		must(t, err)
		for _, name := range left {
			if strings.Contains(name, fmt.Sprintf("-%d-", os.Getpid())) {
				t.Errorf("left behind: %s", name)
			}
		}
	}
}

// mounted counts mounts of the host that mention dir.
func mounted(t *testing.T, dir string) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return strings.Count(string(data), dir)
}

// alive says whether a process of the host has word in its command line.
func alive(t *testing.T, word string) bool {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, p := range procs {
		data, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(data), word) {
			return true
		}
	}
	return false
}

func cancel(t *testing.T, s *suite) {
	word := fmt.Sprintf("9%d%d", os.Getpid(), time.Now().UnixNano()%1e6)
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	because := errors.New("because of this")
	out, w := io.Pipe()
	// Deaf processes, a session of their own, in the background.
	r := sh("trap '' TERM INT HUP; setsid sleep " + word + " & sleep " + word + " & echo started; sleep " + word)
	r.process.Stdout = w
	root := s.root(t)
	r.process.Root = root
	done := make(chan result, 1)
	go func() { done <- s.try(ctx, t, r) }()
	want(t, "output", waitFor(t, out, done), "started")
	if !alive(t, word) {
		t.Error("the test is broken: nothing runs")
	}
	begin := time.Now()
	stop(because)
	select {
	case res := <-done:
		if !errors.Is(res.err, because) {
			t.Errorf("got error %v, want the cause", res.err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run does not return")
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if alive(t, word) {
		t.Error("a process is left")
	}
	if mounted(t, root.Upper) > 0 {
		t.Error("a mount is left")
	}
	// Nothing is left to be in the way of using the directories again.
	if got := s.ok(t, run{config: sandbox.Config{Args: []string{"echo", "again"}}, process: sandbox.Process{Root: root}}); got != "again\n" {
		t.Errorf("got %q", got)
	}
	if res := s.try(ctx, t, sh("true")); !errors.Is(res.err, because) {
		t.Errorf("cancelled before: got %v", res.err)
	}
}

// daemons keep the output open and live on.
func daemons(t *testing.T, s *suite) {
	word := fmt.Sprintf("8%d%d", os.Getpid(), time.Now().UnixNano()%1e6)
	begin := time.Now()
	got := s.ok(t, sh("setsid sleep "+word+" & (sleep "+word+" &) ; echo done"))
	want(t, "output", got, "done")
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
	if alive(t, word) {
		t.Error("a daemon is left")
	}
}

func signals(t *testing.T, s *suite) {
	out, w := io.Pipe()
	r := sh("trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.02; done")
	r.process.Stdout = w
	send := make(chan func(os.Signal) error, 1)
	r.process.Started = func(signal func(os.Signal) error) { send <- signal }
	done := make(chan result, 1)
	go func() { done <- s.try(t.Context(), t, r) }()
	want(t, "output", waitFor(t, out, done), "ready")
	signal := <-send
	must(t, signal(unix.SIGUSR1))
	want(t, "output", waitFor(t, out, done), "got")
	if res := <-done; res.err != nil || res.exit != 7 {
		t.Errorf("exit %d, error %v", res.exit, res.err)
	}
	if err := signal(unix.SIGUSR1); err == nil {
		t.Error("a signal to an ended process: no error")
	}
}

func terminal(t *testing.T, s *suite) {
	masters := make(chan *os.File, 1)
	r := sh("tty; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal; echo x > /dev/tty; ls /dev/console; read line; echo read $line; exit 4")
	r.config.Terminal = true
	r.process.Terminal = func(m *os.File) { masters <- m }
	done := make(chan result, 1)
	go func() { done <- s.try(t.Context(), t, r) }()
	select {
	case m := <-masters:
		_, err := io.WriteString(m, "typed\n")
		must(t, err)
		text, _ := io.ReadAll(m) // ends with EIO
		must(t, m.Close())
		for _, part := range []string{"/dev/", "terminal\r\n", "x\r\n", "/dev/console\r\n", "read typed\r\n"} {
			if !strings.Contains(string(text), part) {
				t.Errorf("no %q in %q", part, text)
			}
		}
		if res := <-done; res.err != nil || res.exit != 4 {
			t.Errorf("exit %d, error %v", res.exit, res.err)
		}
	case res := <-done:
		t.Fatalf("no terminal: exit %d, error %v", res.exit, res.err)
	}
}

// selfExe is the trick of CVE-2019-5736: until a program is executed, the
// process is one of the host's program.
func selfExe(t *testing.T, s *suite) {
	if s.OCI {
		t.Skip("SKIPPED: it is the runtime's own business")
	}
	bad := layer(t, map[string]string{"bin/trick": "#!/proc/self/exe\n"})
	exe, err := os.Executable()
	must(t, err)
	before, err := os.Stat(exe)
	must(t, err)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	// It may run the test program, which finds no such test, or fail.
	r := run{config: sandbox.Config{Args: []string{"/bin/trick", "-test.run=^$"}}, process: sandbox.Process{Root: s.root(t, bad)}}
	_ = s.try(ctx, t, r)
	if ctx.Err() != nil {
		t.Error("it runs on")
	}
	after, err := os.Stat(exe)
	must(t, err)
	if before.Size() != after.Size() || before.ModTime() != after.ModTime() {
		t.Error("our program was changed")
	}
	if f, err := os.OpenFile(exe, os.O_WRONLY, 0); err == nil {
		_ = f.Close()
		t.Error("a running program can be written to on this kernel: it is not protected")
	}
}
