package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

// TestProcessesShareAStore starts eight builds of one file at once: each step
// runs once.
func TestProcessesShareAStore(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	host := testbed.NewRegistry(t)
	base := testbed.Busybox(t, host)
	var df strings.Builder
	fmt.Fprintf(&df, "FROM %s\nCOPY a.txt /\n", base)
	const steps = 4
	for i := range steps {
		fmt.Fprintf(&df, "RUN echo ran-step-%d; sleep 0.2\n", i)
	}
	context := testbed.Write(t, map[string]string{"Dockerfile": df.String(), "a.txt": "a"})
	s := testbed.NewStore(t)
	outputs := make([]string, 8)
	testbed.InParallel(len(outputs), func(i int) {
		out, err := s.Command("build", "--progress", "plain", "-t", fmt.Sprint("app", i), context).CombinedOutput()
		outputs[i] = string(out)
		if err != nil {
			t.Errorf("build %d: %v\n%s", i, err, out)
		}
	})
	all := strings.Join(outputs, "\n")
	for i := range steps {
		// The line that the step printed, not the command in its name.
		ran := 0
		for line := range strings.Lines(all) {
			if strings.HasSuffix(strings.TrimSpace(line), fmt.Sprintf(" ran-step-%d", i)) {
				ran++
			}
		}
		if ran != 1 {
			t.Errorf("step %d ran %d times:\n%s", i, ran, all)
		}
	}
	ids := map[string]bool{}
	for i := range outputs {
		id, _ := s.Run("images", "-q", "--no-trunc", fmt.Sprint("app", i))
		ids[strings.TrimSpace(id)] = true
	}
	if len(ids) != 1 {
		t.Errorf("images differ: %v", ids)
	}
}

// TestKilledInRun kills strake with SIGKILL while a step runs: nothing of the
// step lives on, and the next build works.
func TestKilledInRun(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	host := testbed.NewRegistry(t)
	marker := fmt.Sprint(7000 + rand.IntN(900)) // tells our sleep from others
	context := testbed.Write(t, map[string]string{"Dockerfile": "FROM " + testbed.Busybox(t, host) + "\nRUN echo one > /one\nRUN (sleep " + marker + " &) ; echo started; test -e /skip || sleep " + marker + "\n"})
	s := testbed.NewStore(t)
	cmd := s.Command("build", "--progress", "plain", context)
	var out testbed.SyncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testbed.Eventually(t, "the step's output", func() bool { return strings.Contains(out.String(), " started\n") })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	testbed.Eventually(t, "the end of the step's processes", func() bool {
		ps, _ := exec.Command("ps", "ax", "-o", "args").Output()
		return !strings.Contains(string(ps), "sleep "+marker)
	})
	s.NoLeaks()
	df := "FROM " + host + "/busybox:latest\nRUN echo one > /one\nRUN cat /one\n"
	if err := os.WriteFile(context+"/Dockerfile", []byte(df), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr := s.Run("build", "--progress", "plain", context)
	if ran, cached := testbed.RanSteps(stderr, "RUN echo one"); ran != 0 || cached != 1 {
		t.Errorf("what was finished before the kill ran again:\n%s", stderr)
	}
	if out, _ := s.Run("check"); strings.Contains(out, "error") {
		t.Errorf("check: %s", out)
	}
	entries, err := os.ReadDir(s.Root + "/tmp")
	if err == nil && len(entries) > 0 {
		t.Errorf("temporary files left: %v", entries)
	}
}

// TestInterrupted stops a build as Ctrl-C does.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	host := testbed.NewRegistry(t)
	context := testbed.Write(t, map[string]string{"Dockerfile": "FROM " + testbed.Busybox(t, host) + "\nRUN echo started; sleep 1000\n"})
	s := testbed.NewStore(t)
	cmd := s.Command("build", "--progress", "plain", "-o", "type=oci,dest="+context+"/out.tar", context)
	var out testbed.SyncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testbed.Eventually(t, "the step's output", func() bool { return strings.Contains(out.String(), " started\n") })
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130\n%s", code, out.String())
	}
	if _, err := os.Stat(context + "/out.tar"); err == nil {
		t.Error("a half-written archive was left")
	}
}
