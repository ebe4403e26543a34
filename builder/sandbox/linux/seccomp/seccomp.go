// Package seccomp compiles seccomp profiles of the runtime-spec to programs for
// the kernel, for x86-64 with i386 and arm64 with arm. Its verdicts are
// libseccomp's, with two exceptions that are Docker's practice: a system call
// newer than all that the profile names gets ENOSYS, so that C libraries fall
// back to older calls, and x32 calls, which hardly any kernel has, get it too.
package seccomp

//go:generate go run gen.go

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What a program returns to the kernel.
const (
	retKillThread  = 0x00000000
	retKillProcess = 0x80000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	retNoSys = retErrno | uint32(unix.ENOSYS)
)

// arch is a system call convention.
type arch struct {
	name   specs.Arch
	audit  uint32 // AUDIT_ARCH_…
	column int    // in table
}

var (
	x86_64 = arch{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, 0}
	i386   = arch{specs.ArchX86, unix.AUDIT_ARCH_I386, 1}
	arm64  = arch{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, 2}
	arm    = arch{specs.ArchARM, unix.AUDIT_ARCH_ARM, 3}
)

// private is where ARM's private system calls begin. Newer calls of other kinds
// are below.
const private = 0xf0000

// native returns the conventions of the processor, its own first.
func native(goarch string) []arch {
	switch goarch {
	case "amd64":
		return []arch{x86_64, i386}
	case "arm64":
		return []arch{arm64, arm}
	}
	return nil
}

// Compile returns the program for this machine. Calls that the profile names
// but that do not exist are passed over, as are architectures of other
// machines.
func Compile(p *specs.LinuxSeccomp) ([]unix.SockFilter, error) {
	return compile(p, runtime.GOARCH)
}

func compile(p *specs.LinuxSeccomp, goarch string) ([]unix.SockFilter, error) {
	arches := native(goarch)
	if arches == nil {
		return nil, fmt.Errorf("seccomp on %s: %w", goarch, errors.ErrUnsupported)
	}
	// A profile that lists none means the machine's own.
	own := arches[0].name
	arches = slices.DeleteFunc(arches, func(a arch) bool {
		return a.name != own && !slices.Contains(p.Architectures, a.name)
	})
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	numbers := numbers()
	sections := make([]code, len(arches))
	for i, a := range arches {
		d, err := decide(p, def, numbers, a)
		if err != nil {
			return nil, err
		}
		sections[i] = append(code{load(0)}, search(d)...)
	}
	prog := code{load(4)}
	for i, a := range arches {
		prog = append(prog, jump(unix.BPF_JEQ, a.audit, 1, 0), skip(len(sections[i])))
		prog = append(prog, sections[i]...)
	}
	prog = append(prog, ret(retKillProcess))
	if len(prog) > 4096 {
		return nil, fmt.Errorf("the seccomp profile is too long: %d instructions, the kernel takes 4096", len(prog))
	}
	return prog, nil
}

// numbers parses the table.
func numbers() map[string][4]int {
	m := make(map[string][4]int, 512)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		var n [4]int
		for i := range n {
			n[i] = -1
			if f[i+1] != "-" {
				n[i], _ = strconv.Atoi(f[i+1]) // generated
			}
		}
		m[f[0]] = n
	}
	return m
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 0xffff {
			return 0, fmt.Errorf("seccomp: errno %d is out of range", *errno)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActAllow:
		return retAllow, nil
	}
	return 0, fmt.Errorf("seccomp action %q: %w", a, errors.ErrUnsupported)
}

var operators = []specs.LinuxSeccompOperator{
	specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual,
	specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual,
}

// rule is a conjunction of conditions on arguments.
type rule struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

// decision is what happens to system calls from first up to the next
// decision's: ret, unless one of rules holds.
type decision struct {
	first uint32
	ret   uint32
	rules []rule
}

func (d decision) same(o decision) bool {
	return d.ret == o.ret && len(d.rules) == 0 && len(o.rules) == 0
}

