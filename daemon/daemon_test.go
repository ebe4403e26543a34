package daemon

import (
	"path/filepath"
	"testing"
)

func TestListen(t *testing.T) {
	t.Parallel()
	socket := "unix://" + filepath.Join(t.TempDir(), "dir", "sock")
	for _, addr := range []string{socket, "tcp://127.0.0.1:0", "tcp://localhost:0", "tcp://[::1]:0"} {
		l, err := Listen(addr)
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		defer l.Close()
	}
	if l, err := Listen(socket); err == nil {
		l.Close()
		t.Error("two daemons on one socket")
	}
	for _, addr := range []string{"tcp://0.0.0.0:0", "tcp://:0", "tcp://192.0.2.1:0", "tcp://nonsense", "pipe://x", "/run/x"} {
		if l, err := Listen(addr); err == nil {
			l.Close()
			t.Errorf("%s was listened on", addr)
		}
	}
}
