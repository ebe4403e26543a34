// Package distribution runs the distribution project's registry, which most
// others are made of, for tests and measurements.
package distribution

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// Program is the registry's program, Debian's package of that name.
const Program = "docker-registry"

const config = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  cache: {blobdescriptor: inmemory}
  delete: {enabled: true}
http: {addr: %q}
`

// Start runs a registry that keeps its data in a directory, on a free port of
// loopback, until stop is called. It returns an error if the program is missing
// or does not answer.
func Start(data string) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = l.Addr().String() // free now, and will be a moment later
	file, err := os.CreateTemp("", "strake-registry-*.yaml")
	if err != nil {
		return "", nil, errors.Join(err, l.Close())
	}
	_, err = fmt.Fprintf(file, config, data, addr)
	var log bytes.Buffer
	cmd := exec.Command(Program, "serve", file.Name())
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := errors.Join(err, file.Close(), l.Close()); err != nil {
		return "", nil, errors.Join(err, os.Remove(file.Name()))
	}
	if err := cmd.Start(); err != nil {
		return "", nil, errors.Join(fmt.Errorf("a registry (Debian: %s): %w", Program, err), os.Remove(file.Name()))
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	stop = func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = os.Remove(file.Name())
	}
	for begin := time.Now(); time.Since(begin) < 20*time.Second; {
		if resp, err := http.Get("http://" + addr + "/v2/"); err == nil {
			return addr, stop, resp.Body.Close()
		}
		select {
		case <-ended:
			stop()
			return "", nil, fmt.Errorf("%s has ended:\n%s", Program, log.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	return "", nil, fmt.Errorf("%s does not answer:\n%s", Program, log.Bytes())
}
