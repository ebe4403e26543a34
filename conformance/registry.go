package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A mirror is a directory in the form that BuildKit's tests expect of their
// stand-in for Docker Hub: data/ is the storage of the registry that
// config.yaml configures.
type mirror struct{ dir string }

// newMirror makes a mirror that holds the stand-ins.
func newMirror(ctx context.Context, dir string) (*mirror, error) {
	m := &mirror{dir}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := m.configure("config.yaml", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	addr, stop, err := m.serve(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	return m, pushImages(addr)
}

func (m *mirror) configure(name, addr string) error {
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\nhttp: {addr: %q}\n", filepath.Join(m.dir, "data"), addr)
	return os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o644)
}

// serve runs the registry until stop is called.
func (m *mirror) serve(ctx context.Context) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = l.Addr().String() // free now, and will be a moment later
	if err := l.Close(); err != nil {
		return "", nil, err
	}
	if err := m.configure("serve.yaml", addr); err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, "docker-registry", "serve", filepath.Join(m.dir, "serve.yaml"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }
	for range 500 {
		if resp, err := http.Get("http://" + addr + "/v2/"); err == nil {
			_ = resp.Body.Close()
			return addr, stop, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	return "", nil, fmt.Errorf("docker-registry does not answer:\n%s", log.Bytes())
}
