package overlay_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/strake-build/strake/layers/snapshot/overlay"
	"github.com/strake-build/strake/layers/snapshot/snapshottest"
)

const inNamespace = "OVERLAY_TEST_IN_USERNS"

// TestUserNamespace runs the suite in a user namespace with a single id, as the
// one user who starts it.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	if os.Getenv(inNamespace) != "" {
		if !snapshottest.CanMount() {
			t.Skip("cannot mount: overlays don't work in user namespaces here")
		}
		snapshottest.Run(t, &overlay.Driver{UserXattr: true, RecordOwners: true})
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestUserNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1", "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "cannot mount:") {
		t.Skip("overlays can't be mounted in a user namespace here")
	}
	if err != nil && len(out) == 0 {
		t.Skipf("no user namespaces here: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestUserNamespace/rename_a_directory") {
		t.Errorf("in a user namespace: %v\n%s", err, out)
	}
}
