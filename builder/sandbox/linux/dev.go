package linux

import (
	"errors"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

type device struct {
	path string // below /dev
	mode uint32 // type and permissions
	dev  uint64
	uid  int
	gid  int
}

func char(name string, major, minor uint32) device {
	return device{path: name, mode: unix.S_IFCHR | 0o666, dev: unix.Mkdev(major, minor)}
}

var nullDevice = char("null", 1, 3)

// defaultDevices are in every sandbox.
var defaultDevices = []device{
	nullDevice, char("zero", 1, 5), char("full", 1, 7), char("random", 1, 8),
	char("urandom", 1, 9), char("tty", 5, 0),
}

var devLinks = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}, {"core", "/proc/kcore"},
}

// stageNull opens s.null.
func (s *stage) stageNull() error {
	fd, err := s.deviceNode(nullDevice)
	if err != nil {
		return fmt.Errorf("/dev/null: %w", err)
	}
	s.null = fd
	return nil
}

// deviceNode opens (O_PATH) a node of d that can be cloned: a new one on the
// staging area, so that no sandbox can change the host's owners and modes, or
// in a user namespace the host's.
func (s *stage) deviceNode(d device) (int, error) {
	dir, name := s.staging, strings.ReplaceAll(d.path, "/", "-")
	err := unix.EPERM
	if !s.Rootless {
		if e := unix.Mknodat(s.staging, name, d.mode, int(d.dev)); e != nil && e != unix.EEXIST {
			if e != unix.EPERM {
				return -1, e
			}
		} else {
			if err := unix.Fchownat(s.staging, name, d.uid, d.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return -1, err
			}
			err = 0
		}
	}
	if err != 0 {
		dir, name = unix.AT_FDCWD, "/dev/"+d.path
	}
	fd, e := s.open.take(unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0))
	if e != nil {
		return -1, e
	}
	var st unix.Stat_t
	if e := unix.Fstat(fd, &st); e != nil {
		return -1, e
	}
	if st.Mode&unix.S_IFMT != d.mode&unix.S_IFMT || uint64(st.Rdev) != d.dev {
		return -1, fmt.Errorf("%s of the host is not the device %d:%d", name, unix.Major(d.dev), unix.Minor(d.dev))
	}
	return fd, nil
}

// makeDevices fills the just mounted /dev. Its nodes are mounts, which have no
// nodev, on plain files: on /dev itself no node can be used.
func (s *stage) makeDevices() error {
	devices := defaultDevices
	for _, d := range s.Spec.Linux.Devices {
		add, err := specDevice(d)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
		devices = append(devices[:len(devices):len(devices)], add)
	}
	for i, d := range devices {
		if i >= len(defaultDevices) && isDefault(d.path) {
			continue
		}
		if err := s.makeDevice(d); err != nil {
			return fmt.Errorf("device %s: %w", d.path, err)
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[1], s.dev, l[0]); err != nil && err != unix.EEXIST {
			return fmt.Errorf("symlink %s: %w", l[0], err)
		}
	}
	return nil
}

func isDefault(name string) bool {
	for _, d := range defaultDevices {
		if d.path == name {
			return true
		}
	}
	for _, l := range devLinks {
		if l[0] == name {
			return true
		}
	}
	return false
}

func (s *stage) makeDevice(d device) error {
	node := s.null
	if d.path != nullDevice.path {
		var err error
		if node, err = s.deviceNode(d); err != nil {
			return err
		}
	}
	fd, err := s.clone(node, "", false)
	if err != nil {
		return err
	}
	if !strings.Contains(d.path, "/") {
		// There is nothing in /dev so far, and nobody else to put it there:
		// what to mount on need not be looked for as in a directory of an image.
		if err := unix.Mknodat(s.dev, d.path, unix.S_IFREG|0o644, 0); err != nil && err != unix.EEXIST {
			return err
		}
		return unix.MoveMount(fd, "", s.dev, d.path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	target, err := s.open.take(rootDir(s.dev).target(d.path, false))
	if err != nil {
		return err
	}
	return attach(fd, target)
}

func specDevice(d specs.LinuxDevice) (device, error) {
	name, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
	if !ok {
		return device{}, errors.New("it is not in /dev")
	}
	out := device{path: name, mode: 0o666, dev: unix.Mkdev(uint32(d.Major), uint32(d.Minor))}
	if d.FileMode != nil {
		out.mode = uint32(d.FileMode.Perm())
	}
	if d.UID != nil {
		out.uid = int(*d.UID)
	}
	if d.GID != nil {
		out.gid = int(*d.GID)
	}
	switch d.Type {
	case "c", "u":
		out.mode |= unix.S_IFCHR
	case "b":
		out.mode |= unix.S_IFBLK
	case "p":
		out.mode, out.dev = out.mode|unix.S_IFIFO, 0
	default:
		return device{}, fmt.Errorf("unknown type %q", d.Type)
	}
	return out, nil
}

// terminal makes a pty on the sandbox's own devpts.
func (s *stage) terminal() error {
	if s.pts < 0 {
		return errors.New("no devpts is mounted")
	}
	master, err := unix.Openat(s.pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.master = s.open.add(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	if c := s.Spec.Process.ConsoleSize; c != nil {
		ws := unix.Winsize{Row: uint16(c.Height), Col: uint16(c.Width)}
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &ws); err != nil {
			return err
		}
	}
	name := fmt.Sprint(n)
	slave, err := s.open.take(unix.Openat(s.pts, name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0))
	if err != nil {
		return err
	}
	if err := unix.Fchown(slave, int(s.Spec.Process.User.UID), -1); err != nil {
		return err
	}
	s.Stdio = [3]int{slave, slave, slave}
	if s.dev < 0 {
		return nil
	}
	target, err := s.open.take(rootDir(s.dev).target("console", false))
	if err != nil {
		return err
	}
	fd, err := s.clone(s.pts, name, false)
	if err != nil {
		return err
	}
	return attach(fd, target)
}
