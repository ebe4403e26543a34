// Command helper runs inside of sandboxes under test and tells what it sees.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Report is what "helper report" prints.
type Report struct {
	UID, EUID, GID, EGID int
	Groups               []int
	Status               map[string]string // of /proc/self/status
	FDs                  []string          // numbers of open descriptors
	Terminal             bool              // there is a controlling terminal
	PID, Session         int
	Files                unix.Rlimit
	Umask                int
}

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	switch os.Args[1] {
	case "report":
		report()
	case "try":
		try()
	case "clear-pdeathsig":
		// Becomes something that no longer dies with its parent, and execs.
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(unix.Exec(os.Args[2], os.Args[2:], os.Environ()))
		os.Exit(1)
	case "write-self":
		f, err := os.OpenFile("/proc/self/exe", os.O_WRONLY, 0)
		if err == nil {
			_ = f.Close()
		}
		fmt.Println(err)
	}
}

func report() {
	r := Report{UID: os.Getuid(), EUID: os.Geteuid(), GID: os.Getgid(), EGID: os.Getegid(), PID: os.Getpid(), Status: map[string]string{}}
	r.Groups, _ = os.Getgroups()
	r.Session, _ = unix.Getsid(0)
	// Descriptors are tried one by one: listing them would open one, and Go
	// opens some for itself, with close-on-exec.
	for fd := range 1024 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			r.FDs = append(r.FDs, fmt.Sprint(fd))
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			r.Status[k] = strings.TrimSpace(v)
		}
	}
	if tty, err := os.Open("/dev/tty"); err == nil {
		r.Terminal = true
		_ = tty.Close()
	}
	r.Umask = unix.Umask(0)
	_ = unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &r.Files)
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

// try makes system calls that a sandbox forbids and prints how they ended.
func try() {
	results := map[string]string{}
	note := func(name string, err error) {
		results[name] = "ok"
		if err != nil {
			if e, ok := err.(unix.Errno); ok {
				results[name] = unix.ErrnoName(e)
			} else {
				results[name] = err.Error()
			}
		}
	}
	note("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	note("mount", unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""))
	_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	note("keyctl", err)
	_, _, errno := unix.RawSyscall(unix.SYS_BPF, 0, 0, 0)
	note("bpf", errno)
	_, _, errno = unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	note("clone3", errno)
	note("setns", unix.Setns(0, 0))
	note("mknod", unix.Mknod("/tmp/node", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	_, err = unix.Open("/tmp/node", unix.O_RDONLY, 0)
	note("open node", err)
	note("mknod null", unix.Mknod("/dev/null2", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	_, err = unix.Open("/dev/null2", unix.O_RDONLY, 0)
	note("open null", err)
	note("sysctl", os.WriteFile("/proc/sys/kernel/domainname", []byte("x"), 0))
	note("sysfs", os.WriteFile("/sys/kernel/uevent_helper", []byte("x"), 0))
	_, err = unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, []byte("12345678")), 0)
	note("open_by_handle_at", err)
	note("chroot", unix.Chroot("/"))
	note("chown", unix.Chown("/tmp", 0, 0))
	_ = json.NewEncoder(os.Stdout).Encode(results)
}
