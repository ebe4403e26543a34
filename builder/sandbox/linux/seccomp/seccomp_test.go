package seccomp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	docker "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is a system call as filters see it.
type call struct {
	arch uint32
	nr   uint32
	args [6]uint64
}

// machine runs a program.
type machine struct{ vm *bpf.VM }

func newMachine(t *testing.T, prog []unix.SockFilter) machine {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(prog))
	for i, f := range prog {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	insts, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the program has instructions that bpf doesn't know")
	}
	vm, err := bpf.NewVM(insts)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

// verdict is what the program returns for c. The kernel's loads are
// little-endian, the VM's big-endian, so the words are stored big-endian.
func (m machine) verdict(t *testing.T, c call) uint32 {
	t.Helper()
	var data [64]byte
	binary.BigEndian.PutUint32(data[0:], c.nr)
	binary.BigEndian.PutUint32(data[4:], c.arch)
	for i, a := range c.args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
	}
	v, err := m.vm.Run(data[:])
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func dockerProfile(t *testing.T, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := docker.GetDefaultProfile(&specs.Spec{Process: &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustCompile(t *testing.T, p *specs.LinuxSeccomp, goarch string) []unix.SockFilter {
	t.Helper()
	prog, err := compile(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

func nr(t *testing.T, name string, a arch) uint32 {
	t.Helper()
	n := numbers()[name][a.column]
	if n < 0 {
		t.Fatalf("no %s on %s", name, a.name)
	}
	return uint32(n)
}

func TestDockerProfile(t *testing.T) {
	t.Parallel()
	const eperm = retErrno | uint32(unix.EPERM)
	for _, tt := range []struct {
		goarch string
		arch   arch
		call   string
		args   [6]uint64
		want   uint32
	}{
		{"amd64", x86_64, "read", [6]uint64{}, retAllow},
		{"amd64", x86_64, "mount", [6]uint64{}, eperm},
		{"amd64", x86_64, "unshare", [6]uint64{unix.CLONE_NEWUSER}, eperm},
		{"amd64", x86_64, "clone", [6]uint64{unix.CLONE_VM}, retAllow},
		{"amd64", x86_64, "clone", [6]uint64{unix.CLONE_VM | unix.CLONE_NEWUSER}, eperm},
		{"amd64", x86_64, "clone3", [6]uint64{}, retNoSys},
		{"amd64", x86_64, "keyctl", [6]uint64{}, eperm},
		{"amd64", x86_64, "bpf", [6]uint64{}, eperm},
		{"amd64", x86_64, "personality", [6]uint64{8}, retAllow},
		{"amd64", x86_64, "personality", [6]uint64{9}, eperm},
		{"amd64", x86_64, "personality", [6]uint64{1<<32 | 8}, eperm},
		{"amd64", x86_64, "socket", [6]uint64{unix.AF_INET}, retAllow},
		{"amd64", x86_64, "socket", [6]uint64{unix.AF_VSOCK}, eperm},
		{"amd64", i386, "read", [6]uint64{}, retAllow},
		{"amd64", i386, "mount", [6]uint64{}, eperm},
		{"amd64", i386, "clone3", [6]uint64{}, retNoSys},
		{"arm64", arm64, "read", [6]uint64{}, retAllow},
		{"arm64", arm64, "mount", [6]uint64{}, eperm},
		{"arm64", arm64, "clone", [6]uint64{unix.CLONE_NEWNS}, eperm},
		{"arm64", arm, "set_tls", [6]uint64{}, retAllow},
		{"arm64", arm, "mount", [6]uint64{}, eperm},
	} {
		t.Run(fmt.Sprintf("%s_%s_%d", tt.arch.name, tt.call, tt.args[0]), func(t *testing.T) {
			p := dockerProfile(t)
			// The profile is for the machine it is made on.
			p.Architectures = []specs.Arch{tt.arch.name, specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM}
			if tt.call == "set_tls" && !named(p, tt.call) {
				p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"set_tls"}, Action: specs.ActAllow})
			}
			m := newMachine(t, mustCompile(t, p, tt.goarch))
			got := m.verdict(t, call{tt.arch.audit, nr(t, tt.call, tt.arch), tt.args})
			if got != tt.want {
				t.Errorf("got %#x, want %#x", got, tt.want)
			}
		})
	}
}

func named(p *specs.LinuxSeccomp, name string) bool {
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if n == name {
				return true
			}
		}
	}
	return false
}

