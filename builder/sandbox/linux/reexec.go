package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/internal/wire"
)

// The fallback path re-executes this program twice: as the warden, and by that
// as the process, which sets the sandbox up as a thread does on the direct
// path, runs its script by interpret, and so becomes the program.
//
// The warden's descriptor 3 is a socket to us. The job comes over it, then
// numbers of signals to be passed on; at the end the process's wait status goes
// back. Its end is ours. The process's descriptor 3 is another socket to us: it
// sends a report if something goes wrong; execve closes it.
const (
	wardenName  = "strake-sandbox-warden"
	processName = "strake-sandbox-process"
)

// Main is the entry point of re-executed children. It returns at once unless
// this process is one; then it never returns. main calls it first.
func Main() {
	switch os.Args[0] {
	case wardenName:
		unix.Exit(wardenMain()) // os.Exit takes a second under the race detector
	case processName:
		processMain()
		unix.Exit(1)
	}
}

// report is what the process says before it runs its program: that its
// terminal's master comes with the message, or an error.
type report struct {
	Master bool
	Err    string
	What   string // of a scriptError
	Errno  unix.Errno
	Exec   bool // it is an ExecError of Path
	Path   string
	Hint   string
}

func newReport(err error) report {
	r := report{Err: err.Error()}
	var ee *sandbox.ExecError
	var se *scriptError
	switch {
	case errors.As(err, &ee):
		r.Exec, r.Path, r.Hint = true, ee.Path, ee.Hint
		errors.As(ee.Err, &r.Errno)
	case errors.As(err, &se):
		r.What, r.Errno = se.What, se.Err
	default:
		errors.As(err, &r.Errno)
	}
	return r
}

func (r report) err() error {
	switch {
	case r.Exec:
		return &sandbox.ExecError{Path: r.Path, Err: r.Errno, Hint: r.Hint}
	case r.What != "":
		return &scriptError{r.What, r.Errno}
	case r.Errno != 0:
		return &remoteError{r.Err, r.Errno}
	}
	return errors.New(r.Err)
}

// remoteError is an error of the child with its text.
type remoteError struct {
	text  string
	errno unix.Errno
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.errno }

// renumber duplicates the job's descriptors for a child, whose first is number
// first, and returns the job with their numbers there.
func (j job) renumber(first int) (*job, []*os.File, error) {
	var files []*os.File
	known := map[int]int{}
	var failed error
	move := func(fd int) int {
		if fd < 0 || failed != nil {
			return -1
		}
		if n, ok := known[fd]; ok {
			return n
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			failed = err
			return -1
		}
		known[fd] = first + len(files)
		files = append(files, os.NewFile(uintptr(dup), "inherited"))
		return known[fd]
	}
	for i, fd := range j.Stdio {
		j.Stdio[i] = move(fd)
	}
	j.NetNS = move(j.NetNS)
	group := make([]int, len(j.Cgroup))
	for i, fd := range j.Cgroup {
		group[i] = move(fd)
	}
	j.Cgroup = group // not the caller's slice
	if failed != nil {
		closeAll(files)
		return nil, nil, fmt.Errorf("duplicate descriptors: %w", failed)
	}
	return &j, files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// reexec runs the process by re-execution.
func (r *run) reexec() (exit int, err error) {
	control, theirs, err := wire.Pair(unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	defer control.Close()
	defer theirs.Close()
	reports, theirReports, err := wire.Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return 0, err
	}
	defer reports.Close()
	defer theirReports.Close()
	job, files, err := r.job.renumber(5)
	if err != nil {
		return 0, err
	}
	defer closeAll(files)

	cmd := exec.CommandContext(r.ctx, "/proc/self/exe")
	cmd.Args = []string{wardenName}
	cmd.Env = []string{}
	cmd.ExtraFiles = append([]*os.File{theirs, theirReports}, files...)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("re-execute: %w", err)
	}
	_ = theirs.Close()
	_ = theirReports.Close()
	closeAll(files)

	err = wire.Write(control, job)
	if err == nil {
		err = r.reports(reports)
	}
	r.io.start(r.p)
	if err != nil {
		_ = cmd.Process.Kill()
		return 0, errors.Join(err, ignoreExit(cmd.Wait()))
	}
	if r.p.Started != nil {
		r.p.Started(func(sig os.Signal) error {
			n, ok := sig.(unix.Signal)
			if !ok {
				return fmt.Errorf("signal %v: %w", sig, errors.ErrUnsupported)
			}
			if _, err := control.Write([]byte{byte(n)}); err != nil {
				return os.ErrProcessDone
			}
			return nil
		})
	}
	var status [4]byte
	_, rerr := io.ReadFull(control, status[:])
	if err := ignoreExit(cmd.Wait()); err != nil {
		return 0, err
	}
	if rerr != nil {
		return 0, errors.New("the sandbox was killed")
	}
	return exitCode(unix.WaitStatus(binary.LittleEndian.Uint32(status[:]))), nil
}

