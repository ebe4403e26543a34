// Package probe finds out what this machine allows sandboxes, for people who
// wonder why something doesn't work.
//
// Nothing is changed: what has to be tried is tried in namespaces of a process
// that ends at once.
package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox/rootless"
)

// Check is one finding.
type Check struct {
	Name   string
	OK     bool
	Detail string // what was found
	Fix    string // what to do if it is not OK and needed; may be empty
}

// Run checks this machine for a store at root, which need not exist.
func Run(root string) []Check {
	return []Check{
		kernel(), privileges(), userNamespaces(), subids(), overlay(root, false), overlay(root, true),
		mountAPI(), seccompFilter(), cgroups(), bridge(), tun(), emulators(), disk(root), runtimes(),
	}
}

func release() (text string, major, minor int) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown", 0, 0
	}
	text = unix.ByteSliceToString(u.Release[:])
	_, _ = fmt.Sscanf(text, "%d.%d", &major, &minor) // zeros say it all
	return text, major, minor
}

func kernel() Check {
	text, major, minor := release()
	c := Check{Name: "kernel", OK: true, Detail: "Linux " + text + " on " + runtime.GOARCH}
	switch {
	case major < 5 || major == 5 && minor < 12:
		c.OK = false
		c.Fix = "Linux 5.12 or newer is needed"
	case major < 6 || major == 6 && minor < 7:
		c.Detail += "; images of more than about 200 layers need 6.7"
	}
	return c
}

func privileges() Check {
	c := Check{Name: "privileges", OK: true, Detail: "root"}
	if os.Geteuid() != 0 {
		c.Detail = fmt.Sprintf("user %d: builds run in a user namespace", os.Geteuid())
		return c
	}
	if rootless.UID() != 0 {
		c.Detail = fmt.Sprintf("root in a user namespace of user %d", rootless.UID())
	}
	if fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE); err != nil {
		c.OK = false
		c.Detail += fmt.Sprintf(", but mounting is not allowed (%v)", err)
		c.Fix = "in a container, run it with --privileged, or with --cap-add SYS_ADMIN and without its seccomp and AppArmor profiles"
	} else {
		_ = unix.Close(fd)
	}
	return c
}

// try runs a program in new namespaces.
func try(flags uintptr, mapped bool, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: flags}
	if mapped {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) > 0 {
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%w: %s", err, line)
	}
	return err
}

