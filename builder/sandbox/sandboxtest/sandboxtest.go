// Package sandboxtest is the suite that runners of sandboxes pass.
//
// It runs busybox and a small helper of its own in roots made for it, and so
// needs a static /bin/busybox and a Go command; it skips without.
package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

// Options says what the runner is like.
type Options struct {
	Rootless bool // we are in a user namespace
	SingleID bool // with a single id
	// OCI: an OCI runtime runs the processes. Its device nodes can be opened
	// as its device cgroup says, and its messages are its own.
	OCI bool
}

// suite is a runner under test and what is run in it.
type suite struct {
	Options
	runner sandbox.Runner
	lower  string // a root with busybox and the helper
}

// Run runs the suite.
func Run(t *testing.T, r sandbox.Runner, o Options) {
	s := &suite{Options: o, runner: r, lower: base(t)}
	for _, c := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"exit codes", exitCodes},
		{"output", output},
		{"input", input},
		{"environment", environment},
		{"user", users},
		{"missing program", missingProgram},
		{"privileges", privileges},
		{"system calls", systemCalls},
		{"privileged", privileged},
		{"proc", procPaths},
		{"devices", devices},
		{"network", networkNone},
		{"joined network", networkJoined},
		{"read-only root", readonlyRoot},
		{"bind mounts", bindMounts},
		{"tmpfs", tmpfs},
		{"files", files},
		{"trees", trees},
		{"mount points behind symlinks", hostileRoot},
		{"many layers", manyLayers},
		{"setuid", setuid},
		{"limits", limits},
		{"memory limit", memoryLimit},
		{"cancel", cancel},
		{"daemons", daemons},
		{"signals", signals},
		{"terminal", terminal},
		{"scripts that name us", selfExe},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, s)
		})
	}
}

// Works runs a program and returns the runner's error.
func Works(t testing.TB, r sandbox.Runner, rootless bool) error {
	t.Helper()
	s := &suite{Options: Options{Rootless: rootless}, runner: r, lower: base(t)}
	return s.try(t.Context(), t, run{config: sandbox.Config{Args: []string{"true"}}}).err
}

// HelperEnv is the environment variable with the path of a helper that was
// built already, for users who can't build.
const HelperEnv = "SANDBOXTEST_HELPER"

// Helper builds the helper and returns its path.
func Helper(t testing.TB) string {
	t.Helper()
	if bin := os.Getenv(HelperEnv); bin != "" {
		return bin
	}
	bin := filepath.Join(t.TempDir(), "helper")
	cmd := exec.Command("go", "build", "-o", bin, "github.com/strake-build/strake/builder/sandbox/sandboxtest/helper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: the helper can't be built: %v\n%s", err, out)
	}
	return bin
}

func base(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "base")
	Base(t, dir)
	return dir
}

// Base makes a root with busybox and the helper in a new directory.
func Base(t testing.TB, dir string) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	for _, d := range []string{"bin", "etc", "tmp", "usr", "home"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky))
	must(t, os.Symlink("../bin", filepath.Join(dir, "usr/bin")))
	if err := copyFile("/bin/busybox", filepath.Join(dir, "bin/busybox"), 0o755); err != nil {
		t.Skipf("SKIPPED: no static /bin/busybox: %v", err)
	}
	for _, name := range []string{"sh", "cat", "echo", "ls", "id", "true", "false", "sleep", "mount", "hostname", "pwd", "env", "ps", "ip", "touch", "mkdir", "dd", "df", "stat", "tty", "wc", "kill", "setsid", "rm", "test", "chmod", "stty", "head"} {
		must(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	must(t, copyFile(Helper(t), filepath.Join(dir, "bin/helper"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644))
}

func copyFile(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(to, data, mode), os.Chmod(to, mode))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// root makes a writable root on the base and more layers.
func (s *suite) root(t testing.TB, more ...string) sandbox.Root {
	t.Helper()
	dir := t.TempDir()
	r := sandbox.Root{
		Lower: append([]string{s.lower}, more...),
		Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
		UserXattr: s.Rootless,
	}
	must(t, os.Mkdir(r.Upper, 0o755))
	must(t, os.Mkdir(r.Work, 0o755))
	return r
}

// layer makes a layer of files.
func layer(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for name, content := range files {
		name = filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(name), 0o755))
		if link, ok := strings.CutPrefix(content, "-> "); ok {
			must(t, os.Symlink(link, name))
			continue
		}
		must(t, os.WriteFile(name, []byte(content), 0o755))
	}
	return dir
}

