package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
	"github.com/strake-build/strake/state"
)

// Ensure makes the directories of the tree's layers, downloading and unpacking
// in parallel, and returns their paths, the lowest first, those of layers that
// come several times only where they come last. Each layer is unpacked once however many processes want it. A blob that turns out to be
// damaged is an error.
func (s *Store) Ensure(ctx context.Context, t layers.Tree, src Sources) ([]string, error) {
	if err := s.ensureAll(ctx, t, src); err != nil {
		return nil, err
	}
	paths := make([]string, len(t))
	for i, id := range t {
		paths[i] = s.path(id, fsDir)
	}
	return merge.Topmost(paths), nil
}

func (s *Store) ensureAll(ctx context.Context, t layers.Tree, src Sources) error {
	if _, err := s.Lease(t); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	started := map[layers.ID]bool{}
	for _, id := range t {
		if started[id] || s.isReady(id) {
			continue
		}
		started[id] = true
		g.Go(func() error { return s.ensure(gctx, id, src) })
	}
	return g.Wait()
}

func (s *Store) isReady(id layers.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[id].dir
}

// ensure makes one layer's directory, unless it is there or another goroutine
// makes it: then it waits.
func (s *Store) ensure(ctx context.Context, id layers.ID, src Sources) error {
	for {
		s.mu.Lock()
		if s.known[id].dir {
			s.mu.Unlock()
			return nil
		}
		wait := s.making[id]
		done := make(chan struct{})
		if wait == nil {
			s.making[id] = done
		}
		s.mu.Unlock()
		if wait == nil {
			err := s.ensureAlone(ctx, id, src)
			s.mu.Lock()
			delete(s.making, id)
			s.mu.Unlock()
			close(done)
			return err
		}
		select {
		case <-wait: // made, or left to us
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// UnpackError tells that a layer's directory could not be made.
type UnpackError struct {
	ID  layers.ID
	Err error
}

func (e *UnpackError) Error() string { return fmt.Sprintf("layer %s: %v", e.ID, e.Err) }

// Unwrap returns what went wrong.
func (e *UnpackError) Unwrap() error { return e.Err }

// ensureAlone makes a layer's directory, unless another process does.
func (s *Store) ensureAlone(ctx context.Context, id layers.ID, src Sources) error {
	l, err := s.Layer(id)
	if err != nil || l.Dir {
		return err
	}
	unlock, err := s.root.Lock(ctx, "unpack-"+string(id), true)
	if err != nil {
		return err
	}
	defer unlock()
	select {
	case s.layers <- struct{}{}:
		defer func() { <-s.layers }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if l, err = s.Layer(id); err != nil || l.Dir {
		return err
	}
	tmp, err := s.root.TempDir("unpack")
	if err != nil {
		return err
	}
	defer state.RemoveAll(tmp)
	size, err := s.makeDir(ctx, l, filepath.Join(tmp, fsDir), src)
	if err != nil && ctx.Err() == nil {
		return &UnpackError{id, err}
	}
	if err != nil {
		return err
	}
	return s.putDir(id, tmp, size)
}

// makeDir makes the directory dir of what a layer is made of: its recipe, or
// one of its blobs if that fails.
func (s *Store) makeDir(ctx context.Context, l Layer, dir string, src Sources) (size int64, err error) {
	var errs []error
	failed := func(err error) bool {
		errs = append(errs, err, state.RemoveAll(dir))
		return ctx.Err() != nil
	}
	if l.Recipe {
		err := s.follow(ctx, l.ID, dir, src)
		if err == nil || failed(err) {
			return l.Size, errors.Join(errs...)
		}
	}
	if !l.Recipe && src.Blob == nil {
		return 0, errors.New("nobody has its blob")
	}
	for _, desc := range l.Blobs {
		if src.Blob == nil {
			break
		}
		err := s.unpack(ctx, l, desc, dir, src)
		if err == nil {
			return contentSize(dir)
		}
		if failed(fmt.Errorf("unpack blob %s: %w", desc.Digest, err)) {
			break
		}
	}
	return 0, errors.Join(errs...)
}

// follow makes the directory dir of a layer's recipe.
func (s *Store) follow(ctx context.Context, id layers.ID, dir string, src Sources) error {
	r, err := s.recipe(id)
	if err != nil {
		return err
	}
	file := func(ctx context.Context, e layers.Entry, host string) (bool, error) {
		content, err := sourceFile(ctx, id, e, src)
		if err != nil {
			return false, err
		}
		return true, errors.Join(writeContent(ctx, host, e, content), content.Close())
	}
	return s.maker(dir, file).Make(ctx, r.entries)
}

// unpack unpacks a blob into the new directory dir.
func (s *Store) unpack(ctx context.Context, l Layer, desc ocispec.Descriptor, dir string, src Sources) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	blob, err := src.Blob(ctx, l, desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	err = s.apply(ctx, l, blob, dir)
	var errno syscall.Errno
	if err == nil || ctx.Err() != nil || errors.As(err, &errno) {
		return err
	}
	// The content is bad. A blob that was damaged in the store is noticed, and
	// removed, when it has been read to its end.
	_, rerr := io.Copy(io.Discard, reader{ctx, blob})
	return errors.Join(err, rerr)
}

// apply unpacks a blob's bytes into dir and verifies what they unpack to.
func (s *Store) apply(ctx context.Context, l Layer, blob io.Reader, dir string) (err error) {
	tar, err := compress.NewReader(reader{ctx, blob})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	h := sha256.New()
	if err := layers.Apply(ctx, dir, io.TeeReader(tar, h), s.applyOptions); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	if d := hexDigest(h.Sum(nil)); d != l.DiffID {
		return fmt.Errorf("its content has digest %s, not %s", d, l.DiffID)
	}
	return nil
}

// contentSize is the size of the files in a layer directory.
func contentSize(dir string) (int64, error) {
	var n int64
	for e, err := range layers.Walk(dir) {
		if err != nil {
			return 0, err
		}
		if e.Type == layers.Regular {
			n += e.Size
		}
	}
	return n, nil
}

// putDir makes tmp/fs the directory of a layer, and says so in layer.json.
func (s *Store) putDir(id layers.ID, tmp string, size int64) error {
	unlock, err := s.lock(id)
	if err != nil {
		return err
	}
	l, err := s.load(id)
	if err == nil && !l.Dir {
		// A process that was killed may have come as far as this.
		if isDir(s.path(id, fsDir)) {
			err = os.Rename(s.path(id, fsDir), filepath.Join(tmp, "stale"))
		}
		if err == nil {
			err = os.Rename(filepath.Join(tmp, fsDir), s.path(id, fsDir))
		}
	}
	unlock()
	if err != nil {
		return err
	}
	err = s.Update(id, func(l *Layer) {
		l.Dir = true
		l.Size = size
	})
	if err == nil {
		s.mu.Lock()
		k := s.known[id]
		k.dir = true
		s.known[id] = k
		s.mu.Unlock()
	}
	return err
}
