package remotetest

import (
	"os"
	"os/exec"
	"syscall"
)

// Start starts the program of a real server, which stop kills.
func Start(cmd *exec.Cmd) (stop func() error, err error) {
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		err := cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}, nil
}
