package linux

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What happens between clone and execve is a script: system calls with all
// their arguments, each naming its successor. It is run by a few lines of
// assembly (run_*.s) that need neither a stack nor the Go runtime, in a child
// that shares our memory: nothing is copied, nothing in Go has to be safe
// after a fork, and results are simply found in the script afterwards. The
// fallback path runs the same script by interpret.
//
// Everything a script points at lies in its own mapping, outside of Go's heap.

// inst is one system call. Its layout is known to the assembly.
type inst struct {
	nr       uintptr
	args     [6]uintptr
	indirect uintptr // bit i: args[i] is the address of the argument
	result   uintptr
	ok       *inst // after success
	zero     *inst // after the result 0 instead, unless nil
	fail     *inst // after an error
}

// unrun is the result of an instruction that was not run.
const unrun = ^uintptr(0) - 1<<20

// scriptSize is enough for what is put into a script besides strings given by
// the user, which are counted.
const scriptSize = 128 << 10

// script is a list of instructions being made, and later their results.
type script struct {
	mem    []byte
	used   int
	insts  []*inst
	what   []string // what each instruction does, for errors
	die    *inst    // ends the process
	strict []bool   // an error is fatal
}

// ref stands for an argument that is only known when the script runs: the
// result of an earlier instruction.
type ref struct{ in *inst }

func newScript(extra int) (*script, error) {
	mem, err := unix.Mmap(-1, 0, scriptSize+extra, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	s := &script{mem: mem}
	s.die = s.newInst(unix.SYS_EXIT_GROUP, 1)
	s.die.ok, s.die.fail = s.die, s.die
	return s, nil
}

func (s *script) close() error { return unix.Munmap(s.mem) }

// alloc returns n zero bytes.
func (s *script) alloc(n int) unsafe.Pointer {
	s.used = (s.used + 15) &^ 15
	if s.used+n > len(s.mem) {
		panic("linux: script too long")
	}
	p := unsafe.Pointer(&s.mem[s.used])
	s.used += n
	return p
}

// str stores a C string.
func (s *script) str(v string) uintptr {
	p := s.alloc(len(v) + 1)
	copy(unsafe.Slice((*byte)(p), len(v)), v)
	return uintptr(p)
}

// strs stores a list of C strings with a final nil.
func (s *script) strs(v []string) uintptr {
	p := s.alloc(8 * (len(v) + 1))
	list := unsafe.Slice((*uintptr)(p), len(v)+1)
	for i, e := range v {
		list[i] = s.str(e)
	}
	return uintptr(p)
}

// put stores a value without pointers.
func put[T any](s *script, v T) uintptr {
	p := (*T)(s.alloc(int(unsafe.Sizeof(v))))
	*p = v
	return uintptr(unsafe.Pointer(p))
}

func putSlice[T any](s *script, v []T) uintptr {
	var zero T
	p := (*T)(s.alloc(int(unsafe.Sizeof(zero)) * max(len(v), 1)))
	copy(unsafe.Slice(p, len(v)), v)
	return uintptr(unsafe.Pointer(p))
}

// pointer is the inverse of the addresses that put and its like return.
func (s *script) pointer(address uintptr) unsafe.Pointer {
	return unsafe.Pointer(&s.mem[address-uintptr(unsafe.Pointer(&s.mem[0]))])
}

func (s *script) newInst(nr uintptr, args ...any) *inst {
	in := (*inst)(s.alloc(int(unsafe.Sizeof(inst{}))))
	in.nr, in.result = nr, unrun
	for i, a := range args {
		switch a := a.(type) {
		case int:
			in.args[i] = uintptr(a)
		case uintptr:
			in.args[i] = a
		case string:
			in.args[i] = s.str(a)
		case ref:
			in.args[i] = uintptr(unsafe.Pointer(&a.in.result))
			in.indirect |= 1 << i
		default:
			panic(fmt.Sprintf("linux: argument of type %T", a))
		}
	}
	return in
}

// add appends an instruction. what says what it does, for the error; an empty
// one means that its failure doesn't matter.
func (s *script) add(what string, nr uintptr, args ...any) *inst {
	in := s.newInst(nr, args...)
	in.fail = s.die
	if n := len(s.insts); n > 0 {
		last := s.insts[n-1]
		last.ok = in
		if !s.strict[n-1] {
			last.fail = in
		}
	}
	s.insts = append(s.insts, in)
	s.what = append(s.what, what)
	s.strict = append(s.strict, what != "")
	return in
}

// seal makes the last instruction end the process, whatever its result.
func (s *script) seal() {
	last := s.insts[len(s.insts)-1]
	last.ok, last.fail = s.die, s.die
}

// errno is the error of an instruction that was run, or 0.
func (in *inst) errno() unix.Errno {
	if in.result != unrun && in.result > ^uintptr(4095) {
		return unix.Errno(-in.result)
	}
	return 0
}

// scriptError says which instruction ended the process.
type scriptError struct {
	What string
	Err  unix.Errno
}

func (e *scriptError) Error() string { return e.What + ": " + e.Err.Error() }
func (e *scriptError) Unwrap() error { return e.Err }

// err is the error that ended the script's process, or nil.
func (s *script) err() error {
	for i, in := range s.insts {
		if errno := in.errno(); errno != 0 && s.strict[i] {
			return &scriptError{s.what[i], errno}
		}
	}
	return nil
}

// interpret runs the script on this thread up to the first fatal error. What
// the assembly does, in Go.
func (s *script) interpret() {
	in := s.insts[0]
	for in != s.die {
		args := in.args
		for i := range args {
			if in.indirect&(1<<i) != 0 {
				args[i] = *(*uintptr)(s.pointer(args[i]))
			}
		}
		r, _, errno := unix.RawSyscall6(in.nr, args[0], args[1], args[2], args[3], args[4], args[5])
		if errno != 0 {
			r = -uintptr(errno)
		}
		in.result = r
		switch {
		case errno != 0:
			in = in.fail
		case r == 0 && in.zero != nil:
			in = in.zero
		default:
			in = in.ok
		}
	}
	runtime.KeepAlive(s)
}