func setting(name string) string {
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func userNamespaces() Check {
	c := Check{Name: "user namespaces", OK: true, Detail: "available"}
	program, err := exec.LookPath("true")
	if err != nil {
		return Check{Name: c.Name, Detail: "not tried: there is no program to try it with"}
	}
	if err := try(unix.CLONE_NEWUSER|unix.CLONE_NEWNS, true, program); err != nil {
		c.OK, c.Detail = false, err.Error()
		c.Fix = "builds by ordinary users need them"
	}
	for name, bad := range map[string]string{"kernel/unprivileged_userns_clone": "0", "user/max_user_namespaces": "0", "kernel/apparmor_restrict_unprivileged_userns": "1"} {
		if setting(name) == bad {
			c.OK = false
			c.Detail += fmt.Sprintf("; %s is %s", strings.ReplaceAll(name, "/", "."), bad)
			good := map[string]string{"0": "1", "1": "0"}[bad]
			if name == "user/max_user_namespaces" {
				good = "10000"
			}
			c.Fix = fmt.Sprintf("for ordinary users: sysctl -w %s=%s", strings.ReplaceAll(name, "/", "."), good)
		}
	}
	return c
}

func subids() Check {
	c := Check{Name: "subordinate ids", OK: true}
	if os.Geteuid() == 0 && rootless.UID() == 0 {
		c.Detail = "not needed by root"
		return c
	}
	n, err := rootless.Range(rootless.UID())
	if err != nil {
		c.OK, c.Detail = false, err.Error()+": builds have a single user"
		c.Fix = "install uidmap (Debian, Ubuntu) or shadow-utils (Fedora) and run, as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
		return c
	}
	c.Detail = fmt.Sprintf("%d, with newuidmap and newgidmap", n)
	return c
}

func overlay(root string, user bool) Check {
	c := Check{Name: "overlayfs", OK: true, Detail: "available"}
	if user {
		c.Name = "overlayfs in user namespaces"
	}
	data, err := os.ReadFile("/proc/filesystems")
	if err == nil && !strings.Contains(string(data), "\toverlay\n") && !exists("/lib/modules") {
		return Check{Name: c.Name, Detail: "the kernel has none", Fix: "layers are copied instead, which is slower"}
	}
	if os.Geteuid() != 0 && !user {
		c.Detail = "not tried: only root may"
		return c
	}
	mount, err := exec.LookPath("mount")
	if err != nil {
		c.Detail = "not tried: there is no mount program"
		return c
	}
	dir, err := os.MkdirTemp(existing(root), ".strake-probe-")
	if err != nil {
		dir, err = os.MkdirTemp("", "strake-probe-")
	}
	if err != nil {
		return Check{Name: c.Name, Detail: "not tried: " + err.Error()}
	}
	defer os.RemoveAll(dir)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return Check{Name: c.Name, Detail: "not tried: " + err.Error()}
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	flags := uintptr(unix.CLONE_NEWNS)
	if user {
		flags |= unix.CLONE_NEWUSER
		options += ",userxattr"
	}
	if err := try(flags, user, mount, "-t", "overlay", "overlay", "-o", options, filepath.Join(dir, "merged")); err != nil {
		c.OK, c.Detail = false, err.Error()
		c.Fix = "layers are copied instead, which is slower; keep the store on ext4, xfs or btrfs, and not on another overlay"
	}
	return c
}

// existing is the nearest directory above dir that exists.
func existing(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "/"
	}
	for !exists(dir) && dir != "/" {
		dir = filepath.Dir(dir)
	}
	return dir
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func mountAPI() Check {
	c := Check{Name: "mount API", OK: true, Detail: "fsopen, open_tree and mount_setattr"}
	// Both fail for other reasons if they are there.
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err == nil {
		_ = unix.Close(fd)
	}
	if !errors.Is(err, unix.ENOSYS) {
		err = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	}
	if errors.Is(err, unix.ENOSYS) {
		c.OK, c.Detail = false, "the kernel or a seccomp profile does not have it"
		c.Fix = "Linux 5.12 or newer is needed; in a container, a seccomp profile that allows it"
	}
	return c
}

func seccompFilter() Check {
	c := Check{Name: "seccomp", OK: true, Detail: "filters are available"}
	// A nil program is refused after the availability was checked.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, 0)
	if errno != unix.EFAULT {
		c.OK, c.Detail = false, "filters are not available: "+errno.Error()
		c.Fix = "a kernel with CONFIG_SECCOMP_FILTER is needed"
	}
	return c
}

func cgroups() Check {
	c := Check{Name: "cgroups"}
	const dir = "/sys/fs/cgroup"
	var st unix.Statfs_t
	switch err := unix.Statfs(dir, &st); {
	case err != nil:
		c.Detail = "none: " + err.Error()
	case st.Type == unix.CGROUP2_SUPER_MAGIC:
		c.Detail = "version 2"
		c.OK = unix.Access(dir, unix.W_OK) == nil
	case exists(dir + "/unified"):
		c.Detail = "versions 1 and 2 (hybrid)"
		c.OK = unix.Access(dir+"/memory", unix.W_OK) == nil
	default:
		c.Detail = "version 1"
		c.OK = unix.Access(dir+"/memory", unix.W_OK) == nil
	}
	if !c.OK {
		c.Detail += ", not writable: limits of memory and cpu are refused"
		c.Fix = "only builds with limits need it: run as root"
	}
	return c
}

func bridge() Check {
	c := Check{Name: "bridge network", OK: true, Detail: "bridge, veth and nftables can be made"}
	if os.Geteuid() != 0 || rootless.UID() != 0 {
		c.Detail = "not used: the network of ordinary users is in this program"
		return c
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return Check{Name: c.Name, Detail: "no netfilter: " + err.Error(), Fix: "a kernel with nf_tables is needed for the isolated network; --network=host works without"}
	}
	_ = unix.Close(fd)
	if ip, err := exec.LookPath("ip"); err == nil {
		if err := try(unix.CLONE_NEWNET, false, ip, "link", "add", "probe0", "type", "bridge"); err != nil {
			c.OK, c.Detail = false, "no bridge: "+err.Error()
			c.Fix = "modprobe bridge; --network=host works without"
		} else if err := try(unix.CLONE_NEWNET, false, ip, "link", "add", "probe0", "type", "veth"); err != nil {
			c.OK, c.Detail = false, "no veth: "+err.Error()
			c.Fix = "modprobe veth; --network=host works without"
		}
	}
	if nft, err := exec.LookPath("nft"); err == nil && c.OK {
		if err := try(unix.CLONE_NEWNET, false, nft, "add", "table", "inet", "probe"); err != nil {
			c.OK, c.Detail = false, "no nftables: "+err.Error()
			c.Fix = "modprobe nf_tables; --network=host works without"
		}
	}
	return c
}

func tun() Check {
	c := Check{Name: "tun device", OK: true, Detail: "/dev/net/tun"}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		c.OK, c.Detail = false, "/dev/net/tun: "+err.Error()
		c.Fix = "modprobe tun; the network of ordinary users needs it"
		return c
	}
	_ = unix.Close(fd)
	return c
}

func emulators() Check {
	c := Check{Name: "emulators", OK: true}
	entries, err := os.ReadDir("/proc/sys/fs/binfmt_misc")
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), "qemu-"); ok {
			names = append(names, name)
		}
	}
	switch {
	case len(names) > 0:
		c.Detail = strings.Join(names, ", ")
	case err != nil:
		c.OK, c.Detail = false, "binfmt_misc is not mounted"
	default:
		c.OK, c.Detail = false, "none"
	}
	if !c.OK {
		c.Fix = "only steps for other processors need them: install qemu-user-static and binfmt-support"
	}
	return c
}

// lowDisk is what a build of a middling image takes.
const lowDisk = 5 << 30

func disk(root string) Check {
	c := Check{Name: "disk"}
	dir := existing(root)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.Detail = dir + ": " + err.Error()
		return c
	}
	free := st.Bavail * uint64(st.Bsize)
	c.OK = free >= lowDisk
	c.Detail = fmt.Sprintf("%.1f GiB free in %s", float64(free)/(1<<30), dir)
	if !c.OK {
		c.Fix = "strake prune frees what is not used; --root puts the store elsewhere"
	}
	return c
}

func runtimes() Check {
	c := Check{Name: "OCI runtimes", OK: true}
	var found []string
	for _, name := range []string{"runc", "crun", "runsc"} {
		if path, err := exec.LookPath(name); err == nil {
			found = append(found, path)
		}
	}
	c.Detail = "none, and none is needed"
	if len(found) > 0 {
		c.Detail = strings.Join(found, ", ") + " (--oci-runtime; not needed)"
	}
	return c
}
