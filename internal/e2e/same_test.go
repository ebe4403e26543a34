package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

// TestSameImageEverywhere builds one context on several roots, with one slot
// and with many, as root and as ordinary users, at other times: the digest must
// be the same.
func TestSameImageEverywhere(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	host := testbed.NewRegistry(t)
	base := testbed.Busybox(t, host)

	want := ""
	build := func(label string, s *testbed.Store, flags ...string) {
		t.Helper()
		context := testbed.Write(t, testbed.BuildFiles(base))
		if err := os.Chmod(context, 0o755); err != nil {
			t.Fatal(err)
		}
		for d := context; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
			_ = os.Chmod(d, 0o755)
		}
		// Files of another checkout have other times.
		when := time.Unix(int64(1e9+len(label)*1e6), 0)
		if err := os.Chtimes(filepath.Join(context, "a.txt"), when, when); err != nil {
			t.Fatal(err)
		}
		ref := host + "/out:" + label
		s.Run(append(append([]string{"build", "-t", ref, "--push"}, flags...), context)...)
		got := testbed.DigestOf(t, ref)
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("%s: digest %s, want %s", label, got, want)
		}
	}
	build("first", testbed.NewStore(t))
	build("second-root", testbed.NewStore(t))
	one := testbed.NewStore(t)
	one.Env = []string{"GOMAXPROCS=1"}
	build("one-processor", one)
	t.Run("rootless", func(t *testing.T) { build("rootless", testbed.RootlessStore(t, true)) })
	t.Run("single id", func(t *testing.T) { build("single-id", testbed.RootlessStore(t, false)) })
	if _, err := os.Stat("/usr/sbin/runc"); err == nil {
		build("runc", testbed.NewStore(t), "--oci-runtime", "runc")
	}
}

// TestSecondBuildReadsNothing builds twice: everything is cached, and no file of
// the context is opened but the build file and the ignore file.
func TestSecondBuildReadsNothing(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	strace := testbed.NeedTool(t, "strace", "strace")
	host := testbed.NewRegistry(t)
	context := testbed.Write(t, testbed.BuildFiles(testbed.Busybox(t, host)))
	s := testbed.NewStore(t)
	s.Run("build", "-t", "app", context)
	// Files hashed in the instant of their last change are not trusted.
	time.Sleep(1100 * time.Millisecond)
	s.Run("build", "-t", "app", context)

	trace := filepath.Join(t.TempDir(), "trace")
	cmd := s.Command("build", "--progress", "plain", "-t", "app", context)
	cmd.Args = append([]string{strace, "-f", "-y", "-e", "trace=openat,openat2,open,read,pread64,readv,mmap", "-o", trace}, cmd.Args...)
	cmd.Path = strace
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "CACHED") || strings.Contains(string(out), "DONE 0.1s\n#") {
		t.Errorf("not all cached:\n%s", out)
	}
	for _, step := range []string{"RUN", "COPY"} {
		if ran, cached := testbed.RanSteps(string(out), step); ran != 0 || cached == 0 {
			t.Errorf("%s: %d ran, %d cached:\n%s", step, ran, cached, out)
		}
	}
	data, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		for _, f := range []string{"a.txt", "b.txt", "d.txt"} {
			if strings.Contains(line, "/"+f+">") && strings.Contains(line, "read") {
				t.Errorf("%s was read: %s", f, line)
			}
		}
	}
}
