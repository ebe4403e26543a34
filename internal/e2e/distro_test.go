package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strake-build/strake/internal/testbed"
)

// TestDebianBase makes a Debian root file system with debootstrap, uses it as a
// base, and installs a package in a step.
func TestDebianBase(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	debootstrap := testbed.NeedTool(t, "debootstrap", "debootstrap")
	mirror := debianMirror(t)
	dir := t.TempDir()
	rootfs := filepath.Join(dir, "rootfs")
	cmd := exec.Command(debootstrap, "--variant=minbase", "bookworm", rootfs, mirror)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: debootstrap can't reach a package mirror: %v\n%s", err, tailOf(out))
	}
	conf := aptConf(t)
	context := testbed.Write(t, map[string]string{
		"Dockerfile": `FROM scratch AS base
ADD rootfs.tar /
FROM base
COPY apt.conf /etc/apt/apt.conf.d/99build
RUN apt-get update && apt-get install -y --no-install-recommends hello && rm -rf /var/lib/apt/lists/*
RUN hello > /greeting && dpkg -s hello | grep -q 'install ok installed'
USER nobody
CMD ["hello"]
`,
		"apt.conf": conf,
	})
	if out, err := exec.Command("tar", "-C", rootfs, "-cf", filepath.Join(context, "rootfs.tar"), ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	s := testbed.NewStore(t)
	s.Run("build", "--network", "host", "--allow", "network.host", "-t", "debian-hello", context)
	out, _ := s.Run("run", "--rm", "debian-hello")
	if !strings.Contains(out, "Hello, world!") {
		t.Errorf("strake run printed %q", out)
	}
}

func tailOf(b []byte) []byte { return b[max(0, len(b)-500):] }

// debianMirror is the package mirror of this machine.
func debianMirror(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v "^ *#"`).Output()
	if err != nil && len(out) == 0 {
		t.Skip("SKIPPED: no Debian package sources on this machine")
	}
	for field := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(field, "http") && !strings.Contains(field, "security") {
			return strings.TrimSuffix(field, "/")
		}
	}
	t.Skip("SKIPPED: no Debian package sources on this machine")
	return ""
}

// aptConf is how apt on this machine reaches it: proxies and the like.
func aptConf(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("apt-config", "dump", "--format", "%F \"%v\";%n", "Acquire").Output()
	if err != nil {
		t.Skipf("SKIPPED: apt-config: %v", err)
	}
	return string(out)
}

// TestExample runs the README's example.
func TestExample(t *testing.T) {
	t.Parallel()
	testbed.NeedRoot(t)
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	s := testbed.NewStore(t)
	archive := filepath.Join(t.TempDir(), "hello.tar")
	s.Run("build", "-t", "hello", "--build-context", "go="+strings.TrimSpace(string(goroot)),
		"-o", "type=image", "-o", "type=oci,dest="+archive, "../../examples/hello")
	if out, _ := s.Run("run", "--rm", "hello", "you"); out != "hello, you\n" {
		t.Errorf("strake run printed %q", out)
	}
	if info, err := os.Stat(archive); err != nil || info.Size() < 1<<20 {
		t.Errorf("archive: %v, %v", info, err)
	}
}
