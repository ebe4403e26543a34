// Package disorder runs a program to which directories list their entries in
// another order than they would, so that what depends on the order shows.
//
// It is a program in a sandbox, this one by another name: it traces the one that
// it is to run, and all that this one starts, and turns the entries that
// getdents64(2) returned around. A filter (seccomp) stops traced processes
// there and nowhere else. Programs that trace others themselves, and those that
// get rights by set-user-ID, don't work under it.
package disorder

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Path is where the program is in a sandbox, which is its name, too. The
// arguments are the program to run and its arguments.
const Path = "/dev/.strake-disorder"

// Main is called by main first. It returns unless this process is the program.
func Main() {
	if os.Args[0] != Path || len(os.Args) < 2 {
		return
	}
	runtime.LockOSThread() // a tracer is a thread
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n", err)
	}
	unix.Exit(code)
}

// Static reports whether a program needs no dynamic loader, and so runs in any
// root.
func Static(program string) bool {
	f, err := elf.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

func run(args []string) (code int, err error) {
	program, err := exec.LookPath(args[0])
	switch {
	case errors.Is(err, os.ErrPermission):
		return 126, err
	case err != nil && !errors.Is(err, exec.ErrDot):
		return 127, err
	}
	if err := filter(); err != nil {
		return 125, fmt.Errorf("filter system calls: %w", err)
	}
	p, err := os.StartProcess(program, args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ(), Sys: &unix.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return 126, err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(p.Pid, &ws, unix.WALL, nil); err != nil {
		return 125, err
	}
	if ws.Exited() {
		return ws.ExitStatus(), nil
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC |
		unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(p.Pid, options); err != nil {
		return 125, err
	}
	if err := unix.PtraceCont(p.Pid, 0); err != nil {
		return 125, err
	}
	return trace(p.Pid)
}

// trace goes on until the process main has ended.
func trace(main int) (code int, err error) {
	seen := map[int]bool{main: true}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 125, err
		}
		switch {
		case ws.Exited() || ws.Signaled():
			delete(seen, pid)
			if pid != main {
				continue
			}
			if ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return ws.ExitStatus(), nil
		case !ws.Stopped():
			continue
		}
		signal := ws.StopSignal()
		next := unix.PtraceCont
		switch {
		case signal == unix.SIGTRAP|0x80: // a system call has ended
			reverse(pid)
			signal = 0
		case signal == unix.SIGTRAP && uint32(ws)>>16 == unix.PTRACE_EVENT_SECCOMP:
			next, signal = unix.PtraceSyscall, 0
		case signal == unix.SIGTRAP && uint32(ws)>>16 != 0:
			signal = 0
		case signal == unix.SIGSTOP && !seen[pid]: // a new process begins so
			signal = 0
		}
		seen[pid] = true
		_ = next(pid, int(signal)) // it may have been killed
	}
}

// reverse turns the entries that getdents64 returned around, but for "." and
// "..", which come first everywhere.
func reverse(pid int) {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(pid, &regs) != nil {
		return
	}
	n, addr := result(&regs)
	if n <= 0 || n > 1<<20 {
		return
	}
	buf := make([]byte, n)
	if !move(pid, buf, addr, unix.ProcessVMReadv) {
		return
	}
	if out, ok := reversed(buf); ok {
		move(pid, out, addr, unix.ProcessVMWritev)
	}
}

func move(pid int, buf []byte, addr uintptr, how func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error)) bool {
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	n, err := how(pid, local, []unix.RemoteIovec{{Base: addr, Len: len(buf)}}, 0)
	return err == nil && n == len(buf)
}

// reversed returns the records of a getdents64 buffer in another order. Their
// offsets stay where they were: the last one is where the next call goes on.
func reversed(buf []byte) ([]byte, bool) {
	const offset, length, name = 8, 16, 19
	var first, others [][]byte
	var offsets []uint64
	for b := buf; len(b) > 0; {
		if len(b) < name {
			return nil, false
		}
		n := int(binary.NativeEndian.Uint16(b[length:]))
		if n < name || n > len(b) {
			return nil, false
		}
		rec := slices.Clone(b[:n])
		offsets = append(offsets, binary.NativeEndian.Uint64(rec[offset:]))
		if s := unix.ByteSliceToString(rec[name:]); s == "." || s == ".." {
			first = append(first, rec)
		} else {
			others = append(others, rec)
		}
		b = b[n:]
	}
	slices.Reverse(others)
	out := make([]byte, 0, len(buf))
	for i, rec := range append(first, others...) {
		binary.NativeEndian.PutUint64(rec[offset:], offsets[i])
		out = append(out, rec...)
	}
	return out, true
}

// filter makes getdents64 of this process's children stop for their tracer. The
// process itself calls it no more.
func filter() error {
	const (
		nr   = 0 // struct seccomp_data
		arch = 4
	)
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: auditArch, Jt: 0, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETDENTS64, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_TRACE},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return errno
	}
	return nil
}
