package scripttest

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// startDistribution runs Debian's docker-registry.
func startDistribution(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "distribution VAR")
	dir, err := os.MkdirTemp("", "strake-distribution-")
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	// The port is free now, and will be a moment later.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	addr := l.Addr().String()
	ts.Check(l.Close())
	config := filepath.Join(dir, "config.yml")
	ts.Check(os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\nhttp: {addr: %s}\n", dir, addr), 0o600))
	cmd := exec.Command("docker-registry", "serve", config)
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
		}
		_ = cmd.Wait()
	}()
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for begin := time.Now(); ; {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			break
		}
		select {
		case <-ended:
			ts.Fatalf("docker-registry has ended")
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(begin) > 20*time.Second {
			ts.Fatalf("docker-registry does not answer: %v", err)
		}
	}
	ts.Setenv(args[0], addr)
}
