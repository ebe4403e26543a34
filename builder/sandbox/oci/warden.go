package oci

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/internal/wire"
	"github.com/strake-build/strake/builder/sandbox/linux"
)

const wardenName = "strake-oci-warden"

// Main is the entry point of re-executed children; see linux.Main.
func Main() {
	if os.Args[0] != wardenName {
		return
	}
	control := os.NewFile(3, "control")
	for fd := 3; fd <= 6; fd++ {
		unix.CloseOnExec(fd) // the runtime has no use for them
	}
	var j job
	if err := wire.Read(control, &j); err != nil {
		os.Exit(1) // we are alone
	}
	c := &container{job: j, id: filepath.Base(j.Dir)}
	go c.obey(control)
	rep := report{Ended: true}
	var err error
	if rep.Exit, err = c.run(); err != nil {
		rep = report{Err: err.Error()}
		rep.Exec, rep.Errno = aboutProgram(rep.Err)
	}
	_ = wire.Send(4, rep, -1) // they may be gone
	unix.Exit(0)              // os.Exit takes a second under the race detector
}

// container is run by the warden.
type container struct {
	job
	id string

	mu     sync.Mutex
	pid    int         // of its process 1; 0: not yet
	cmd    *os.Process // the runtime, while it is called
	killed bool
}

// obey does what comes over the control socket. Its end is ours.
func (c *container) obey(control *os.File) {
	var b [1]byte
	for {
		n, err := control.Read(b[:])
		if n == 1 && b[0] != byteKill {
			c.mu.Lock()
			if c.pid > 0 {
				_ = unix.Kill(c.pid, unix.Signal(b[0])) // it may be gone
			}
			c.mu.Unlock()
			continue
		}
		c.kill()
		if err != nil {
			return
		}
	}
}

func (c *container) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	if c.pid > 0 {
		_ = unix.Kill(c.pid, unix.SIGKILL)
	}
	if c.cmd != nil {
		_ = c.cmd.Kill()
	}
}

func (c *container) path(name string) string { return filepath.Join(c.Dir, name) }