// decide lists the decisions for all numbers, in their order.
func decide(p *specs.LinuxSeccomp, def uint32, numbers map[string][4]int, a arch) ([]decision, error) {
	calls := map[uint32]*decision{}
	final := map[uint32]bool{} // has a rule without conditions
	newest := uint32(0)
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, arg := range s.Args {
			if arg.Index > 5 || !slices.Contains(operators, arg.Op) {
				return nil, fmt.Errorf("seccomp: bad condition %v of %v", arg, s.Names)
			}
		}
		for _, name := range s.Names {
			n, ok := numbers[name]
			if !ok || n[a.column] < 0 {
				continue
			}
			nr := uint32(n[a.column])
			if nr < private {
				newest = max(newest, nr)
			}
			d := calls[nr]
			if d == nil {
				d = &decision{first: nr, ret: def}
				calls[nr] = d
			}
			switch {
			case final[nr] || act == def:
			case len(s.Args) == 0:
				final[nr] = true
				d.ret, d.rules = act, nil
			default:
				d.rules = append(d.rules, split(s.Args, act)...)
			}
		}
	}
	unknown := retNoSys
	if kind := def &^ 0xffff; len(calls) == 0 || kind == retAllow || kind == retLog || kind == retTrace {
		unknown = def
	}
	between := func(nr uint32) uint32 {
		if nr > newest {
			return unknown
		}
		return def
	}

	var out []decision
	add := func(d decision) {
		if len(out) == 0 || !out[len(out)-1].same(d) {
			out = append(out, d)
		}
	}
	next := uint32(0)
	nrs := make([]uint32, 0, len(calls))
	for nr := range calls {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	for _, nr := range nrs {
		if nr > next {
			add(decision{first: next, ret: between(next)})
		}
		add(*calls[nr])
		next = nr + 1
	}
	add(decision{first: next, ret: between(max(next, newest+1))})
	return out, nil
}

// split makes rules of the conditions of one entry. An argument that is
// mentioned twice means alternatives, as in runc.
func split(args []specs.LinuxSeccompArg, action uint32) []rule {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			var rules []rule
			for _, a := range args {
				rules = append(rules, rule{[]specs.LinuxSeccompArg{a}, action})
			}
			return rules
		}
		seen[a.Index] = true
	}
	return []rule{{args, action}}
}

// code is a program or a part of one. Execution never runs past its end.
type code []unix.SockFilter

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(op uint16, k uint32, jt, jf int) unix.SockFilter {
	if jt < 0 || jt > math.MaxUint8 || jf < 0 || jf > math.MaxUint8 {
		panic("seccomp: jump too far")
	}
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | op, Jt: uint8(jt), Jf: uint8(jf), K: k}
}

func skip(n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}
}

func ret(v uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v}
}

// search makes a binary search for the decision about the number in the
// accumulator.
func search(d []decision) code {
	if len(d) == 1 {
		return leaf(d[0])
	}
	mid := len(d) / 2
	low, high := search(d[:mid]), search(d[mid:])
	var c code
	if len(low) <= math.MaxUint8 {
		c = code{jump(unix.BPF_JGE, d[mid].first, len(low), 0)}
	} else {
		c = code{jump(unix.BPF_JGE, d[mid].first, 0, 1), skip(len(low))}
	}
	return append(append(c, low...), high...)
}

func leaf(d decision) code {
	var c code
	for _, r := range d.rules {
		c = append(c, test(r)...)
	}
	return append(c, ret(d.ret))
}

// test returns r's action if its conditions hold, else runs past its end.
func test(r rule) code {
	c := code{ret(r.action)}
	for _, a := range slices.Backward(r.args) {
		c = append(condition(a, len(c)), c...)
	}
	return c
}

// condition runs past its end if a holds, else past the n instructions behind
// that.
func condition(a specs.LinuxSeccompArg, n int) code {
	low := 16 + 8*uint32(a.Index) // both machines are little-endian
	high := low + 4
	vl, vh := uint32(a.Value), uint32(a.Value>>32)
	eq, gt, ge := uint16(unix.BPF_JEQ), uint16(unix.BPF_JGT), uint16(unix.BPF_JGE)
	switch a.Op {
	case specs.OpEqualTo:
		return code{load(high), jump(eq, vh, 0, n+2), load(low), jump(eq, vl, 0, n)}
	case specs.OpNotEqual:
		return code{load(high), jump(eq, vh, 0, 2), load(low), jump(eq, vl, n, 0)}
	case specs.OpMaskedEqual:
		and := uint16(unix.BPF_ALU | unix.BPF_AND | unix.BPF_K)
		two := a.ValueTwo & a.Value
		return code{
			load(high), {Code: and, K: vh}, jump(eq, uint32(two>>32), 0, n+3),
			load(low), {Code: and, K: vl}, jump(eq, uint32(two), 0, n),
		}
	case specs.OpGreaterThan:
		return code{load(high), jump(gt, vh, 3, 0), jump(eq, vh, 0, n+2), load(low), jump(gt, vl, 0, n)}
	case specs.OpGreaterEqual:
		return code{load(high), jump(gt, vh, 3, 0), jump(eq, vh, 0, n+2), load(low), jump(ge, vl, 0, n)}
	case specs.OpLessThan:
		return code{load(high), jump(gt, vh, n+3, 0), jump(eq, vh, 0, 2), load(low), jump(ge, vl, n, 0)}
	case specs.OpLessEqual:
		return code{load(high), jump(gt, vh, n+3, 0), jump(eq, vh, 0, 2), load(low), jump(gt, vl, n, 0)}
	}
	panic("seccomp: unchecked operator")
}
