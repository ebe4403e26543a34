package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// group is a control group that holds everything one tool runs: client, daemon
// and steps. Processes are started in it, so it counts them from the first
// instruction on. Both hierarchies are known, since machines have either.
type group struct {
	name        string      // below the root of each hierarchy
	memory, cpu string      // directories that are read
	join        []string    // all directories
	unified     bool        // cgroup v2
	home        int         // v2: file descriptor of the directory to start in
	starts      chan func() // v1: what it is sent runs on a thread that is in the group
}

const cgroupRoot = "/sys/fs/cgroup"

// newGroup makes a group.
func newGroup(name string) (*group, error) {
	g := &group{name: name, home: -1}
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		g.unified = true
		top := filepath.Join(cgroupRoot, name)
		home := filepath.Join(top, "tool") // groups with controllers hold no processes themselves
		if err := os.MkdirAll(home, 0o755); err != nil {
			return nil, err
		}
		for _, c := range []string{"+memory", "+cpu", "+pids"} {
			_ = os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte(c), 0)
		}
		g.memory, g.cpu, g.join = top, top, []string{home, filepath.Join(top, "steps"), top}
		fd, err := unix.Open(home, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		g.home = fd
		return g, nil
	}
	g.memory, g.cpu = filepath.Join(cgroupRoot, "memory", name), filepath.Join(cgroupRoot, "cpuacct", name)
	for _, dir := range []string{g.memory, g.cpu} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		g.join = append(g.join, dir)
	}
	if err := g.enter(); err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

// enter has a thread of this process move into the group, to start commands
// there, until the group is closed. To move one takes the kernel up to 15 ms,
// which is no part of what a tool needs.
func (g *group) enter() error {
	g.starts = make(chan func())
	joined := make(chan error)
	go func() {
		runtime.LockOSThread() // and so the thread ends with this goroutine
		for _, dir := range g.join {
			if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(strconv.Itoa(unix.Gettid())), 0); err != nil {
				joined <- err
				return
			}
		}
		joined <- nil
		for start := range g.starts {
			start()
		}
	}()
	return <-joined
}

// steps is the group that a builder is told to put its steps below.
func (g *group) steps() string {
	if g.unified {
		return "/" + g.name + "/steps"
	}
	return "/" + g.name
}

// start starts a command in the group.
func (g *group) start(cmd *exec.Cmd) error {
	if g.unified {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: g.home}
		return cmd.Start()
	}
	done := make(chan error)
	g.starts <- func() { done <- cmd.Start() }
	return <-done
}

// cpuTime is what the group has used of the processors so far.
func (g *group) cpuTime() time.Duration {
	if g.unified {
		return time.Duration(field(filepath.Join(g.cpu, "cpu.stat"), "usage_usec")) * time.Microsecond
	}
	data, _ := os.ReadFile(filepath.Join(g.cpu, "cpuacct.usage"))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return time.Duration(n)
}

// rss is the memory of the group's processes: what is theirs alone, without the
// page cache, which the kernel takes back when it wants.
func (g *group) rss() int64 {
	name := "total_rss"
	if g.unified {
		name = "anon"
	}
	return field(filepath.Join(g.memory, "memory.stat"), name)
}

func field(file, name string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}

// watch begins to sample the memory; the function returned ends that and returns
// the peak. Samples are few enough that the kernel, which adds up the counters of
// all groups for each, does not slow down what is measured.
func (g *group) watch() func() int64 {
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := g.rss()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most = max(most, g.rss())
			case <-stop:
				peak <- max(most, g.rss())
				return
			}
		}
	}()
	return func() int64 { close(stop); return <-peak }
}

// close removes the group. What still runs in it is killed: it was left by a
// tool that ended.
func (g *group) close() error {
	if g.home >= 0 {
		unix.Close(g.home)
	}
	if g.starts != nil {
		close(g.starts)
	}
	var err error
	for range 100 {
		err = nil
		for _, dir := range g.join {
			err = errors.Join(err, removeGroup(dir))
		}
		if err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove control group: %w", err)
}

// removeGroup removes a group and those below it.
func removeGroup(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range list {
		if d.IsDir() {
			if err := removeGroup(filepath.Join(dir, d.Name())); err != nil {
				return err
			}
		}
	}
	procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for pid := range strings.FieldsSeq(string(procs)) {
		if n, err := strconv.Atoi(pid); err == nil && n != os.Getpid() { // whose thread is about to end
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
	if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}
