package rootless

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// reexec runs the program in a new user namespace and exits with its code.
func reexec() error {
	// The child is killed when the thread that made it ends.
	runtime.LockOSThread()
	wait, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{wait}
	cmd.Env = append(os.Environ(), marker+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("make a user namespace: %w%s", err, advice(err))
	}
	_ = wait.Close()
	if err := mapIDs(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	if _, err := ready.Write([]byte{1}); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("start in the user namespace: %w", err)
	}
	_ = ready.Close()
	go forward(signals, cmd.Process)
	err = cmd.Wait()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		return err
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		os.Exit(128 + int(ws.Signal()))
	}
	os.Exit(ws.ExitStatus())
	return nil
}

// advice tells what may allow user namespaces.
func advice(err error) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return " (user namespaces are not allowed to ordinary users here: sysctl kernel.unprivileged_userns_clone=1, or run as root)"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return " (there are no user namespaces left: raise sysctl user.max_user_namespaces, or run as root)"
	}
	return ""
}

// mapIDs gives the child's namespace its ids.
func mapIDs(pid int) error {
	uid, gid := os.Getuid(), os.Getgid()
	if r, err := findRanges(uid); err == nil {
		if err = run(r.newuidmap, mapArgs(pid, uid, r.uids)); err == nil {
			return run(r.newgidmap, mapArgs(pid, gid, r.gids))
		}
		// newuidmap may lack its setuid bit or capability: one id can
		// always be had.
	}
	dir := "/proc/" + strconv.Itoa(pid)
	for _, f := range [][2]string{
		{"/uid_map", fmt.Sprintf("0 %d 1", uid)},
		{"/setgroups", "deny"},
		{"/gid_map", fmt.Sprintf("0 %d 1", gid)},
	} {
		if err := os.WriteFile(dir+f[0], []byte(f[1]), 0); err != nil {
			return fmt.Errorf("map ids: %w", err)
		}
	}
	return nil
}

func run(name string, args []string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// forward passes signals on to the child.
func forward(signals <-chan os.Signal, child *os.Process) {
	for s := range signals {
		switch s {
		case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
			continue // they are about ourselves
		case unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH:
			if foreground() {
				continue // the terminal tells the child too
			}
		case unix.SIGTSTP:
			// The child gets it too, and stops; so do we.
			_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
			continue
		case unix.SIGTTIN, unix.SIGTTOU:
			continue
		}
		_ = child.Signal(s) // it may be gone
	}
}

// foreground says whether this process group is what the terminal's keys go to.
func foreground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// again waits until the ids are mapped and executes the program once more.
// state is the number of the pipe.
func again(state string) error {
	fd, err := strconv.Atoi(state)
	if err != nil {
		return fmt.Errorf("the environment has a bad %s", marker)
	}
	var b [1]byte
	n, err := unix.Read(fd, b[:])
	for err == unix.EINTR {
		n, err = unix.Read(fd, b[:])
	}
	_ = unix.Close(fd)
	if err != nil || n != 1 {
		return errors.New("the parent process is gone")
	}
	env := append(environ(), marker+"="+mapped, parent+"="+strconv.Itoa(os.Getppid()))
	err = unix.Exec("/proc/self/exe", os.Args, env)
	return fmt.Errorf("re-execute: %w", err)
}

// parent is the variable with the pid of the process that made the namespace.
const parent = "STRAKE_USER_NAMESPACE_PARENT"

// environ is the environment without our variables.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, marker+"=") && !strings.HasPrefix(kv, parent+"=") {
			env = append(env, kv)
		}
	}
	return env
}

// tie makes this process die with its parent, which forwards signals to it. What
// was set before the execution is gone with the gain of capabilities.
func tie() error {
	set := make(chan error)
	go func() {
		// The signal is that of a thread, and is gone with it or when its
		// credentials change: this one does nothing else, and stays.
		runtime.LockOSThread()
		set <- unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		select {}
	}()
	if err := <-set; err != nil {
		return fmt.Errorf("set parent death signal: %w", err)
	}
	want := os.Getenv(parent)
	if err := os.Unsetenv(parent); err != nil {
		return err
	}
	if want != strconv.Itoa(os.Getppid()) {
		return errors.New("the parent process is gone")
	}
	return nil
}
