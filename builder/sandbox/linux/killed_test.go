package linux_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/sandboxtest"
)

// victimEnv makes the test program run a sandbox in the directory that is its
// value, until it is killed.
const victimEnv = "LINUX_TEST_VICTIM"

// victim runs a program that has done what it can to live on: it has cleared
// its parent death signal, and so have its children, in sessions of their own.
func victim(dir string) error {
	r, err := linux.New(linux.Options{Reexec: os.Getenv("LINUX_TEST_REEXEC") != ""})
	if err != nil {
		return err
	}
	word := os.Getenv("LINUX_TEST_WORD")
	script := "trap '' TERM HUP INT; setsid helper clear-pdeathsig /bin/sleep " + word + " & echo started; exec helper clear-pdeathsig /bin/sleep " + word
	c := sandbox.Config{Args: []string{"sh", "-c", script}}
	if os.Getenv("LINUX_TEST_LIMIT") != "" {
		limit := int64(1 << 30)
		c.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	}
	spec, err := sandbox.New(c)
	if err != nil {
		return err
	}
	root := sandbox.Root{Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")}
	exit, err := r.Run(context.Background(), sandbox.Process{Spec: spec, Root: root, Stdout: os.Stdout, Stderr: os.Stderr})
	return fmt.Errorf("exit %d, error %v", exit, err)
}

// running counts processes of the host with a word in their command lines.
func running(t *testing.T, word string) int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range procs {
		if data, err := os.ReadFile(p); err == nil && strings.Contains(string(data), word) {
			n++
		}
	}
	return n
}

// eventually waits for something that the kernel does.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatalf("not in 20 seconds: %s", what)
		}
	}
}

// When the process is killed, everything in its sandboxes is.
func TestKilled(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 || sandboxtest.Lane() != "" {
		t.Skip("SKIPPED: not root")
	}
	for _, tt := range []struct{ name, reexec, limit string }{
		{"direct", "", ""}, {"reexec", "1", ""}, {"direct with limit", "", "1"}, {"reexec with limit", "1", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			sandboxtest.Base(t, filepath.Join(dir, "lower"))
			for _, d := range []string{"upper", "work"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			word := fmt.Sprintf("7%d%d", os.Getpid(), time.Now().UnixNano()%1e7)
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), victimEnv+"="+dir, "LINUX_TEST_REEXEC="+tt.reexec, "LINUX_TEST_LIMIT="+tt.limit, "LINUX_TEST_WORD="+word)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			line, _ := bufio.NewReader(out).ReadString('\n')
			if tt.limit != "" && strings.Contains(line, "cgroup") {
				t.Skipf("SKIPPED: no cgroups can be made here: %s", line)
			}
			if line != "started\n" {
				t.Fatalf("got %q", line)
			}
			eventually(t, "two processes run", func() bool { return running(t, "/bin/sleep\x00"+word) == 2 })
			pid := cmd.Process.Pid
			groups := func() []string {
				var all []string
				for _, pattern := range []string{"/sys/fs/cgroup/strake/strake-%d-*", "/sys/fs/cgroup/*/strake/strake-%d-*"} {
					dirs, err := filepath.Glob(fmt.Sprintf(pattern, pid))
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, dirs...)
				}
				return all
			}
			if (len(groups()) > 0) != (tt.limit != "") {
				t.Errorf("cgroups %v", groups())
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "no process is left", func() bool { return running(t, word) == 0 })
			eventually(t, "no cgroup is left", func() bool { return len(groups()) == 0 })
			mounts, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || strings.Contains(string(mounts), dir) {
				t.Errorf("a mount is left, error %v", err)
			}
		})
	}
}
