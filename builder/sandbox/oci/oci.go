// Package oci runs sandboxed processes by an OCI runtime: runc, crun or runsc.
//
// The runtime is called by a re-execution of this program, the warden, which is
// process 1 of a pid namespace and has a mount namespace of its own. The bundle,
// the runtime's state and the root are mounts there: when the warden is gone,
// for whatever reason, so are they and every process. What can be left after a
// SIGKILL is an empty directory and empty cgroups, which the next New removes.
package oci

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/internal/wire"
)

// Options says which runtime to use and where.
type Options struct {
	Runtime  string // name or path
	StateDir string // for bundles and the runtime's state
	Rootless bool
}

type runner struct {
	o    Options
	path string
}

// New returns the runner, or an error if the runtime isn't there.
func New(o Options) (sandbox.Runner, error) {
	path, err := exec.LookPath(o.Runtime)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("OCI runtime: %w", err)
	}
	if o.StateDir, err = filepath.Abs(o.StateDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, err
	}
	r := &runner{o, path}
	r.sweep()
	return r, nil
}

func (r *runner) Name() string { return filepath.Base(r.path) }

// prefix begins the ids of containers and the names of their directories.
const prefix = "strake-"

// sweep removes what killed processes left: best effort.
func (r *runner) sweep() {
	dirs, err := filepath.Glob(filepath.Join(r.o.StateDir, prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		lock, err := lockDir(dir)
		if err != nil {
			continue // in use
		}
		removeCgroups(filepath.Base(dir))
		_ = os.Remove(dir)
		_ = lock.Close()
	}
}

func removeCgroups(id string) {
	for _, pattern := range []string{"/sys/fs/cgroup/strake/", "/sys/fs/cgroup/*/strake/"} {
		dirs, _ := filepath.Glob(pattern + id) // the pattern is good
		for _, dir := range dirs {
			_ = unix.Rmdir(dir)
		}
	}
}

// lockDir opens and locks a directory, unless it is locked.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// newDir makes and locks a directory for a container.
func (r *runner) newDir() (dir string, lock *os.File, err error) {
	for range 100 {
		dir = filepath.Join(r.o.StateDir, prefix+strings.ToLower(rand.Text()[:16]))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", nil, err
		}
		lock, err = lockDir(dir)
		if err == nil {
			// Another process's sweep may have been faster.
			if _, err = os.Stat(dir); err == nil {
				return dir, lock, nil
			}
			_ = lock.Close()
		}
	}
	return "", nil, err
}

// job is what the warden gets.
type job struct {
	Runtime  string
	Dir      string
	Spec     *specs.Spec
	Root     sandbox.Root
	Files    []sandbox.File
	Trees    []sandbox.TreeMount
	NetNS    int // a descriptor of the warden; -1: none
	Rootless bool
}

// report is what the warden says: that a terminal's master comes with the
// message, that the process has started, that it ended, or an error.
type report struct {
	Master  bool
	Started bool
	Ended   bool
	Exit    int
	Err     string
	Exec    bool // it is about the program
	Errno   unix.Errno
}

// What we say to the warden, besides numbers of signals.
const byteKill = 0

func (r *runner) Run(ctx context.Context, p sandbox.Process) (exit int, err error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if p.Spec == nil || p.Spec.Process == nil || p.Spec.Linux == nil || len(p.Spec.Process.Args) == 0 {
		return 0, errors.New("sandbox: incomplete configuration")
	}
	if p.Spec.Process.Terminal != (p.Terminal != nil) {
		return 0, errors.New("sandbox: the configuration and its user disagree about a terminal")
	}
	dir, lock, err := r.newDir()
	if err != nil {
		return 0, fmt.Errorf("directory for %s: %w", r.Name(), err)
	}
	defer func() {
		err = errors.Join(err, os.Remove(dir), lock.Close())
		if ctx.Err() != nil {
			exit, err = 0, context.Cause(ctx)
		}
	}()
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

	j := job{Runtime: r.path, Dir: dir, Spec: p.Spec, Root: p.Root, Files: p.Files, Trees: p.Trees, NetNS: -1, Rootless: r.o.Rootless}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{wardenName}
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR=" + dir}
	cmd.ExtraFiles = []*os.File{theirs, theirReports, lock}
	if p.NetNS != nil {
		j.NetNS = 3 + len(cmd.ExtraFiles)
		cmd.ExtraFiles = append(cmd.ExtraFiles, p.NetNS)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	// When the warden has ended nobody is left who could write.
	cmd.WaitDelay = 10 * time.Second
	if p.Terminal == nil {
		cmd.Stdout, cmd.Stderr = p.Stdout, p.Stderr
		if p.Stdin != nil {
			in, err := cmd.StdinPipe()
			if err != nil {
				return 0, err
			}
			// Not waited for: the reader may block for ever.
			go func() {
				_, _ = io.Copy(in, p.Stdin)
				_ = in.Close()
			}()
		}
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("re-execute: %w", err)
	}
	_ = theirs.Close()
	_ = theirReports.Close()
	w := &warden{control: control}
	stop := context.AfterFunc(ctx, func() {
		// It has the runtime clean up, unless that takes too long.
		_ = w.tell(byteKill)
		select {
		case <-w.gone():
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
		}
	})
	defer stop()
	if err := wire.Write(control, j); err != nil {
		_ = cmd.Process.Kill()
	}
	exit, err = r.follow(p, reports, w)
	if err != nil {
		_ = w.tell(byteKill)
	}
	werr := cmd.Wait()
	w.end()
	var ee *exec.ExitError
	if errors.As(werr, &ee) || err != nil {
		werr = nil
	}
	return exit, errors.Join(err, werr)
}

// follow reads the warden's reports to their end.
func (r *runner) follow(p sandbox.Process, socket *os.File, w *warden) (exit int, err error) {
	for {
		var rep report
		fd, err := wire.Receive(socket, &rep)
		switch {
		case err == io.EOF:
			return 0, fmt.Errorf("%s: the sandbox was killed", r.Name())
		case err != nil:
			return 0, fmt.Errorf("read report: %w", err)
		case rep.Master && fd >= 0:
			_ = unix.SetNonblock(fd, true) // a terminal can
			p.Terminal(os.NewFile(uintptr(fd), "/dev/ptmx"))
		case rep.Started:
			if p.Started != nil {
				p.Started(w.signal)
			}
		case rep.Ended:
			return rep.Exit, nil
		case rep.Exec:
			return 0, &sandbox.ExecError{Path: p.Spec.Process.Args[0], Err: rep.Errno}
		default:
			return 0, fmt.Errorf("%s: %s", r.Name(), rep.Err)
		}
	}
}

// warden is our end of the connection to the warden.
type warden struct {
	mu      sync.Mutex
	control *os.File
	done    chan struct{}
}

func (w *warden) gone() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done == nil {
		w.done = make(chan struct{})
		if w.control == nil {
			close(w.done)
		}
	}
	return w.done
}

func (w *warden) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.control = nil
	if w.done != nil {
		close(w.done)
	}
}

func (w *warden) tell(b byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.control == nil {
		return os.ErrProcessDone
	}
	if _, err := w.control.Write([]byte{b}); err != nil {
		return os.ErrProcessDone
	}
	return nil
}

func (w *warden) signal(sig os.Signal) error {
	n, ok := sig.(unix.Signal)
	if !ok || n == byteKill {
		return fmt.Errorf("signal %v: %w", sig, errors.ErrUnsupported)
	}
	return w.tell(byte(n))
}
