package linux_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/rootless"
	"github.com/strake-build/strake/builder/sandbox/sandboxtest"
)

var mode rootless.Mode

func TestMain(m *testing.M) {
	linux.Main()
	if dir := os.Getenv(victimEnv); dir != "" {
		fmt.Println(victim(dir))
		os.Exit(1)
	}
	if sandboxtest.Lane() != "" {
		var err error
		if mode, err = rootless.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func suite(t *testing.T, o linux.Options) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root")
	}
	o.Rootless = mode.Rootless
	r, err := linux.New(o)
	if err != nil {
		t.Fatal(err)
	}
	sandboxtest.Run(t, r, sandboxtest.Options{Rootless: mode.Rootless, SingleID: mode.SingleID})
}

func TestDirect(t *testing.T) { t.Parallel(); suite(t, linux.Options{}) }

func TestReexec(t *testing.T) { t.Parallel(); suite(t, linux.Options{Reexec: true}) }

// lane runs the suite in a user namespace.
func lane(t *testing.T, name string, single bool, user func(*testing.T) (uid, gid int)) {
	t.Parallel()
	if sandboxtest.Lane() != name {
		if sandboxtest.Lane() != "" {
			t.Skip("another lane")
		}
		uid, gid := user(t)
		sandboxtest.As(t, name, uid, gid)
		return
	}
	if !mode.Rootless || mode.SingleID != single {
		t.Fatalf("mode %+v", mode)
	}
	t.Run("direct", func(t *testing.T) { suite(t, linux.Options{}) })
	t.Run("reexec", func(t *testing.T) { suite(t, linux.Options{Reexec: true}) })
}

func nobody(*testing.T) (int, int) { return sandboxtest.Nobody, sandboxtest.Nobody }

func TestRootlessSingleID(t *testing.T) { lane(t, "single", true, nobody) }

func TestRootlessSubuid(t *testing.T) { lane(t, "subuid", false, sandboxtest.SubuidUser) }

func benchmark(b *testing.B, o linux.Options) {
	if os.Getuid() != 0 {
		b.Skip("SKIPPED: not root")
	}
	r, err := linux.New(o)
	if err != nil {
		b.Fatal(err)
	}
	sandboxtest.Benchmark(b, r, sandboxtest.Options{})
}

func BenchmarkDirect(b *testing.B) { benchmark(b, linux.Options{}) }

func BenchmarkReexec(b *testing.B) { benchmark(b, linux.Options{Reexec: true}) }