// What no profile names: x32, the future, and foreign conventions.
func TestUnknownCalls(t *testing.T) {
	t.Parallel()
	m := newMachine(t, mustCompile(t, dockerProfile(t), "amd64"))
	for _, tt := range []struct {
		name string
		call call
		want uint32
	}{
		{"x32 read", call{arch: x86_64.audit, nr: 0x40000000}, retNoSys},
		{"x32 execve", call{arch: x86_64.audit, nr: 0x40000000 + 520}, retNoSys},
		{"minus one", call{arch: x86_64.audit, nr: 0xffffffff}, retNoSys},
		{"of the future", call{arch: x86_64.audit, nr: 2000}, retNoSys},
		{"arm64", call{arch: arm64.audit, nr: 63}, retKillProcess},
	} {
		if got := m.verdict(t, tt.call); got != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

func TestBadProfiles(t *testing.T) {
	t.Parallel()
	big := uint(1 << 16)
	for name, p := range map[string]*specs.LinuxSeccomp{
		"no default":    {},
		"notify":        {DefaultAction: specs.ActNotify},
		"big errno":     {DefaultAction: specs.ActErrno, DefaultErrnoRet: &big},
		"bad operator":  {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: "?"}}}}},
		"argument of 6": {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
	} {
		if _, err := compile(p, "amd64"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, "mips"); err == nil {
		t.Error("mips: no error")
	}
}

// everyOperator has conditions of all kinds.
func everyOperator() *specs.LinuxSeccomp {
	e := uint(unix.ENOTTY)
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	rule := func(name string, action specs.LinuxSeccompAction, args ...specs.LinuxSeccompArg) {
		s := specs.LinuxSyscall{Names: []string{name}, Action: action, Args: args}
		if action == specs.ActErrno {
			s.ErrnoRet = &e
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	const wide = 0x1_0000_0010
	for i, op := range operators {
		name := []string{"read", "write", "open", "close", "lseek", "mprotect", "munmap"}[i]
		rule(name, specs.ActAllow, specs.LinuxSeccompArg{Index: uint(i % 6), Value: wide, ValueTwo: 0x10, Op: op})
	}
	rule("ioctl", specs.ActAllow, specs.LinuxSeccompArg{Index: 1, Value: 5, Op: specs.OpEqualTo}, specs.LinuxSeccompArg{Index: 2, Value: wide, Op: specs.OpGreaterThan})
	rule("fcntl", specs.ActErrno, specs.LinuxSeccompArg{Index: 1, Value: 5, Op: specs.OpEqualTo})
	rule("dup", specs.ActAllow, specs.LinuxSeccompArg{Index: 0, Value: 3, Op: specs.OpEqualTo}, specs.LinuxSeccompArg{Index: 0, Value: 4, Op: specs.OpEqualTo})
	rule("pipe", specs.ActLog)
	rule("getpid", specs.ActKillProcess)
	rule("getuid", specs.ActTrap)
	rule("execve", specs.ActAllow)
	return p
}

// oracle is a program that makes libseccomp compile a profile. It reads lines
// (default action; or action, call and conditions) and writes the program.
const oracle = `
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <stdlib.h>
int main(int argc, char **argv) {
	unsigned def, action, n;
	char name[64];
	if (scanf("%x", &def) != 1) return 2;
	scmp_filter_ctx c = seccomp_init(def);
	uint32_t arches[8]; int na = 0;
	seccomp_arch_remove(c, SCMP_ARCH_NATIVE);
	for (int i = 2; i < argc; i++) {
		arches[na] = seccomp_arch_resolve_name(argv[i]);
		if (seccomp_arch_add(c, arches[na++])) return 3;
	}
	seccomp_attr_set(c, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	while (scanf("%x %63s %u", &action, name, &n) == 3) {
		struct scmp_arg_cmp a[6];
		for (unsigned i = 0; i < n; i++) {
			unsigned idx, op; unsigned long long v, w;
			if (scanf("%u %u %llx %llx", &idx, &op, &v, &w) != 4) return 4;
			a[i].arg = idx; a[i].op = op; a[i].datum_a = v; a[i].datum_b = w;
		}
		int nr = seccomp_syscall_resolve_name(name);
		if (nr == __NR_SCMP_ERROR) { fprintf(stderr, "unknown %s\n", name); continue; }
		if (action == def) continue;
		int r = seccomp_rule_add_array(c, action, nr, n, a);
		if (r) { fprintf(stderr, "refused %s: %s\n", name, strerror(-r)); }
	}
	FILE *f = fopen(argv[1], "w");
	if (!f || seccomp_export_bpf(c, fileno(f))) return 5;
	return 0;
}
`

var libseccompOps = map[specs.LinuxSeccompOperator]int{
	specs.OpNotEqual: 1, specs.OpLessThan: 2, specs.OpLessEqual: 3, specs.OpEqualTo: 4,
	specs.OpGreaterEqual: 5, specs.OpGreaterThan: 6, specs.OpMaskedEqual: 7,
}

// compileByLibseccomp returns libseccomp's program and the calls that it does
// not know or refuses.
func compileByLibseccomp(t *testing.T, bin string, p *specs.LinuxSeccomp, arches ...string) ([]unix.SockFilter, map[string]bool) {
	t.Helper()
	var in strings.Builder
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&in, "%x\n", def)
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range s.Names {
			rules := []rule{{nil, act}}
			if len(s.Args) > 0 {
				rules = split(s.Args, act)
			}
			for _, r := range rules {
				fmt.Fprintf(&in, "%x %s %d", act, name, len(r.args))
				for _, a := range r.args {
					fmt.Fprintf(&in, " %d %d %x %x", a.Index, libseccompOps[a.Op], a.Value, a.ValueTwo)
				}
				fmt.Fprintln(&in)
			}
		}
	}
	out := filepath.Join(t.TempDir(), "bpf")
	cmd := exec.Command(bin, append([]string{out}, arches...)...)
	cmd.Stdin = strings.NewReader(in.String())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("libseccomp: %v\n%s", err, stderr.String())
	}
	unknown := map[string]bool{}
	for line := range strings.Lines(stderr.String()) {
		f := strings.Fields(line)
		unknown[strings.TrimSuffix(f[1], ":")] = true
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	prog := make([]unix.SockFilter, len(data)/8)
	for i := range prog {
		b := data[8*i:]
		prog[i] = unix.SockFilter{Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])}
	}
	return prog, unknown
}

