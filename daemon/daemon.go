// Package daemon opens the sockets that a daemon listens on.
//
//	l, err := daemon.Listen("unix:///run/strake.sock")
package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Listen opens a listener: "unix:///path" or "tcp://host:port". Who can connect
// can build, so tcp is for loopback addresses only. A socket file
// that nobody answers on any more is replaced; its directory is made if it is
// missing. Only the user and group of the process may connect to it.
func Listen(addr string) (net.Listener, error) {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		return nil, fmt.Errorf("address %q: it is of the form unix:///path or tcp://host:port", addr)
	}
	switch scheme {
	case "tcp":
		host, _, err := net.SplitHostPort(rest)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", addr, err)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("address %q: anybody who can reach it could build; listen on a loopback address or a unix socket", addr)
		}
		return net.Listen("tcp", rest)
	case "unix":
		return listenUnix(rest)
	}
	return nil, fmt.Errorf("address %q: %q is not one of unix, tcp", addr, scheme)
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == fs.ModeSocket {
		c, err := net.Dial("unix", path)
		if err == nil {
			return nil, errors.Join(fmt.Errorf("%s: another daemon answers there", path), c.Close())
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
