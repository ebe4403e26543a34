package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/creack/pty"
)

// onTerminal runs strake on a terminal and returns what was written to it.
func onTerminal(t *testing.T, dir string, env []string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	// testscript runs the program that the name says.
	cmd.Path, cmd.Args[0] = strakeLink(t), "strake"
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env, "STRAKE_ROOT="+dir+".store", "TERM=xterm")...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	_, _ = io.Copy(&out, f) // ends with EIO
	return out.String(), cmd.Wait()
}

// strakeLink makes a name for the test program by which it is strake.
func strakeLink(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "strake")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return link
}

func TestLiveView(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "ctx")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	match := func(out, pattern string, want bool) {
		t.Helper()
		if got := regexp.MustCompile(pattern).MatchString(out); got != want {
			t.Errorf("match of %q is %v in:\n%q", pattern, got, out)
		}
	}
	out, err := onTerminal(t, dir, nil, "build", "-t", "app", ".")
	if err != nil {
		t.Errorf("build: %v", err)
	}
	match(out, `\[\+\] Building \d+\.\ds \(\d/\d\) FINISHED`, true)
	match(out, `\x1b\[34m => \[1/1\] COPY Dockerfile / +0\.\ds\x1b\[0m`, true)
	match(out, ` => => naming to docker.io/library/app:latest`, true)
	match(out, `(?m)^#1`, false)

	out, err = onTerminal(t, dir, []string{"NO_COLOR=1"}, "build", ".")
	if err != nil {
		t.Errorf("build without colour: %v", err)
	}
	match(out, `=> CACHED \[1/1\] COPY Dockerfile / +0\.\ds`, true)
	match(out, `\x1b\[34m`, false)

	out, err = onTerminal(t, dir, nil, "build", "-o", "-", ".")
	if err == nil {
		t.Error("an archive was written to a terminal")
	}
	match(out, `not written to a terminal`, true)
}
