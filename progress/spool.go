package progress

import (
	"errors"
	"io"
	"os"
	"sync"
)

// spool is a writer that never makes its caller wait for the one behind it.
// What that one has not taken yet is kept in memory, and beyond spoolMemory in
// a file that has no name.
type spool struct {
	w   io.Writer
	dir string // of the file; "" is the system's

	mu     sync.Mutex
	wake   *sync.Cond
	mem    []byte
	file   *os.File
	read   int64 // of the file
	wrote  int64 // to the file
	closed bool
	err    error // of w; nothing is written after it
	ended  chan struct{}
}

// spoolMemory bounds what is kept in memory.
const spoolMemory = 1 << 20

func newSpool(w io.Writer, dir string) *spool {
	s := &spool{w: w, dir: dir, ended: make(chan struct{})}
	s.wake = sync.NewCond(&s.mu)
	go s.drain()
	return s
}

// Write takes p. Errors of the writer behind it come from Close.
func (s *spool) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(p) == 0 || s.err != nil || s.closed {
		return len(p), nil
	}
	if s.wrote == s.read && len(s.mem)+len(p) <= spoolMemory {
		s.mem = append(s.mem, p...)
		s.wake.Signal()
		return len(p), nil
	}
	if err := s.spill(p); err != nil {
		// No disk to keep it on: this one time the caller does wait.
		for (len(s.mem) > 0 || s.read < s.wrote) && s.err == nil {
			s.wake.Wait()
		}
		s.mem = append(s.mem, p...)
	}
	s.wake.Broadcast()
	return len(p), nil
}

func (s *spool) spill(p []byte) error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, ".spool-*")
		if err != nil {
			return err
		}
		if err := os.Remove(f.Name()); err != nil {
			return errors.Join(err, f.Close())
		}
		s.file = f
	}
	n, err := s.file.WriteAt(p, s.wrote)
	if err != nil {
		return err // the next one writes over the torn part
	}
	s.wrote += int64(n)
	return nil
}

// drain writes to w until the spool is closed and empty. Memory is older than
// the file, always.
func (s *spool) drain() {
	defer close(s.ended)
	var buf []byte
	for {
		s.mu.Lock()
		for len(s.mem) == 0 && s.read == s.wrote && !s.closed {
			s.wake.Wait()
		}
		switch {
		case len(s.mem) > 0:
			buf, s.mem = s.mem, buf[:0]
			s.wake.Broadcast()
		case s.read < s.wrote:
			buf = append(buf[:0], make([]byte, min(s.wrote-s.read, 64<<10))...)
			if _, err := s.file.ReadAt(buf, s.read); err != nil {
				s.err = err
			}
			if s.read += int64(len(buf)); s.read == s.wrote {
				s.read, s.wrote = 0, 0
				if err := s.file.Truncate(0); err != nil {
					s.err = err
				}
				s.wake.Broadcast()
			}
		default: // closed
			s.mu.Unlock()
			return
		}
		failed := s.err != nil
		s.mu.Unlock()
		if !failed {
			if _, err := s.w.Write(buf); err != nil {
				s.mu.Lock()
				s.err = err
				s.mem, s.read, s.wrote = nil, 0, 0
				s.wake.Broadcast()
				s.mu.Unlock()
			}
		}
		if cap(buf) > 2*spoolMemory {
			buf = nil
		}
	}
}

// Close waits until all is written and returns the first error.
func (s *spool) Close() error {
	s.mu.Lock()
	s.closed = true
	s.wake.Broadcast()
	s.mu.Unlock()
	<-s.ended
	if s.file != nil {
		return errors.Join(s.err, s.file.Close())
	}
	return s.err
}
