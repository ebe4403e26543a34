// Package rootless lets an ordinary user build: the program re-executes itself
// in a user namespace where it is root.
package rootless

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode tells with which privileges this process runs.
type Mode struct {
	// Rootless: in a user namespace made by Enter, or by somebody else.
	Rootless bool
	// SingleID: only one uid and gid are mapped, because there is no subuid
	// range or no newuidmap. Reason says which.
	SingleID bool
	Reason   string
}

// marker is in the environment of re-executed processes, which remove it. It
// only keeps them from doing it again: privileges are what the kernel says.
//
// Its value is first the number of a pipe from which a byte comes when the ids
// are mapped: the process then executes the program once more, which makes it
// root with all capabilities. The value of that execution is "mapped".
const (
	marker = "STRAKE_USER_NAMESPACE"
	mapped = "mapped"
)

// Enter makes sure that this process may mount and has the ids it needs. As
// root it returns at once. As an ordinary user it re-executes the program in a
// new user and mount namespace with the user's subuid range (newuidmap) or a
// single id, and does not return except with an error: the child's exit code
// is this process's. In the child it returns the Mode. main calls it before
// commands that use the store.
func Enter() (Mode, error) {
	state := os.Getenv(marker)
	if err := os.Unsetenv(marker); err != nil {
		return Mode{}, err
	}
	able, err := capable()
	switch {
	case err != nil:
		return Mode{}, err
	case able:
		if state == mapped {
			if err := tie(); err != nil {
				return Mode{}, err
			}
		}
		return current()
	case state == "":
		return Mode{}, reexec()
	case state == mapped:
		return Mode{}, errors.New("this system gives no privileges in user namespaces (if it has AppArmor: sysctl kernel.apparmor_restrict_unprivileged_userns=0); run as root instead")
	default:
		return Mode{}, again(state)
	}
}

// UID is the uid of the user outside of the namespace.
func UID() int {
	ranges, err := readMap("/proc/self/uid_map")
	if err != nil || initial(ranges) {
		return os.Getuid()
	}
	for _, r := range ranges {
		if id := os.Getuid(); id >= r.inside && id-r.inside < r.count {
			return r.outside + id - r.inside
		}
	}
	return os.Getuid()
}

// capable says whether this process may mount and be any user. What fails for
// another reason than that it may not is an error: who is root must not be taken
// for somebody else, to whom the layers of root's store mean other files.
func capable() (bool, error) {
	if os.Geteuid() != 0 {
		return false, nil
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false, nil
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_CHOWN
	if data[0].Effective&need != need {
		return false, nil
	}
	// Security modules can take away what the capability sets show.
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	switch err {
	case nil:
		return true, unix.Close(fd)
	case unix.EPERM, unix.EACCES, unix.ENOSYS:
		return false, nil
	}
	return false, fmt.Errorf("copy the mounts of this process: %w", err)
}

// current is the mode of a capable process.
func current() (Mode, error) {
	uids, err := readMap("/proc/self/uid_map")
	if err != nil {
		return Mode{}, err
	}
	if initial(uids) {
		return Mode{}, nil
	}
	gids, err := readMap("/proc/self/gid_map")
	if err != nil {
		return Mode{}, err
	}
	m := Mode{Rootless: true}
	if size(uids) <= 1 || size(gids) <= 1 {
		m.SingleID = true
		m.Reason = "the user namespace has a single id"
		if _, err := findRanges(UID()); err != nil {
			m.Reason = err.Error()
		}
	}
	return m, nil
}

// idRange is a line of /proc/PID/uid_map.
type idRange struct{ inside, outside, count int }

func readMap(name string) ([]idRange, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var ranges []idRange
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var r idRange
		if _, err := fmt.Sscan(strings.TrimSpace(sc.Text()), &r.inside, &r.outside, &r.count); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// initial recognises the map of the host's own user namespace.
func initial(ranges []idRange) bool {
	return len(ranges) == 1 && ranges[0] == idRange{0, 0, 1<<32 - 1}
}

func size(ranges []idRange) int {
	n := 0
	for _, r := range ranges {
		n += r.count
	}
	return n
}
