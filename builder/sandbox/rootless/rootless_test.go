package rootless

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// childEnv makes the test program enter and then do what its value says.
const childEnv = "ROOTLESS_TEST_CHILD"

func TestMain(m *testing.M) {
	what := os.Getenv(childEnv)
	if what == "" {
		os.Exit(m.Run())
	}
	mode, err := Enter()
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(99)
	}
	if err := child(what, mode); err != nil {
		fmt.Println("error:", err)
		os.Exit(98)
	}
	os.Exit(42)
}

func child(what string, mode Mode) error {
	switch what {
	case "report":
		_, marked := os.LookupEnv(marker)
		_, parented := os.LookupEnv(parent)
		fmt.Printf("%+v uid %d inside %d marked %v\n", mode, UID(), os.Getuid(), marked || parented)
	case "mount":
		dir, err := os.MkdirTemp("", "")
		if err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
			return err
		}
		fmt.Println("mounted", dir)
	case "signal":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM)
		fmt.Println("ready", os.Getpid())
		fmt.Println("got", <-signals)
	case "sleep":
		fmt.Println("ready", os.Getpid())
		time.Sleep(time.Hour)
	case "die":
		return unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	return nil
}

const nobody = 65534

// as prepares to run this program as nobody.
func as(t *testing.T, what string, env ...string) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can become another user")
	}
	dir, err := os.MkdirTemp("/tmp", "rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err == nil {
		// A process that another test starts meanwhile would have the file open
		// for writing, and the program would be busy.
		syscall.ForkLock.RLock()
		err = os.WriteFile(filepath.Join(dir, "test"), data, 0o755)
		syscall.ForkLock.RUnlock()
	}
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"))
	cmd.Env = append(append(os.Environ(), childEnv+"="+what, "TMPDIR="+dir), env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

func code(err error) int {
	if ee, ok := err.(*exec.ExitError); ok {
		return ee.ExitCode()
	}
	return 0
}

func TestEnter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		what string
		env  string
		exit int
		want string // in the output
	}{
		{"report", "", 42, "uid 65534 inside 0 marked false"},
		{"report", "", 42, "{Rootless:true SingleID:true Reason:/etc/subuid has no range for user nobody}"},
		{"mount", "", 42, "mounted /tmp/rootless-"},
		{"die", "", 137, ""},
		// The environment makes nobody root.
		{"report", marker + "=" + mapped, 99, "error: this system gives no privileges"},
		{"report", marker + "=77", 99, "error: the parent process is gone"},
		{"report", marker + "=x", 99, "error: the environment has a bad " + marker},
	} {
		t.Run(tt.what+" "+tt.env, func(t *testing.T) {
			t.Parallel()
			out, err := as(t, tt.what, tt.env).Output()
			if strings.Contains(string(out), "make a user namespace") {
				t.Skipf("SKIPPED: %s", out)
			}
			if got := code(err); got != tt.exit || !strings.Contains(string(out), tt.want) {
				t.Errorf("exit %d, want %d; output %q, want %q in it", got, tt.exit, out, tt.want)
			}
		})
	}
}

// start runs a child until it has said its pid.
func start(t *testing.T, what string) (cmd *exec.Cmd, pid int, out *bufio.Reader) {
	t.Helper()
	cmd = as(t, what)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	out = bufio.NewReader(pipe)
	line, err := out.ReadString('\n')
	if _, serr := fmt.Sscanf(line, "ready %d", &pid); serr != nil {
		t.Skipf("SKIPPED: got %q, error %v", line, err)
	}
	return cmd, pid, out
}

func TestSignalsAreForwarded(t *testing.T) {
	t.Parallel()
	cmd, pid, out := start(t, "signal")
	if pid == cmd.Process.Pid {
		t.Fatal("there is no child")
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(out)
	if err != nil || string(rest) != "got terminated\n" {
		t.Errorf("got %q, error %v", rest, err)
	}
	if got := code(cmd.Wait()); got != 42 {
		t.Errorf("exit %d", got)
	}
}

func TestChildDiesWithParent(t *testing.T) {
	t.Parallel()
	cmd, pid, out := start(t, "sleep")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The child has the pipe too: its end is the end of both.
	if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
		t.Errorf("got %q, error %v", rest, err)
	}
	_ = cmd.Wait()
	if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(state) > 0 {
		t.Errorf("process %d is left: %q", pid, state)
	}
}

func TestRootStays(t *testing.T) {
	t.Parallel()
	if able, err := capable(); err != nil || !able {
		t.Skip("SKIPPED: not root")
	}
	mode, err := current()
	if err != nil {
		t.Fatal(err)
	}
	uids, err := readMap("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if mode.Rootless == initial(uids) {
		t.Errorf("mode %+v with map %v", mode, uids)
	}
}

func TestParseSubids(t *testing.T) {
	t.Parallel()
	const file = "# comment\nalice:100000:65536\nbob:1:0\n\n1000:300000:10\nalice:x:5\nalice:500000:7\nalicex:1:1\n:::\nalice:1:99999999999\n"
	for _, tt := range []struct {
		users []string
		want  []idRange
	}{
		{[]string{"1000", "alice"}, []idRange{{outside: 100000, count: 65536}, {outside: 300000, count: 10}, {outside: 500000, count: 7}}},
		{[]string{"1001", "bob"}, nil},
		{[]string{"1002"}, nil},
	} {
		got, err := parseSubids(strings.NewReader(file), tt.users)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(idRange{})); diff != "" || err != nil {
			t.Errorf("%v: error %v (-want +got)\n%s", tt.users, err, diff)
		}
	}
}

func TestMapArgs(t *testing.T) {
	t.Parallel()
	got := strings.Join(mapArgs(7, 1000, []idRange{{outside: 100000, count: 65536}, {outside: 300000, count: 10}}), " ")
	if want := "7 0 1000 1 1 100000 65536 65537 300000 10"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
