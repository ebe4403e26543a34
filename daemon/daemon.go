// Package daemon opens the sockets that a daemon listens on.
//
//	l, err := daemon.Listen("unix:///run/strake.sock", nil)
//
// Who can connect can build, and who can build can do much: so a unix socket is
// for the user and group of the process, and tcp beyond this machine for those
// who have a certificate of the right authority.
package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Listen opens a listener: "unix:///path" or "tcp://host:port". With a
// configuration of TLS, tcp is spoken to by it; addresses other than loopback
// ones need one that asks clients for certificates. A socket file
// that nobody answers on any more is replaced; its directory is made if it is
// missing. Only the user and group of the process may connect to it.
func Listen(addr string, secure *tls.Config) (net.Listener, error) {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		return nil, fmt.Errorf("address %q: it is of the form unix:///path, tcp://host:port or fd://", addr)
	}
	switch scheme {
	case "tcp":
		l, err := listenTCP(rest, secure)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", addr, err)
		}
		return l, nil
	case "unix":
		return listenUnix(rest)
	}
	return nil, fmt.Errorf("address %q: %q is not one of unix, tcp, fd", addr, scheme)
}

func listenTCP(addr string, secure *tls.Config) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) && !mutual(secure) {
		return nil, errors.New("anybody who can reach it could build; give --tlscacert, --tlscert and --tlskey, or listen on a loopback address or a unix socket")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil || secure == nil {
		return l, err
	}
	return tls.NewListener(l, secure), nil
}

// mutual reports whether clients have to prove who they are.
func mutual(c *tls.Config) bool {
	return c != nil && c.ClientAuth == tls.RequireAndVerifyClientCert
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