// result is how a process ended.
type result struct {
	exit   int
	stdout string
	stderr string
	err    error
	root   sandbox.Root
}

// run is a process to be run.
type run struct {
	config  sandbox.Config
	process sandbox.Process
	spec    func(*specs.Spec)
}

func sh(script string) run { return run{config: sandbox.Config{Args: []string{"sh", "-c", script}}} }

func (s *suite) try(ctx context.Context, t testing.TB, r run) result {
	t.Helper()
	r.config.Rootless = s.Rootless
	spec, err := sandbox.New(r.config)
	must(t, err)
	if r.spec != nil {
		r.spec(spec)
	}
	var stdout, stderr bytes.Buffer
	p := r.process
	p.Spec = spec
	if p.Root.Lower == nil && p.Root.Bind == "" {
		p.Root = s.root(t)
	}
	if p.Terminal == nil {
		if p.Stdout == nil {
			p.Stdout = &stdout
		}
		if p.Stderr == nil {
			p.Stderr = &stderr
		}
	}
	exit, err := s.runner.Run(ctx, p)
	return result{exit, stdout.String(), stderr.String(), err, p.Root}
}

// ok runs a process that has to succeed and returns its output.
func (s *suite) ok(t testing.TB, r run) string {
	t.Helper()
	res := s.try(t.Context(), t, r)
	if res.err != nil || res.exit != 0 {
		t.Fatalf("%q: exit %d, error %v\n%s%s", r.config.Args, res.exit, res.err, res.stdout, res.stderr)
	}
	return res.stdout
}

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Errorf("%s: got %q, want %q", what, strings.TrimSpace(got), want)
	}
}

// report is what the helper reports; see there.
type report struct {
	UID, EUID, GID, EGID int
	Groups               []int
	Status               map[string]string
	FDs                  []string
	Terminal             bool
	PID, Session         int
	Files                unix.Rlimit
	Umask                int
}

func (s *suite) report(t testing.TB, r run) report {
	t.Helper()
	if r.config.Args == nil {
		r.config.Args = []string{"helper", "report"}
	}
	var rep report
	must(t, json.Unmarshal([]byte(s.ok(t, r)), &rep))
	return rep
}

// waitFor waits until a line comes from r, or the process fails.
func waitFor(t testing.TB, r io.Reader, done <-chan result) string {
	t.Helper()
	line := make(chan string, 1)
	go func() {
		var b []byte
		var c [1]byte
		for {
			if _, err := r.Read(c[:]); err != nil || c[0] == '\n' {
				line <- string(b)
				return
			}
			b = append(b, c[0])
		}
	}()
	select {
	case l := <-line:
		return l
	case res := <-done:
		t.Fatalf("exit %d, error %v", res.exit, res.err)
		return ""
	case <-time.After(time.Minute):
		t.Fatal("no output")
		return ""
	}
}

// Benchmark measures one process that does nothing, as a step has it: New, an
// overlay, a network namespace.
func Benchmark(b *testing.B, r sandbox.Runner, o Options) {
	s := &suite{Options: o, runner: r, lower: base(b)}
	dir := b.TempDir()
	i := 0
	for b.Loop() {
		i++
		root := sandbox.Root{Lower: []string{s.lower}, Upper: fmt.Sprintf("%s/%d/u", dir, i), Work: fmt.Sprintf("%s/%d/w", dir, i), UserXattr: s.Rootless}
		must(b, os.MkdirAll(root.Upper, 0o755))
		must(b, os.MkdirAll(root.Work, 0o755))
		s.ok(b, run{config: sandbox.Config{Args: []string{"/bin/true"}}, process: sandbox.Process{Root: root}})
	}
}
