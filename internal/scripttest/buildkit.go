package scripttest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// startBuildKit runs BuildKit's daemon with an empty store.
func startBuildKit(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "buildkitd VAR REGISTRY")
	dir, err := os.MkdirTemp("", "strake-buildkit-")
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	config, addr := filepath.Join(dir, "config.toml"), "unix://"+filepath.Join(dir, "socket")
	ts.Check(os.WriteFile(config, fmt.Appendf(nil, "[registry.%q]\n  http = true\n", args[1]), 0o600))
	// Its way of making file systems that works everywhere.
	cmd := exec.Command(filepath.Join(clientDir(), "buildkitd"), "--root", filepath.Join(dir, "root"), "--addr", addr, "--config", config,
		"--containerd-worker=false", "--oci-worker-snapshotter=native", "--oci-worker-net=host")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	ts.Check(cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	for begin := time.Now(); exec.Command(filepath.Join(clientDir(), "buildctl"), "--addr", addr, "debug", "workers").Run() != nil; {
		select {
		case <-ended:
			ts.Fatalf("buildkitd has ended:\n%s", log.Bytes())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(begin) > 30*time.Second {
			ts.Fatalf("buildkitd does not answer")
		}
	}
	ts.Setenv(args[0], addr)
}
