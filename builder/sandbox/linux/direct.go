package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

// run is one call of Run.
type run struct {
	ctx    context.Context
	p      sandbox.Process
	job    *job
	cgroup *cgroup
	io     *stdio
	self   int // pidfd of this process

	exit int
	err  error
}

// direct runs the process by a raw clone. Everything happens on one thread,
// which is thrown away.
func (r *run) direct() (int, error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread lives as long as the process, and with it
			// its namespaces. Another goroutine gets another thread.
			defer runtime.UnlockOSThread()
			inner := make(chan struct{})
			go func() {
				defer close(inner)
				runtime.LockOSThread() // for ever
				r.exit, r.err = r.thread()
			}()
			<-inner
			return
		}
		r.exit, r.err = r.thread()
	}()
	<-done
	return r.exit, r.err
}

// thread runs on the thread that is thrown away.
func (r *run) thread() (exit int, err error) {
	host, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(host)
	// Leaving the sandbox's mount namespace last, and not by the thread's end,
	// makes the kernel take the file systems down before we return.
	defer func() { _ = unix.Setns(host, unix.CLONE_NEWNS) }()

	stage, err := r.job.setup()
	if err != nil {
		return 0, err
	}
	defer stage.open.close()
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	if r.p.Terminal != nil {
		fd, err := unix.FcntlInt(uintptr(stage.master), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return 0, err
		}
		_ = unix.SetNonblock(fd, true) // a terminal can
		elsewhere(func() { r.p.Terminal(os.NewFile(uintptr(fd), "/dev/ptmx")) })
	}
	child, err := stage.child()
	if err != nil {
		return 0, err
	}
	defer child.close()
	return r.clone(stage, child)
}

// warden is the script of the process between us and the sandbox, and where it
// leaves what it learned.
type warden struct {
	*script
	process *inst      // clone of the process
	wait    *inst      // wait4
	status  *int32     // its result
	fds     *[2]pollFD // us, the process
}

type pollFD struct {
	fd     int32
	events int16
	_      int16 // revents
}

// cloneArgs is struct clone_args.
type cloneArgs struct {
	flags, pidfd uint64
	_, _         uint64 // child_tid, parent_tid
	exitSignal   uint64
	_, _, _      uint64 // stack, stack_size, tls
	_, _, _      uint64 // set_tid, set_tid_size, cgroup
}

func (r *run) warden(c *child, started int) (*warden, error) {
	s, err := newScript(0)
	if err != nil {
		return nil, err
	}
	w := &warden{script: s}
	w.fds = (*[2]pollFD)(s.alloc(int(unsafe.Sizeof(*w.fds))))
	w.fds[0] = pollFD{fd: int32(r.self), events: unix.POLLIN}
	w.fds[1] = pollFD{fd: -1, events: unix.POLLIN}
	w.status = (*int32)(s.alloc(4))
	args := put(s, cloneArgs{
		flags:      unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_PIDFD | unix.CLONE_NEWPID,
		pidfd:      uint64(uintptr(unsafe.Pointer(&w.fds[1].fd))),
		exitSignal: uint64(unix.SIGCHLD),
	})
	w.process = w.add("clone", unix.SYS_CLONE3, args, int(unsafe.Sizeof(cloneArgs{})))
	w.process.zero = c.insts[0]
	// Thanks to CLONE_VFORK the process has its program now, or is dead.
	w.add("", unix.SYS_WRITE, started, put(s, uint64(1)), 8)
	w.add("", unix.SYS_PPOLL, uintptr(unsafe.Pointer(w.fds)), 2, 0, 0, 0)
	w.add("", unix.SYS_KILL, ref{w.process}, int(unix.SIGKILL))
	w.wait = w.add("", unix.SYS_WAIT4, ref{w.process}, uintptr(unsafe.Pointer(w.status)), 0, 0)
	if r.cgroup != nil {
		// If we were killed there is nobody else to do it.
		for i, dir := range r.cgroup.dirs {
			w.add("", unix.SYS_UNLINKAT, r.cgroup.parents[i], filepath.Base(dir), unix.AT_REMOVEDIR)
		}
	}
	w.add("", unix.SYS_EXIT_GROUP, 0)
	w.seal()
	return w, nil
}

