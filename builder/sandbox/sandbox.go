// Package sandbox runs one process in isolation.
//
// A Process is an OCI runtime-spec configuration and the mounts that make its
// root file system. Runners take it: package linux starts it directly, package
// oci hands it to runc, crun or another OCI runtime. Both give the level of
// isolation of Docker's default, see New.
//
// A runner leaves nothing behind: when Run returns, or the calling process is
// killed, every process, mount and cgroup of the sandbox is gone.
package sandbox

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Runner runs processes. Implementations pass package sandboxtest's suite.
type Runner interface {
	// Name is the runner's name: "linux", or the OCI runtime's.
	Name() string
	// Run runs p to its end and returns its exit code (128+n if signal n
	// ended it). The error is about the sandbox, such as a program that is
	// not in the root; the process's own failure is an exit code. When ctx
	// ends every process in the sandbox is killed and Run returns the
	// context's cause.
	Run(ctx context.Context, p Process) (exit int, err error)
}

// Process is a process to be run.
type Process struct {
	// Spec is the runtime-spec configuration; see New. Spec.Root.Path is not
	// used.
	Spec *specs.Spec
	// Root makes the root file system, in the sandbox's own mount namespace.
	Root Root
	// NetNS is an open network namespace for the process to enter; nil: a
	// new one with only loopback if the Spec has a network namespace, else
	// the caller's.
	NetNS *os.File
	// Files are put on a tmpfs of the sandbox and appear read-only at their
	// paths, after all mounts (secrets: they never touch a disk).
	Files []File
	// Trees are root file systems that appear in the sandbox besides Root,
	// after the Spec's mounts.
	Trees []TreeMount

	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer
	// Terminal is set instead of the three above to give the process a
	// terminal: the runner makes a pty, sends its master here, and the
	// receiver owns it.
	Terminal func(master *os.File)
	// Started is called once the process runs; nil is allowed. signal sends
	// it a signal.
	Started func(signal func(os.Signal) error)
}

// Root tells how to mount a root file system.
type Root struct {
	// Lower, lowest first, and Upper and Work make an overlay; without Upper
	// it is read-only.
	Lower       []string
	Upper, Work string
	UserXattr   bool
	// Bind is a directory to use instead.
	Bind string
}

// File is a small file that exists in the sandbox only.
type File struct {
	Path     string // absolute, resolved inside the root; parents are made if missing
	Data     []byte
	Mode     uint32
	UID, GID int
}

// TreeMount shows a part of a file system.
type TreeMount struct {
	Root Root
	// Source is the path in it, a directory or file, resolved inside it
	// (symlinks do not leave it).
	Source string
	// Target is where it appears; made if missing, resolved inside the root.
	Target   string
	Readonly bool
}

// Config is what New makes a runtime-spec configuration of.
type Config struct {
	Args     []string
	Env      []string
	Dir      string
	UID, GID uint32
	Groups   []uint32
	Hostname string
	// Privileged: all capabilities, no seccomp, nothing masked or read-only,
	// the host's devices.
	Privileged bool
	// HostNetwork: no network namespace of its own.
	HostNetwork bool
	Readonly    bool  // the root
	ShmSize     int64 // bytes; 0 is 64 MiB
	Terminal    bool
	// Mounts come after the standard ones (/proc, /dev, /sys, …), in order.
	// Type "bind" takes Source of the host; targets are resolved inside the
	// root and made if missing.
	Mounts      []specs.Mount
	Rlimits     []specs.POSIXRlimit
	Resources   *specs.LinuxResources
	CgroupsPath string
	Rootless    bool
}

// ExecError is the error of a Run whose program could not be started: it is
// not in the root, not executable, or not a program.
type ExecError struct {
	Path string // as it was asked for
	Err  error  // what the kernel said, such as ENOENT or EACCES
	Hint string // more about the cause, if it is known
}

func (e *ExecError) Error() string {
	s := "exec " + strconv.Quote(e.Path) + ": "
	if !strings.Contains(e.Path, "/") && errors.Is(e.Err, fs.ErrNotExist) {
		s += "executable file not found in $PATH"
	} else {
		s += e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *ExecError) Unwrap() error { return e.Err }