// ignoreExit drops the error that says that a process ended.
func ignoreExit(err error) error {
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return nil
	}
	return err
}

// reports reads the process's reports up to the end that execve makes.
func (r *run) reports(socket *os.File) error {
	for {
		var rep report
		fd, err := wire.Receive(socket, &rep)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read report: %w", err)
		case !rep.Master:
			return rep.err()
		case fd < 0:
			return errors.New("the terminal got lost")
		}
		_ = unix.SetNonblock(fd, true) // a terminal can
		r.p.Terminal(os.NewFile(uintptr(fd), "/dev/ptmx"))
	}
}

// wardenMain is the warden of the fallback path.
func wardenMain() int {
	control, reports := os.NewFile(3, "control"), os.NewFile(4, "reports")
	j := &job{}
	if err := wire.Read(control, j); err != nil {
		return 1 // we are alone
	}
	fail := func(err error) int {
		_ = wire.Send(4, newReport(err), -1)
		return 1
	}
	moved, files, err := j.renumber(5)
	if err != nil {
		return fail(err)
	}
	moved.Keep = 1
	in, out, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{processName}
	cmd.Env = []string{}
	cmd.ExtraFiles = append([]*os.File{reports, in}, files...)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return fail(fmt.Errorf("re-execute: %w", err))
	}
	// What the process has must not stay open here as well.
	_ = reports.Close()
	_ = in.Close()
	closeAll(files)
	for i := range files {
		_ = unix.Close(5 + i) // as we got them
	}
	go func() {
		// Best effort: without the job the process ends, and we see that.
		_ = wire.Write(out, moved)
		_ = out.Close()
	}()
	go func() {
		var sig [1]byte
		for {
			if _, err := control.Read(sig[:]); err != nil {
				break
			}
			_ = cmd.Process.Signal(unix.Signal(sig[0])) // it may be gone
		}
		_ = cmd.Process.Kill()
	}()
	if err := ignoreExit(cmd.Wait()); err != nil {
		return 1
	}
	status := uint32(cmd.ProcessState.Sys().(syscall.WaitStatus))
	_, _ = control.Write(binary.LittleEndian.AppendUint32(nil, status)) // they may be gone
	for _, dir := range j.CgroupDirs {
		_ = unix.Rmdir(dir)
	}
	return 0
}

// processMain becomes the sandbox's process 1, or returns after reporting why
// it can't.
func processMain() {
	runtime.LockOSThread()
	unix.CloseOnExec(3)
	if err := become(); err != nil {
		_ = wire.Send(3, newReport(err), -1)
	}
}

func become() error {
	in := os.NewFile(4, "job")
	j := &job{}
	if err := wire.Read(in, j); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	_ = in.Close()
	stage, err := j.setup()
	if err != nil {
		return err
	}
	if stage.master >= 0 {
		if err := wire.Send(3, report{Master: true}, stage.master); err != nil {
			return err
		}
	}
	c, err := stage.child()
	if err != nil {
		return err
	}
	c.interpret()
	if err := c.err(); err != nil {
		return err
	}
	return j.hint(c.execErr())
}