// spawn starts the warden and returns its pid and pidfd.
func (w *warden) spawn() (pid, pidfd int, err error) {
	fd := (*int32)(w.alloc(4))
	args := put(w.script, cloneArgs{
		// The table of descriptors is shared so that locks and pipes of
		// ours have no second owner.
		flags:      unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_PIDFD | unix.CLONE_NEWPID | unix.CLONE_CLEAR_SIGHAND,
		pidfd:      uint64(uintptr(unsafe.Pointer(fd))),
		exitSignal: uint64(unix.SIGCHLD),
	})
	p := w.pointer(args)
	all, old := ^uint64(0), uint64(0)
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	if e != 0 {
		return 0, -1, fmt.Errorf("block signals: %w", e)
	}
	r := spawn(p, unsafe.Sizeof(cloneArgs{}), unsafe.Pointer(w.insts[0]))
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	if r > ^uintptr(4095) {
		return 0, -1, fmt.Errorf("clone: %w", unix.Errno(-r))
	}
	return int(r), int(*fd), nil
}

// clone runs the scripts and waits for their end.
func (r *run) clone(stage *stage, c *child) (exit int, err error) {
	started, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(started)
	w, err := r.warden(c, started)
	if err != nil {
		return 0, err
	}
	defer w.close()
	pid, pidfd, err := w.spawn()
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	killed := make(chan struct{})
	stop := context.AfterFunc(r.ctx, func() {
		defer close(killed)
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	})
	defer func() {
		if !stop() {
			<-killed
		}
	}()
	// Either the process has started or the warden has come to its end.
	poll := []unix.PollFd{{Fd: int32(started), Events: unix.POLLIN}, {Fd: int32(pidfd), Events: unix.POLLIN}}
	_, err = retry(func() (int, error) { return unix.Poll(poll, -1) })
	ok := err == nil && poll[0].Revents != 0 && c.err() == nil
	var execErr error
	if ok {
		if execErr = c.execErr(); execErr != nil {
			execErr = stage.hint(execErr)
			ok = false
		}
	}
	stage.open.close()
	var signals *signals
	elsewhere(func() {
		r.io.start(r.p)
		if ok && r.p.Started != nil {
			signals = newSignals(int(w.fds[1].fd))
			r.p.Started(signals.send)
		}
	})
	var ws unix.WaitStatus
	_, werr := retry(func() (int, error) { return unix.Wait4(pid, &ws, 0, nil) })
	if signals != nil {
		signals.close()
	}
	if fd := int(w.fds[1].fd); fd >= 0 {
		_ = unix.Close(fd)
	}
	switch {
	case err != nil || werr != nil:
		return 0, errors.Join(err, werr)
	case w.err() != nil:
		return 0, w.err()
	case c.err() != nil:
		return 0, c.err()
	case execErr != nil:
		return 0, execErr
	case w.wait.errno() != 0 || w.wait.result == unrun:
		return 0, errors.New("the sandbox was killed")
	case !ok || c.execs[0].result == unrun && !c.reached(c.execs[0]):
		return 0, fmt.Errorf("the process ended before its program began (%s)", describe(unix.WaitStatus(*w.status)))
	}
	return exitCode(unix.WaitStatus(*w.status)), nil
}

// reached says whether the instruction before in was run, and so in was.
func (s *script) reached(in *inst) bool {
	for i := range s.insts {
		if s.insts[i] == in {
			return i == 0 || s.insts[i-1].result != unrun
		}
	}
	return false
}

// exitCode is the shell's.
func exitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func describe(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return ws.Signal().String()
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

// hint looks why a program that is there can't be found. After the pivot, / is
// the sandbox's for this thread too.
func (j *job) hint(err error) error {
	var e *sandbox.ExecError
	if !errors.As(err, &e) || e.Err != unix.ENOENT {
		return err
	}
	for _, name := range candidates(j.Spec.Process) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(j.Spec.Process.Cwd, name)
		}
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil {
			continue
		}
		return &sandbox.ExecError{Path: name, Err: unix.ENOENT, Hint: "the file is there, but not the interpreter or dynamic loader that it asks for"}
	}
	return err
}

// elsewhere calls f, which is not ours, on a thread in the host's namespaces.
func elsewhere(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// signals sends signals to a process until it is closed.
type signals struct {
	mu    sync.Mutex
	pidfd int
}

func newSignals(pidfd int) *signals { return &signals{pidfd: pidfd} }

func (s *signals) send(sig os.Signal) error {
	n, ok := sig.(unix.Signal)
	if !ok {
		return fmt.Errorf("signal %v: %w", sig, errors.ErrUnsupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pidfd < 0 {
		return os.ErrProcessDone
	}
	return unix.PidfdSendSignal(s.pidfd, n, nil, 0)
}

func (s *signals) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pidfd = -1
}
