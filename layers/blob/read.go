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
)

// maxBytes is the limit of Bytes: manifests, configurations and the like.
const maxBytes = 16 << 20

// Reader opens a blob. Reading to the end fails if the content does not have
// the digest; such a blob is removed so that the next one to want it fetches it
// again, and the error is ErrDamaged. The last bytes are only given once all are
// verified: whoever got as many as the blob has got the right ones. The error is
// ErrNotFound if it is not there or has another size (size < 0: any).
func (s *Store) Reader(d digest.Digest, size int64) (io.ReadCloser, error) {
	f, err := s.open(d, size)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &reader{s: s, d: d, f: f, hash: sha256.New(), left: fi.Size()}, nil
}

func (s *Store) open(d digest.Digest, size int64) (*os.File, error) {
	if err := check(d); err != nil {
		return nil, err
	}
	f, err := os.Open(s.Path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s, which is no regular file: %w", d, ErrNotFound)
	}
	if err == nil && size >= 0 && fi.Size() != size {
		err = fmt.Errorf("%s with %d bytes: %w", d, size, ErrNotFound)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Verifies reports whether what r gives, to its end, needs no verification: it
// is the blob d of a Store.
func Verifies(r io.Reader, d digest.Digest) bool {
	b, ok := r.(*reader)
	return ok && b.d == d || File(r, d) != nil
}

type reader struct {
	s    *Store
	d    digest.Digest
	f    *os.File
	hash hash.Hash
	left int64 // bytes not yet read
	err  error // what every Read returns from now on
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n := 0
	if r.left > 0 {
		if int64(len(p)) > r.left {
			p = p[:r.left]
		}
		var err error
		n, err = r.f.Read(p)
		r.hash.Write(p[:n])
		r.left -= int64(n)
		if err == io.EOF { // someone truncated it
			r.err = r.damaged()
			return 0, r.err
		}
		if err != nil {
			r.err = err
			return n, err
		}
	}
	if r.left == 0 {
		r.err = io.EOF
		if digest.NewDigest(digest.SHA256, r.hash) != r.d {
			r.err = r.damaged()
			return 0, r.err
		}
		if n == 0 {
			return 0, io.EOF
		}
	}
	return n, nil
}

func (r *reader) Close() error { return r.f.Close() }

// damaged removes the blob, unless it is another file by now.
func (r *reader) damaged() error {
	var err error = damagedError{r.d}
	mine, err1 := r.f.Stat()
	there, err2 := os.Lstat(r.s.Path(r.d))
	if err1 == nil && err2 == nil && os.SameFile(mine, there) {
		err = errors.Join(err, r.s.Remove(r.d))
	}
	return err
}

// Bytes reads a small blob (limit 16 MiB), verified.
func (s *Store) Bytes(d digest.Digest) ([]byte, error) {
	size, err := s.Stat(d)
	if err != nil {
		return nil, err
	}
	if size > maxBytes {
		return nil, fmt.Errorf("blob %s has %d bytes, more than the %d that are read at once", d, size, maxBytes)
	}
	r, err := s.Reader(d, size)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if size == 0 { // ReadFull did not look
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			return nil, err
		}
	}
	return b, nil
}
