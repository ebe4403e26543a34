package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
)

// writeContent makes the file host of what r has, which must be the content of
// e.
func writeContent(ctx context.Context, host string, e layers.Entry, r io.Reader) (err error) {
	f, err := os.OpenFile(host, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(reader{ctx, r}, e.Size+1))
	if err != nil {
		return err
	}
	if n != e.Size {
		return fmt.Errorf("content changed: it has not the %d bytes it had", e.Size)
	}
	if d := hexDigest(h.Sum(nil)); e.Digest != "" && d != e.Digest {
		return fmt.Errorf("content changed: it has digest %s, not %s", d, e.Digest)
	}
	return nil
}

// linker makes files of files that are on the disk already.
type linker struct {
	s        *Store
	hostPath func(layers.Entry) (string, error)

	mu     sync.Mutex
	linked map[inode]bool
}

type inode struct{ dev, ino uint64 }

// file is layerdir.Maker.File.
func (l *linker) file(ctx context.Context, e layers.Entry, host string) (attrs bool, err error) {
	if staged := e.Origin.Staged; staged != "" {
		return true, l.move(ctx, e, staged, host)
	}
	src, err := l.hostPath(e)
	if err != nil {
		return false, err
	}
	ours := strings.HasPrefix(filepath.Clean(src), l.s.dir+"/")
	if ours {
		ok, err := l.link(e, src, host)
		if err != nil || ok {
			return false, err
		}
	}
	return true, l.copy(ctx, e, src, host, ours)
}

// link links the file src of another layer to host if it is all that e wants.
// No two entries get the same file: they would become hard links.
func (l *linker) link(e layers.Entry, src, host string) (bool, error) {
	st, err := layerdir.Stat(src)
	if err != nil {
		return false, err
	}
	want := e
	if want.ModTime.IsZero() {
		want.ModTime = st.ModTime
	}
	if len(st.Internal) > 0 || !layerdir.Same(st.Entry, want) {
		return false, nil
	}
	l.mu.Lock()
	n := inode{st.Dev, st.Ino}
	taken := l.linked[n]
	l.linked[n] = true
	l.mu.Unlock()
	if taken {
		return false, nil
	}
	err = os.Link(src, host)
	for _, no := range []error{syscall.EMLINK, syscall.EXDEV, syscall.EPERM, syscall.ENOTSUP} {
		if errors.Is(err, no) {
			return false, nil
		}
	}
	return err == nil, err
}

// copy copies src. Files of layers have the content they are said to have;
// others may have changed.
func (l *linker) copy(ctx context.Context, e layers.Entry, src, host string, trusted bool) error {
	if err := layerdir.Copy(host, src); err != nil {
		return err
	}
	return l.verify(ctx, e, host, trusted)
}

// move moves a file that belongs to e alone.
func (l *linker) move(ctx context.Context, e layers.Entry, staged, host string) error {
	st, err := layerdir.Stat(staged)
	if err != nil {
		return err
	}
	if st.Type != layers.Regular {
		return fmt.Errorf("%s: not a regular file", staged)
	}
	err = os.Rename(staged, host)
	if errors.Is(err, syscall.EXDEV) {
		if err := layerdir.Copy(host, staged); err != nil {
			return err
		}
		err = os.Remove(staged)
	}
	if err != nil {
		return err
	}
	// Who staged it has hashed it, and nobody else can write to it.
	return l.verify(ctx, e, host, true)
}

func (l *linker) verify(ctx context.Context, e layers.Entry, host string, trusted bool) error {
	st, err := layerdir.Stat(host)
	if err != nil {
		return err
	}
	if st.Size != e.Size {
		return fmt.Errorf("content changed: it has %d bytes, not %d", st.Size, e.Size)
	}
	if trusted || e.Digest == "" {
		return nil
	}
	d, err := hashFile(ctx, host)
	if err != nil {
		return err
	}
	if d != e.Digest {
		return fmt.Errorf("content changed: it has digest %s, not %s", d, e.Digest)
	}
	return nil
}
