package blob

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Put stores the bytes of r if they have the digest (if not empty) and size (if
// not negative) given, and returns what they have. Not more than size bytes and
// one are read.
func (s *Store) Put(r io.Reader, d digest.Digest, size int64) (digest.Digest, int64, error) {
	if d != "" {
		if err := check(d); err != nil {
			return "", 0, err
		}
	}
	w, err := s.Create()
	if err != nil {
		return "", 0, err
	}
	defer w.Close()
	if size >= 0 {
		r = io.LimitReader(r, size+1)
	}
	// The wrapper hides r's WriteTo, which may write in small pieces.
	n, err := io.CopyBuffer(w, struct{ io.Reader }{r}, make([]byte, 256<<10))
	if err != nil {
		return "", 0, err
	}
	got := w.digest()
	switch {
	case size >= 0 && n > size:
		return "", 0, fmt.Errorf("more than the %d bytes that were announced", size)
	case size >= 0 && n < size:
		return "", 0, fmt.Errorf("%d bytes instead of the %d that were announced: %w", n, size, io.ErrUnexpectedEOF)
	case d != "" && got != d:
		return "", 0, fmt.Errorf("content has digest %s, not %s", got, d)
	}
	return w.Commit()
}

// Create begins a blob of unknown digest.
func (s *Store) Create() (*Writer, error) {
	f, err := s.temp("blob")
	if err != nil {
		return nil, err
	}
	return &Writer{s: s, f: f, hash: sha256.New(), growth: newGrowth()}, nil
}

// Writer takes the bytes of a new blob.
type Writer struct {
	s    *Store
	f    *os.File // nil when committed or closed
	hash hash.Hash
	n    int64
	err  error // of the first Write that failed
	made *Made

	growth *growth
}

// Write hashes and stores p.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.f == nil {
		return 0, fs.ErrClosed
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.n += int64(n)
	w.err = err
	w.growth.set(w.n, false, "")
	return n, err
}

func (w *Writer) digest() digest.Digest { return digest.NewDigest(digest.SHA256, w.hash) }

// Commit gives the blob its name. An equal blob that is already there stays.
// It fails if a Write has failed.
func (w *Writer) Commit() (digest.Digest, int64, error) {
	if w.err != nil {
		return "", 0, w.err
	}
	if w.f == nil {
		return "", 0, fs.ErrClosed
	}
	d := w.digest()
	path := w.s.Path(d)
	// A file of the right size is taken for the blob. If it is damaged its
	// next reader will find that out; one of another size certainly is.
	if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() && fi.Size() == w.n {
		w.s.remember(d)
		w.growth.set(w.n, true, d)
		return d, w.n, w.Close()
	} else if err == nil && fi.IsDir() {
		_ = os.RemoveAll(path)
	}
	f := w.f
	w.f = nil
	err := f.Chmod(0o644) // temporary files are private
	var fi fs.FileInfo
	if err == nil {
		fi, err = f.Stat()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		w.growth.set(w.n, true, "")
		return "", 0, errors.Join(err, os.Remove(f.Name()))
	}
	w.s.remember(d)
	w.growth.set(w.n, true, d)
	w.made = &Made{w.s, d, fi}
	return d, w.n, nil
}

// Made is the file that Commit made; nil if an equal blob was there already.
func (w *Writer) Made() *Made { return w.made }

// Close discards the blob unless it was committed. It may be called twice.
func (w *Writer) Close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	w.growth.set(w.n, true, "")
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func (s *Store) remember(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsynced[d] = struct{}{}
}

// syncOneByOne is the number of blobs up to which Sync syncs each. It goes for
// the whole file system beyond that: one call then, but it also writes what
// others have not yet written.
const syncOneByOne = 16

// Sync makes the blobs durable that were put by this Store since the last Sync,
// those among them that were there already, and the directory. A blob that was
// removed meanwhile is passed over.
func (s *Store) Sync() error {
	s.mu.Lock()
	todo := s.unsynced
	s.unsynced = map[digest.Digest]struct{}{}
	s.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	err := s.sync(todo)
	if err != nil {
		for d := range todo {
			s.remember(d)
		}
	}
	return err
}

func (s *Store) sync(blobs map[digest.Digest]struct{}) error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if len(blobs) > syncOneByOne {
		if err := unix.Syncfs(int(dir.Fd())); err != nil {
			return fmt.Errorf("sync %s: %w", s.dir, err)
		}
		return nil
	}
	// At once: the file system commits to its journal for all together.
	var g errgroup.Group
	g.Go(dir.Sync)
	for d := range blobs {
		g.Go(func() error {
			if err := syncFile(s.Path(d)); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
	}
	return g.Wait()
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
