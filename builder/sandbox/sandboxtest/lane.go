package sandboxtest

import (
	"bufio"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// LaneEnv is set for tests that As runs again; its value is the lane's name.
const LaneEnv = "SANDBOXTEST_LANE"

// Lane is the lane that this process runs, or "".
func Lane() string { return os.Getenv(LaneEnv) }

// As runs the test again, in a process of an ordinary user. TestMain there has
// to enter the user namespace. It skips unless we are root.
func As(t *testing.T, lane string, uid, gid int) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can become another user")
	}
	// Everything that the user needs is copied to where he may go.
	dir, err := os.MkdirTemp("/tmp", "sandboxtest-"+lane+"-")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	exe, err := os.Executable()
	must(t, err)
	must(t, copyFile(exe, filepath.Join(dir, "test"), 0o755))
	must(t, copyFile(Helper(t), filepath.Join(dir, "helper"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "tmp"), 0o755))
	must(t, os.Chown(filepath.Join(dir, "tmp"), uid, gid))
	must(t, os.Chmod(dir, 0o755))
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v=" + strconv.FormatBool(testing.Verbose())}
	cmd := exec.Command(filepath.Join(dir, "test"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		LaneEnv+"="+lane, HelperEnv+"="+filepath.Join(dir, "helper"),
		"TMPDIR="+filepath.Join(dir, "tmp"), "HOME="+filepath.Join(dir, "tmp"),
	)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	t.Logf("as user %d:\n%s", uid, out)
	if err != nil {
		t.Errorf("as user %d: %v", uid, err)
	}
}

// Nobody is a user without a subuid range.
const Nobody = 65534

// SubuidUser finds an ordinary user with a subuid and a subgid range and skips
// the test if there is none.
func SubuidUser(t *testing.T) (uid, gid int) {
	t.Helper()
	groups, err := os.ReadFile("/etc/subgid")
	if err == nil {
		var f *os.File
		if f, err = os.Open("/etc/subuid"); err == nil {
			defer f.Close()
			for sc := bufio.NewScanner(f); sc.Scan(); {
				name, _, _ := strings.Cut(sc.Text(), ":")
				u, err := user.Lookup(name)
				if err != nil || u.Uid == "0" || !strings.Contains("\n"+string(groups), "\n"+name+":") {
					continue
				}
				uid, _ = strconv.Atoi(u.Uid)
				gid, _ = strconv.Atoi(u.Gid)
				return uid, gid
			}
		}
	}
	t.Skipf("SKIPPED: no ordinary user has a range in /etc/subuid and /etc/subgid (error: %v)", err)
	return 0, 0
}
