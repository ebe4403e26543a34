package linux

import (
	"errors"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// testScript writes to a pipe, by way of results and branches, and fails at the
// end.
func testScript(t *testing.T, out int) (s *script, ignored, skipped *inst) {
	t.Helper()
	s, err := newScript(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	dup := s.add("dup", unix.SYS_DUP, out)
	s.add("write", unix.SYS_WRITE, ref{dup}, "one", 3)
	ignored = s.add("", unix.SYS_CLOSE, -1)
	zero := s.add("close", unix.SYS_CLOSE, ref{dup})
	skipped = s.add("write", unix.SYS_WRITE, out, "skipped", 7)
	zero.zero = s.add("write", unix.SYS_WRITE, out, "two", 3)
	s.add("the last one", unix.SYS_CHDIR, "/no/such/directory")
	s.add("write", unix.SYS_WRITE, out, "never", 5)
	s.seal()
	return s, ignored, skipped
}

func TestScript(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *script)
	}{
		{"interpreted", func(_ *testing.T, s *script) { s.interpret() }},
		{"assembly", func(t *testing.T, s *script) {
			if !direct {
				t.Skip("SKIPPED: none for this processor")
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			w := &warden{script: s}
			pid, pidfd, err := w.spawn()
			if errors.Is(err, unix.EPERM) {
				t.Skip("SKIPPED: no right to make a pid namespace")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pidfd)
			var ws unix.WaitStatus
			if _, err := retry(func() (int, error) { return unix.Wait4(pid, &ws, 0, nil) }); err != nil {
				t.Fatal(err)
			}
			if ws.ExitStatus() != 1 {
				t.Errorf("status %v", ws)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var pipe [2]int
			if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pipe[0])
			defer unix.Close(pipe[1])
			s, ignored, skipped := testScript(t, pipe[1])
			tt.run(t, s)
			buf := make([]byte, 100)
			n, err := unix.Read(pipe[0], buf)
			if got := string(buf[:max(n, 0)]); got != "onetwo" {
				t.Errorf("wrote %q, error %v", got, err)
			}
			var se *scriptError
			if err := s.err(); !errors.As(err, &se) || se.What != "the last one" || se.Err != unix.ENOENT {
				t.Errorf("error %v", err)
			}
			if ignored.errno() != unix.EBADF || skipped.result != unrun {
				t.Errorf("ignored %v, skipped %x", ignored.errno(), skipped.result)
			}
		})
	}
}

// The assembly knows this layout.
func TestInstLayout(t *testing.T) {
	t.Parallel()
	var in inst
	for name, got := range map[string][2]uintptr{
		"nr":       {unsafe.Offsetof(in.nr), 0},
		"args":     {unsafe.Offsetof(in.args), 8},
		"indirect": {unsafe.Offsetof(in.indirect), 56},
		"result":   {unsafe.Offsetof(in.result), 64},
		"ok":       {unsafe.Offsetof(in.ok), 72},
		"zero":     {unsafe.Offsetof(in.zero), 80},
		"fail":     {unsafe.Offsetof(in.fail), 88},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is at %d, want %d", name, got[0], got[1])
		}
	}
}
