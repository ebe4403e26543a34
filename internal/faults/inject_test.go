package faults

import (
	"fmt"
	"log"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A command is disturbed at one of its system calls by seccomp's notifications:
// the test program, started again in the place of strake, installs a filter that
// has the kernel ask us before each call of a class, hands over the descriptor by
// which it asks, and executes strake. We count the calls of all its processes and
// threads. Nothing else is slowed down, and nothing but the kernel is needed.

// call is a system call whose argument flagArg has the bits of flag.
type call struct {
	nr      int
	flagArg int
	flag    uint32
}

func calls(nrs ...int) (list []call) {
	for _, nr := range nrs {
		list = append(list, call{nr: nr})
	}
	return list
}

// classes are kinds of system calls.
var classes = map[string][]call{
	"rename": calls(unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2),
	"sync":   calls(unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNCFS, unix.SYS_SYNC_FILE_RANGE),
	"link":   calls(unix.SYS_LINK, unix.SYS_LINKAT, unix.SYS_SYMLINK, unix.SYS_SYMLINKAT),
	"mount": calls(unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_MOVE_MOUNT,
		unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR, unix.SYS_PIVOT_ROOT),
	"unlink": calls(unix.SYS_UNLINK, unix.SYS_UNLINKAT, unix.SYS_RMDIR),
	"mkdir":  calls(unix.SYS_MKDIR, unix.SYS_MKDIRAT, unix.SYS_MKNOD, unix.SYS_MKNODAT),
	"create": {{unix.SYS_OPENAT, 2, unix.O_CREAT}, {unix.SYS_OPEN, 1, unix.O_CREAT}},
	"open":   calls(unix.SYS_OPENAT, unix.SYS_OPENAT2),
	"write":  calls(unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE, unix.SYS_FTRUNCATE),
	"read":   calls(unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_GETDENTS64),
	"lock":   calls(unix.SYS_FLOCK),
	"attribute": calls(unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_LCHOWN, unix.SYS_SETXATTR,
		unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_UTIMENSAT),
	"process": calls(unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_VFORK, unix.SYS_EXECVE, unix.SYS_UNSHARE, unix.SYS_SETNS),
}

// ofFiles are the classes of calls that count only for files of the point's: they
// have a descriptor as argument 0, copy_file_range as argument 2.
var ofFiles = []string{"write", "read", "sync"}

// injection disturbs a command at its n-th call of a class, from 1. It is
// killed with SIGKILL before the call, unless there is something else to be done.
type injection struct {
	class string
	n     int
	// errno is what the call fails with instead, and not only this one if all
	// is set.
	errno syscall.Errno
	all   bool
	// short writes half of what the call wants written.
	short bool
	// act is called instead, and then the call is made.
	act func()
}

// launch tells the test program to start as one whose calls are watched: the
// class of calls, for strake is what its arguments say.
const launch = "STRAKE_FAULTS_LAUNCH"

// launchIfAsked becomes strake with a filter that watches calls. The socket that
// gets the filter's descriptor is descriptor 3.
func launchIfAsked() {
	class := os.Getenv(launch)
	if class == "" {
		return
	}
	os.Unsetenv(launch)
	runtime.LockOSThread()
	fd, err := installFilter(classes[class])
	if err == nil {
		err = unix.Sendmsg(3, []byte{0}, unix.UnixRights(fd), nil, 0)
	}
	if err == nil {
		unix.CloseOnExec(3)
		err = syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
	}
	log.Fatal(err)
}

// installFilter has the kernel ask by the descriptor that it returns before this
// thread, or what comes of it, makes one of the calls.
func installFilter(list []call) (int, error) {
	const (
		offsetNr   = 0
		offsetArgs = 16
	)
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(how uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	var prog []unix.SockFilter
	for _, c := range list {
		prog = append(prog, load(offsetNr))
		if c.flag == 0 {
			prog = append(prog, jump(unix.BPF_JEQ, uint32(c.nr), 0, 1), ret(unix.SECCOMP_RET_USER_NOTIF))
			continue
		}
		prog = append(prog, jump(unix.BPF_JEQ, uint32(c.nr), 0, 3), load(offsetArgs+8*uint32(c.flagArg)),
			jump(unix.BPF_JSET, c.flag, 0, 1), ret(unix.SECCOMP_RET_USER_NOTIF))
	}
	prog = append(prog, ret(unix.SECCOMP_RET_ALLOW))
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	// Signals, which Go's scheduler sends to its threads, must not make a call
	// that was asked for begin again: it would be counted twice.
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return 0, fmt.Errorf("seccomp: %w", errno)
	}
	return int(fd), nil
}

// disturbed runs a command with an injection.
func (b *bed) disturbed(in injection, args ...string) result {
	b.Helper()
	run, hits := b.watched(in, args...)
	r := run.wait()
	r.hits = <-hits
	return r
}

// watched starts a command with an injection. The channel gets how many calls of
// the class it has made.
func (b *bed) watched(in injection, args ...string) (*running, <-chan int) {
	b.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	b.must(err)
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	cmd := b.s.Command(args...)
	cmd.Path = "/proc/self/exe"
	cmd.Args = append([]string{os.Args[0]}, cmd.Args...)
	cmd.Env = append(cmd.Env, launch+"="+in.class)
	cmd.ExtraFiles = []*os.File{theirs}
	run := b.start(cmd)
	theirs.Close()
	defer unix.Close(pair[0])
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, 0)
	b.must(err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	b.must(err)
	if len(messages) == 0 {
		b.Fatalf("no filter: %v", run.wait())
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	b.must(err)
	hits := make(chan int, 1)
	w := &watcher{injection: in, dir: b.dir, pid: cmd.Process.Pid, fd: fds[0]}
	go func() {
		if err := w.run(); err != nil {
			b.Errorf("watch system calls: %v", err)
		}
		hits <- w.hits
	}()
	return run, hits
}

// watcher answers the kernel's questions.
type watcher struct {
	injection
	dir  string // of the files that count
	pid  int    // of the command
	fd   int
	hits int
}

// notification is struct seccomp_notif.
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// run answers until nobody is left who could ask.
func (w *watcher) run() error {
	defer unix.Close(w.fd)
	for {
		poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
			return err
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents != 0 {
				return nil
			}
			continue
		}
		var n notification
		if err := w.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil {
			continue // the one who asked was killed meanwhile
		}
		a := w.answer(n)
		// It may have been killed since.
		_ = w.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a))
	}
}

