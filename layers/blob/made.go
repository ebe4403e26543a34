package blob

import (
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
)

// Made is a blob that this process has written, and hashed as it did: its file,
// as long as nobody touches it, need not be hashed again.
type Made struct {
	s  *Store
	d  digest.Digest
	fi fs.FileInfo
}

// Open opens the blob. It is verified as by [Store.Reader] if its file is not
// what it was.
func (m *Made) Open() (io.ReadCloser, error) {
	f, err := m.s.open(m.d, m.fi.Size())
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err == nil && os.SameFile(fi, m.fi) && fi.ModTime().Equal(m.fi.ModTime()) {
		return madeReader{f, m.d}, nil
	}
	f.Close()
	return m.s.Reader(m.d, m.fi.Size())
}

// madeReader reads a file that needs no verification.
type madeReader struct {
	*os.File
	d digest.Digest
}

// File returns the file that r reads if it is the blob d and need not be
// verified: it may be copied in other ways than by Read. Else it is nil.
func File(r io.Reader, d digest.Digest) *os.File {
	if m, ok := r.(madeReader); ok && m.d == d {
		return m.File
	}
	return nil
}
