package blob

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// growth is what a Writer and its followers share.
type growth struct {
	mu      sync.Mutex
	changed sync.Cond
	n       int64 // bytes written
	over    bool
	// digest is set once the blob is committed.
	digest digest.Digest
}

func newGrowth() *growth {
	g := &growth{}
	g.changed.L = &g.mu
	return g
}

func (g *growth) set(n int64, over bool, d digest.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return
	}
	g.n, g.over, g.digest = n, over, d
	g.changed.Broadcast()
}

// errGivenUp: a blob that was being followed was not finished.
var errGivenUp = errors.New("the blob was given up")

// Follower reads a blob while it is written. Its methods may be called from
// several goroutines.
type Follower struct {
	g      *growth
	f      *os.File
	off    int64 // guarded by g.mu, like
	closed bool
}

// Follow returns a reader of the blob, from its first byte. It waits for what is
// not yet written, keeps nobody from writing, and must be closed.
func (w *Writer) Follow() (*Follower, error) {
	if w.f == nil {
		return nil, fs.ErrClosed
	}
	f, err := os.Open(w.f.Name())
	if err != nil {
		return nil, err
	}
	return &Follower{g: w.growth, f: f}, nil
}

// Read returns io.EOF at the end of a blob that was committed: then Blob tells
// what was read.
func (f *Follower) Read(p []byte) (int, error) {
	off, n := f.next(len(p))
	if n == 0 {
		return 0, f.end(len(p))
	}
	n, err := f.f.ReadAt(p[:n], off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // somebody truncated it
	}
	f.g.mu.Lock()
	f.off = off + int64(n)
	f.g.mu.Unlock()
	return n, err
}

// next waits for bytes and returns where the next ones are, and how many of at
// most most.
func (f *Follower) next(most int) (off int64, n int) {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	for f.off == f.g.n && !f.g.over && !f.closed && most > 0 {
		f.g.changed.Wait()
	}
	if f.closed {
		return f.off, 0
	}
	return f.off, int(min(int64(most), f.g.n-f.off))
}

func (f *Follower) end(most int) error {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	switch {
	case f.closed:
		return fs.ErrClosed
	case most == 0:
		return nil
	case f.g.digest == "":
		return errGivenUp
	}
	return io.EOF
}

// Wait waits until the blob has at least n bytes, and reports whether it has.
// It returns false when the blob is over before that, or f is closed.
func (f *Follower) Wait(n int64) bool {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	for f.g.n < n && !f.g.over && !f.closed {
		f.g.changed.Wait()
	}
	return f.g.n >= n && !f.closed
}

// Blob returns digest and size of the blob if it is committed, else "".
func (f *Follower) Blob() (digest.Digest, int64) {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	return f.g.digest, f.g.n
}

// Close ends every call that waits. It may be called twice.
func (f *Follower) Close() error {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	f.g.changed.Broadcast()
	return f.f.Close()
}
