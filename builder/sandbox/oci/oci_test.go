package oci_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/oci"
	"github.com/strake-build/strake/builder/sandbox/rootless"
	"github.com/strake-build/strake/builder/sandbox/sandboxtest"
)

var mode rootless.Mode

func TestMain(m *testing.M) {
	oci.Main()
	if sandboxtest.Lane() != "" {
		var err error
		if mode, err = rootless.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// needs skips where crun can't work: it wants either cgroup v1 or v2.
func needs(t testing.TB, r sandbox.Runner) {
	t.Helper()
	if err := sandboxtest.Works(t, r, mode.Rootless); err != nil && strings.Contains(err.Error(), "cgroups in hybrid mode") {
		t.Skipf("SKIPPED: %s can't run anything here: %v", r.Name(), err)
	}
}

func suite(t *testing.T, runtime string) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root")
	}
	dir := t.TempDir()
	r, err := oci.New(oci.Options{Runtime: runtime, StateDir: dir, Rootless: mode.Rootless})
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	if r.Name() != runtime {
		t.Errorf("name %q", r.Name())
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left in the state directory: %v, error %v", left, err)
		}
	})
	needs(t, r)
	sandboxtest.Run(t, r, sandboxtest.Options{OCI: true, Rootless: mode.Rootless, SingleID: mode.SingleID})
}

func TestRunc(t *testing.T) { t.Parallel(); suite(t, "runc") }

func TestCrun(t *testing.T) { t.Parallel(); suite(t, "crun") }

// rootlessLane runs the suite as an ordinary user.
func rootlessLane(t *testing.T, runtime string) {
	t.Parallel()
	lane := "oci-" + runtime
	switch sandboxtest.Lane() {
	case "":
		uid, gid := sandboxtest.SubuidUser(t)
		sandboxtest.As(t, lane, uid, gid)
	case lane:
		suite(t, runtime)
	default:
		t.Skip("another lane")
	}
}

func TestRootlessRunc(t *testing.T) { rootlessLane(t, "runc") }

func TestRootlessCrun(t *testing.T) {
	if sandboxtest.Lane() == "oci-crun" {
		// In our own mount namespace there is nothing but cgroup v2.
		_ = unix.Mount("/sys/fs/cgroup/unified", "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
	}
	rootlessLane(t, "crun")
}

func TestMissingRuntime(t *testing.T) {
	t.Parallel()
	if _, err := oci.New(oci.Options{Runtime: "no-such-runtime", StateDir: t.TempDir()}); err == nil {
		t.Error("no error")
	}
}

func BenchmarkRunc(b *testing.B) { benchmark(b, "runc") }

func BenchmarkCrun(b *testing.B) { benchmark(b, "crun") }

func benchmark(b *testing.B, runtime string) {
	if os.Getuid() != 0 {
		b.Skip("SKIPPED: not root")
	}
	r, err := oci.New(oci.Options{Runtime: runtime, StateDir: b.TempDir()})
	if err != nil {
		b.Skipf("SKIPPED: %v", err)
	}
	needs(b, r)
	sandboxtest.Benchmark(b, r, sandboxtest.Options{OCI: true})
}
