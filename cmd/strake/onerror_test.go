package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/strake-build/strake/internal/testbed"
)

// TestShellOnError answers a failing step from a terminal.
func TestShellOnError(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	base := testbed.Busybox(t, testbed.NewRegistry(t))
	dir := filepath.Join(t.TempDir(), "ctx")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+base+`
ENV COLOUR=blue
WORKDIR /work
RUN --mount=type=cache,target=/cache echo cached > /cache/c; echo half > done; exit 7
`), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(strakeLink(t), "build", "--progress", "plain", "--on-error", "shell", ".")
	cmd.Args[0] = "strake"
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "STRAKE_ROOT="+dir+".store", "TERM=xterm")
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 200})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	wait := func(text string) {
		t.Helper()
		buf := make([]byte, 4096)
		_ = f.SetReadDeadline(time.Now().Add(2 * time.Minute))
		for !strings.Contains(out.String(), text) {
			n, err := f.Read(buf)
			out.Write(buf[:n])
			if err != nil {
				t.Fatalf("%q never comes (%v):\n%s", text, err, &out)
			}
		}
	}
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(f, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	wait("A shell where the step failed")
	wait("/work #")
	say(`echo "is $(cat done) $COLOUR $(cat /cache/c) $(tty)"`)
	wait("is half blue cached /dev/")
	say("exit")
	_ = f.SetReadDeadline(time.Time{})
	_, _ = io.Copy(&out, f) // ends with EIO
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("strake ends with %v, want code 1:\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "exit code: 7") {
		t.Errorf("the failure is not told:\n%s", &out)
	}
}

// Without a terminal there is nobody to talk to.
func TestShellOnErrorNeedsATerminal(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(strakeLink(t), "build", "--on-error", "shell", ".")
	cmd.Args[0] = "strake"
	cmd.Env = append(os.Environ(), "STRAKE_ROOT="+t.TempDir())
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitUsage || !bytes.Contains(out, []byte("needs a terminal")) {
		t.Errorf("%v:\n%s", err, out)
	}
}