// run runs the container to its end.
func (c *container) run() (exit int, err error) {
	if err := c.mount(); err != nil {
		return 0, err
	}
	create := []string{"create", "--bundle", c.Dir, "--pid-file", c.path("pid")}
	if c.Spec.Process.Terminal {
		l, err := c.console()
		if err != nil {
			return 0, fmt.Errorf("terminal: %w", err)
		}
		passed := make(chan error, 1)
		go func() { passed <- passTerminal(l) }()
		defer func() {
			_ = l.Close() // if the runtime never came
			if perr := <-passed; err == nil {
				err = perr
			}
		}()
		create = append(create, "--console-socket", "console")
	}
	defer func() {
		// The processes are dead or die with us; this is about cgroups.
		c.mu.Lock()
		c.killed = false
		c.mu.Unlock()
		_ = c.runtime("delete", "--force", c.id)
		removeCgroups(c.id)
	}()
	if err := c.runtime(append(create, c.id)...); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(c.path("pid"))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("pid file: %w", err)
	}
	c.mu.Lock()
	c.pid = pid
	killed := c.killed
	c.mu.Unlock()
	if killed {
		c.kill()
	} else if err := c.runtime("start", c.id); err != nil {
		c.kill()
		return 0, err
	}
	_ = wire.Send(4, report{Started: true}, -1)
	var ws unix.WaitStatus
	for {
		// The runtime's child became ours when the runtime ended.
		if _, err = unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	c.mu.Lock()
	c.pid = 0
	c.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("wait: %w", err)
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// runtime calls the runtime. Its error is what the runtime logged.
func (c *container) runtime(args ...string) error {
	global := []string{"--root", c.path("state"), "--log", c.path("log"), "--log-format", "json"}
	if c.Rootless {
		switch filepath.Base(c.Runtime) {
		case "crun":
			if !limited(c.Spec.Linux.Resources) {
				global = append(global, "--cgroup-manager=disabled")
			}
		case "runsc":
			global = append(global, "--rootless", "--ignore-cgroups")
		}
	}
	cmd := exec.Command(c.Runtime, append(global, args...)...)
	cmd.Dir = c.Dir // the path of the console socket may be too long for an address
	if args[0] == "create" {
		// What the process is to have. The runtime also writes its errors
		// there.
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	c.mu.Lock()
	if c.killed {
		c.mu.Unlock()
		return errors.New("killed")
	}
	err := cmd.Start()
	if err == nil {
		c.cmd = cmd.Process
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	err = cmd.Wait()
	c.mu.Lock()
	c.cmd = nil
	c.mu.Unlock()
	if err == nil {
		return nil
	}
	if said := c.logged(); said != "" {
		return errors.New(said)
	}
	return fmt.Errorf("%s: %w", args[0], err)
}

// logged is the last error in the runtime's log.
func (c *container) logged() string {
	data, err := os.ReadFile(c.path("log"))
	if err != nil {
		return ""
	}
	last := ""
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(sc.Bytes(), &entry) == nil && entry.Level == "error" {
			last = entry.Msg
		}
	}
	return last
}

// limited says whether r asks for limits.
func limited(r *specs.LinuxResources) bool {
	return r != nil && (r.Memory != nil || r.CPU != nil || r.Pids != nil || len(r.Unified) > 0)
}

// aboutProgram says whether a runtime's message means that the program can't be
// executed, and why.
func aboutProgram(text string) (bool, unix.Errno) {
	lower := strings.ToLower(text)
	if !strings.Contains(lower, "exec: ") && !strings.Contains(lower, "executable") {
		return false, 0
	}
	switch {
	case strings.Contains(lower, "permission denied"):
		return true, unix.EACCES
	case strings.Contains(lower, "exec format error"):
		return true, unix.ENOEXEC
	case strings.Contains(lower, "not found"), strings.Contains(lower, "no such file"):
		return true, unix.ENOENT
	}
	return false, 0
}

// mount makes the bundle.
func (c *container) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("strake", c.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711"); err != nil {
		return fmt.Errorf("mount bundle: %w", err)
	}
	r := c.Spec.Linux.Resources
	devices := false
	if r != nil {
		for _, d := range r.Devices {
			devices = devices || d.Allow && d.Major == nil && d.Minor == nil
		}
	}
	root := sandbox.TreeMount{Root: c.Root, Source: "/", Target: c.path("rootfs")}
	if err := linux.MountTree(root, c.Rootless, devices); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	// Some versions of runc make links in /dev of the host if the image's is a
	// symlink.
	for _, name := range []string{"proc", "sys", "dev"} {
		if st, err := os.Lstat(filepath.Join(root.Target, name)); err == nil && !st.IsDir() {
			return fmt.Errorf("mount /%s: it is not a directory in the image", name)
		}
	}
	c.Spec.Root = &specs.Root{Path: c.path("rootfs"), Readonly: c.Spec.Root != nil && c.Spec.Root.Readonly}
	for i, t := range c.Trees {
		source := t
		source.Target = c.path("tree" + strconv.Itoa(i))
		if err := linux.MountTree(source, c.Rootless, devices); err != nil {
			return fmt.Errorf("mount %s: %w", t.Target, err)
		}
		c.bind(source.Target, t.Target, t.Readonly)
	}
	for i, f := range c.Files {
		name := c.path("file" + strconv.Itoa(i))
		err := errors.Join(os.WriteFile(name, f.Data, 0o600), os.Chown(name, f.UID, f.GID), os.Chmod(name, os.FileMode(f.Mode&0o777)))
		if err != nil {
			return fmt.Errorf("mount %s: %w", f.Path, err)
		}
		c.bind(name, f.Path, true)
	}
	if c.NetNS >= 0 {
		name := c.path("netns")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(c.NetNS), name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		for i, ns := range c.Spec.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				c.Spec.Linux.Namespaces[i].Path = name
			}
		}
	}
	switch {
	case c.Rootless && !limited(c.Spec.Linux.Resources):
		// With a path runc insists on making cgroups.
		c.Spec.Linux.CgroupsPath = ""
	case c.Spec.Linux.CgroupsPath == "":
		c.Spec.Linux.CgroupsPath = "/strake/" + c.id
	default:
		c.Spec.Linux.CgroupsPath = filepath.Join(filepath.Dir(c.Spec.Linux.CgroupsPath), c.id)
	}
	data, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("config.json"), data, 0o600)
}

func (c *container) bind(source, target string, readonly bool) {
	options := []string{"rbind", "rprivate", "nodev"}
	if readonly {
		options = append(options, "ro")
	}
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: target, Type: "bind", Source: source, Options: options})
}

// console listens for the terminal that the runtime makes.
func (c *container) console() (*net.UnixListener, error) {
	dir, err := os.Open(c.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	address := fmt.Sprintf("/proc/self/fd/%d/console", dir.Fd())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err == nil {
		l.SetUnlinkOnClose(false)
	}
	return l, err
}

// passTerminal receives the terminal's master and sends it on.
func passTerminal(l *net.UnixListener) error {
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	defer conn.Close()
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return errors.New("the runtime sent no terminal")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return errors.New("the runtime sent no terminal")
	}
	defer unix.Close(fds[0])
	return wire.Send(4, report{Master: true}, fds[0])
}