func (w *watcher) ioctl(request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func (w *watcher) answer(n notification) answer {
	pass := answer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if slices.Contains(ofFiles, w.class) && !w.ours(n) {
		return pass
	}
	w.hits++
	if w.n == 0 || w.hits < w.n || w.hits > w.n && !w.all {
		return pass
	}
	switch {
	case w.act != nil:
		w.act()
		return pass
	case w.short:
		return w.writeHalf(n, pass)
	case w.errno != 0:
		return answer{id: n.id, errno: -int32(w.errno)}
	}
	_ = unix.Kill(w.pid, unix.SIGKILL)
	return answer{id: n.id, errno: -int32(unix.EINTR)}
}

// fileArg is the argument that is the descriptor of what is written to or read.
func (n notification) fileArg() int {
	if n.nr == unix.SYS_COPY_FILE_RANGE {
		return int(int32(n.args[2]))
	}
	return int(int32(n.args[0]))
}

// ours reports whether the file of the call is one of the point's.
func (w *watcher) ours(n notification) bool {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, n.fileArg()))
	return err == nil && strings.HasPrefix(name, w.dir+"/")
}

// writeHalf does half of a write in the place of the caller.
func (w *watcher) writeHalf(n notification, pass answer) answer {
	if n.nr != unix.SYS_WRITE && n.nr != unix.SYS_PWRITE64 || n.args[2] < 2 {
		w.hits-- // the next one, then
		return pass
	}
	fd, err := descriptorOf(int(n.pid), n.fileArg())
	if err != nil {
		return pass
	}
	defer unix.Close(fd)
	data := make([]byte, n.args[2]/2)
	if _, err := unix.ProcessVMReadv(int(n.pid), []unix.Iovec{{Base: &data[0], Len: uint64(len(data))}}, []unix.RemoteIovec{{Base: uintptr(n.args[1]), Len: len(data)}}, 0); err != nil {
		return pass
	}
	var wrote int
	if n.nr == unix.SYS_WRITE {
		wrote, err = unix.Write(fd, data)
	} else {
		wrote, err = unix.Pwrite(fd, data, int64(n.args[3]))
	}
	if err != nil {
		return answer{id: n.id, errno: -int32(err.(syscall.Errno))}
	}
	return answer{id: n.id, val: int64(wrote)}
}

// descriptorOf duplicates a descriptor of another process's thread.
func descriptorOf(tid, fd int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, err
	}
	pid := tid
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "Tgid:"); ok {
			pid, err = strconv.Atoi(strings.TrimSpace(text))
		}
	}
	if err != nil {
		return 0, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// count runs the command of a phase undisturbed and counts its calls of a class.
func (l *lab) count(p phase, class string) int {
	l.Helper()
	return lazily(l, l.counts, p.name+" "+class, func() int {
		b := newBed(l.T, l)
		p.begin(b)
		r := b.disturbed(injection{class: class}, p.args(b)...)
		if r.code != 0 {
			l.Fatalf("undisturbed: %v", r)
		}
		return r.hits
	})
}
