package linux

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox"
)

// stdio connects a process's standard streams. They are always pipes: a file of
// the caller's could be reopened by the process with other rights.
type stdio struct {
	child [3]int // the process's ends; -1: none
	ends  fds    // the same, to be closed once the process has them
	in    *os.File
	out   []*os.File
	done  sync.WaitGroup
	mu    sync.Mutex
	errs  []error
}

// newStdio makes the pipes, owned by the process's user so that /dev/stdout
// can be opened.
func newStdio(p sandbox.Process) (_ *stdio, err error) {
	s := &stdio{child: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			s.ends.close()
			s.close()
		}
	}()
	if p.Terminal != nil {
		return s, nil
	}
	user := p.Spec.Process.User
	pipe := func(child int) (parent int, err error) {
		var fd [2]int
		if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
			return -1, err
		}
		mine, theirs := fd[0], fd[1]
		if child == 0 {
			mine, theirs = theirs, mine
		}
		s.child[child] = s.ends.add(theirs)
		// Not possible for users without a mapping, who can't run either.
		_ = unix.Fchown(theirs, int(user.UID), int(user.GID))
		return mine, unix.SetNonblock(mine, true)
	}
	if p.Stdin != nil {
		fd, err := pipe(0)
		if err != nil {
			return nil, err
		}
		s.in = os.NewFile(uintptr(fd), "stdin")
	}
	for i, w := range []io.Writer{p.Stdout, p.Stderr} {
		if w == nil {
			continue
		}
		if i == 1 && same(p.Stdout, p.Stderr) {
			// One pipe keeps the order of what is written.
			s.child[2] = s.child[1]
			continue
		}
		fd, err := pipe(i + 1)
		if err != nil {
			return nil, err
		}
		s.out = append(s.out, os.NewFile(uintptr(fd), "output"))
	}
	return s, nil
}

// same compares writers, which may be of uncomparable types.
func same(a, b io.Writer) (eq bool) {
	defer func() { _ = recover() }()
	return a != nil && a == b
}

// start begins copying.
func (s *stdio) start(p sandbox.Process) {
	s.ends.close()
	if s.in != nil {
		// Not waited for: the reader may block for ever.
		go func(in *os.File) {
			_, _ = io.Copy(in, p.Stdin)
			_ = in.Close()
		}(s.in)
	}
	writers := []io.Writer{p.Stdout, p.Stderr}
	if p.Stdout == nil {
		writers = writers[1:]
	}
	for i, f := range s.out {
		s.done.Go(func() {
			if err := drain(writers[i], f); err != nil {
				s.mu.Lock()
				s.errs = append(s.errs, err)
				s.mu.Unlock()
			}
		})
	}
}

// drain copies until the end, or until finish, from when on it copies what is
// there. It reads on when w fails, lest the process block or die of it.
func drain(w io.Writer, f *os.File) error {
	buf := make([]byte, 32<<10)
	var failed error
	write := func(b []byte) {
		if failed == nil && len(b) > 0 {
			_, failed = w.Write(b)
		}
	}
	for {
		n, err := f.Read(buf)
		write(buf[:n])
		if errors.Is(failed, unix.EPIPE) {
			return f.Close()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return failed
		}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return errors.Join(failed, err)
	}
	err = raw.Control(func(fd uintptr) {
		for {
			n, err := retry(func() (int, error) { return unix.Read(int(fd), buf) })
			if n <= 0 || err != nil {
				return
			}
			write(buf[:n])
		}
	})
	return errors.Join(failed, err)
}

// finish ends copying. All processes that could write are gone; a descriptor
// that one of them sent elsewhere must not keep us waiting.
func (s *stdio) finish() error {
	for _, f := range s.out {
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}
	s.done.Wait()
	s.close()
	return errors.Join(s.errs...)
}

func (s *stdio) close() {
	if s.in != nil {
		_ = s.in.Close()
	}
	for _, f := range s.out {
		_ = f.Close()
	}
}
