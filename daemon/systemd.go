package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstFD is the first descriptor that systemd passes (sd_listen_fds(3)).
const firstFD = 3

// maxFDs bounds what LISTEN_FDS may say.
const maxFDs = 1024

// Inherited returns the sockets that systemd opened for this process: all
// ("fd://") or one of them by its number ("fd://3"). It is called once. Stream
// sockets other than unix ones get the same protection as those of Listen.
func Inherited(addr string, getenv func(string) string, secure *tls.Config) ([]net.Listener, error) {
	which, _ := strings.CutPrefix(addr, "fd://")
	if pid := getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		if pid == "" {
			return nil, fmt.Errorf("address %q: systemd passed no sockets; is there a strake.socket that starts this service?", addr)
		}
		return nil, fmt.Errorf("address %q: the sockets are for process %s, not for this one (%d)", addr, pid, os.Getpid())
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 1 || n > maxFDs {
		return nil, fmt.Errorf("address %q: systemd passed no sockets (LISTEN_FDS=%q)", addr, getenv("LISTEN_FDS"))
	}
	first, last := firstFD, firstFD+n-1
	if which != "" && which != "*" {
		fd, err := strconv.Atoi(which)
		if err != nil || fd < first || fd > last {
			return nil, fmt.Errorf("address %q: systemd passed descriptors %d to %d", addr, first, last)
		}
		first, last = fd, fd
	}
	var out []net.Listener
	for fd := first; fd <= last; fd++ {
		l, err := inherit(fd, secure)
		if err != nil {
			for _, l := range out {
				err = errors.Join(err, l.Close())
			}
			return nil, fmt.Errorf("descriptor %d of systemd: %w", fd, err)
		}
		out = append(out, l)
	}
	return out, nil
}

func inherit(fd int, secure *tls.Config) (net.Listener, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "fd"+strconv.Itoa(fd))
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	a, ok := l.Addr().(*net.TCPAddr)
	switch {
	case !ok:
		return l, nil
	case !a.IP.IsLoopback() && !mutual(secure):
		return nil, errors.Join(fmt.Errorf("anybody who can reach %s could build; give --tlscacert, --tlscert and --tlskey", a), l.Close())
	case secure == nil:
		return l, nil
	}
	return tls.NewListener(l, secure), nil
}

// Notify tells systemd how the service is ("READY=1", "STOPPING=1";
// sd_notify(3)), if it wants to know.
func Notify(getenv func(string) string, state string) error {
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	_, err = c.Write([]byte(state))
	return errors.Join(err, c.Close())
}