func buildOracle(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("SKIPPED: the comparison with libseccomp needs a C compiler")
	}
	dir := t.TempDir()
	src := filepath.Join(dir, "oracle.c")
	if err := os.WriteFile(src, []byte(oracle), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "oracle")
	if out, err := exec.Command("cc", "-o", bin, src, "-lseccomp").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: the comparison with libseccomp needs libseccomp-dev: %v\n%s", err, out)
	}
	return bin
}

// Our verdicts are libseccomp's, for every call of both conventions and many
// arguments.
func TestAgainstLibseccomp(t *testing.T) {
	t.Parallel()
	bin := buildOracle(t)
	full := dockerProfile(t, "CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYS_PTRACE", "CAP_PERFMON", "CAP_SYSLOG")
	for _, tt := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		goarch  string
		arches  []arch
		names   []string
	}{
		{"docker amd64", dockerProfile(t), "amd64", []arch{x86_64, i386}, []string{"x86_64", "x86"}},
		{"docker with capabilities", full, "amd64", []arch{x86_64, i386}, []string{"x86_64", "x86"}},
		{"docker arm64", dockerProfile(t), "arm64", []arch{arm64, arm}, []string{"aarch64", "arm"}},
		{"every operator", everyOperator(), "amd64", []arch{x86_64}, []string{"x86_64"}},
		{"allow", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mount", "kill"}, Action: specs.ActErrno}}}, "amd64", []arch{x86_64}, []string{"x86_64"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			theirs, unknown := compileByLibseccomp(t, bin, tt.profile, tt.names...)
			p := *tt.profile
			p.Architectures = nil
			for _, a := range tt.arches {
				p.Architectures = append(p.Architectures, a.name)
			}
			ours := mustCompile(t, &p, tt.goarch)
			t.Logf("%d instructions, libseccomp %d, unknown to it: %d", len(ours), len(theirs), len(unknown))
			compare(t, newMachine(t, ours), newMachine(t, theirs), &p, tt.arches, unknown)
		})
	}
}

func compare(t *testing.T, ours, theirs machine, p *specs.LinuxSeccomp, arches []arch, unknown map[string]bool) {
	def, _ := action(p.DefaultAction, p.DefaultErrnoRet)
	rnd := rand.New(rand.NewPCG(1, 2))
	var values []uint64
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				values = append(values, v, v-1, v+1, v|1<<32, v|1<<63, v&0xffffffff, uint64(uint32(v))<<32)
			}
		}
	}
	compared := 0
	for _, a := range arches {
		names := map[int]string{}
		newest := 0
		for name, n := range numbers() {
			if n[a.column] >= 0 {
				names[n[a.column]] = name
				if named(p, name) && n[a.column] < private {
					newest = max(newest, n[a.column])
				}
			}
		}
		allows := def &^ 0xffff
		for nr := range newest + 20 {
			name := names[nr]
			if unknown[name] || nr > newest && allows != retAllow {
				continue
			}
			// libseccomp also filters the calls that socketcall and ipc
			// stand for, by those calls' first argument.
			if a == i386 && (name == "socketcall" || name == "ipc") && !unconditional(p, name) {
				continue
			}
			for i := range 60 {
				c := call{arch: a.audit, nr: uint32(nr)}
				for j := range c.args {
					switch {
					case i == 0:
					case len(values) > 0 && rnd.IntN(3) > 0:
						c.args[j] = values[rnd.IntN(len(values))]
					default:
						c.args[j] = rnd.Uint64() >> rnd.IntN(64)
					}
				}
				if a == i386 || a == arm {
					for j := range c.args {
						c.args[j] &= 0xffffffff
					}
				}
				got, want := ours.verdict(t, c), theirs.verdict(t, c)
				if got != want {
					t.Fatalf("%s: %s (%d) %x: got %#x, libseccomp says %#x", a.name, name, nr, c.args, got, want)
				}
				compared++
			}
		}
	}
	if compared < 1000 {
		t.Errorf("only %d calls were compared", compared)
	}
}

func unconditional(p *specs.LinuxSeccomp, name string) bool {
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if n == name && len(s.Args) == 0 {
				return true
			}
		}
	}
	return false
}

func BenchmarkCompile(b *testing.B) {
	p, err := docker.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
