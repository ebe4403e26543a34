package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machine is a place to build in: a store, and what a machine is like.
type machine struct {
	name      string
	wrap      []string // before the command
	umask, tz string
}

// TestTwoMachines builds every example on two machines that have in common only
// the files: another store, host name, number of processors, uptime, time zone
// and umask, and a later time. The archives are equal, byte by byte.
func TestTwoMachines(t *testing.T) {
	t.Parallel()
	busybox, err := exec.LookPath("busybox")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root, and busybox (Debian: busybox-static)")
	}
	dir := t.TempDir()
	strake := filepath.Join(dir, "strake")
	build := exec.Command("go", "build", "-o", strake, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build strake: %v\n%s", err, out)
	}
	base := filepath.Join(dir, "base")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dockerfile := "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"
	if err := os.WriteFile(filepath.Join(base, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", busybox, filepath.Join(base, "busybox")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	examples, err := filepath.Glob("../../examples/*/Dockerfile")
	if err != nil || len(examples) < 4 {
		t.Fatalf("examples: %v, %v", examples, err)
	}

	machines := []machine{
		{name: "one", umask: "022", tz: "UTC"},
		{name: "two", umask: "077", tz: "Pacific/Kiritimati", wrap: []string{"unshare", "--uts", "--time", "--fork", "--boottime", "98765", "--monotonic", "98765"}},
	}
	digests := map[string]map[string]string{}
	for _, m := range machines {
		script := "umask " + m.umask + "; "
		if m.wrap != nil {
			script += "hostname another-machine; exec taskset -c 0 "
		}
		run := func(args ...string) {
			t.Helper()
			words := append([]string{}, m.wrap...)
			words = append(words, "sh", "-c", script+`"$0" "$@"`, strake, "--root", filepath.Join(dir, m.name))
			words = append(words, args...)
			cmd := exec.Command(words[0], words[1:]...)
			cmd.Env = append(os.Environ(), "TZ="+m.tz)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("on machine %s: strake %s: %v\n%s", m.name, strings.Join(args, " "), err, out)
			}
		}
		run("build", "-t", "busybox", base)
		goroot, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range examples {
			if strings.Contains(e, "/hello/") && testing.Short() {
				continue // copies the Go toolchain
			}
			context := filepath.Dir(e)
			out := filepath.Join(dir, m.name+"-"+filepath.Base(context)+".tar")
			run("build", "-o", "type=oci,dest="+out, "--build-context", "go="+strings.TrimSpace(string(goroot)), context)
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if digests[context] == nil {
				digests[context] = map[string]string{}
			}
			digests[context][m.name] = fmt.Sprintf("%x", sha256.Sum256(bytes.TrimRight(data, "\x00")))
		}
	}
	for e, d := range digests {
		if d["one"] != d["two"] {
			t.Errorf("%s: the archives of two machines differ: %v", e, d)
		}
	}
}
