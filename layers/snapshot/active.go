package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
	"github.com/strake-build/strake/state"
)

// Active is a writable file system on top of a tree.
type Active struct {
	// Mount is what to mount as its root.
	Mount Mount

	store *Store
	lower *merge.Stack
	work  string // empty when it is gone
}

// Prepare makes a writable child of the tree.
func (s *Store) Prepare(ctx context.Context, t layers.Tree, src Sources) (*Active, error) {
	if err := s.ensureAll(ctx, t, src); err != nil {
		return nil, err
	}
	lower := s.stack(t)
	work, err := s.root.TempDir("active")
	if err != nil {
		return nil, err
	}
	m, err := s.driver.Prepare(ctx, lower, work)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare a file system: %w", err), state.RemoveAll(work))
	}
	return &Active{Mount: m, store: s, lower: lower, work: work}, nil
}

// Commit makes a layer of what was written; the Active is gone then. stubs are
// paths (relative) that were made as mount points: they are removed first if
// they are still empty and not in the tree below. A directory that differs from
// the one below in nothing but its time, and has nothing new in it, is not in
// the layer.
func (a *Active) Commit(ctx context.Context, stubs []string) (id layers.ID, err error) {
	if a.work == "" {
		return "", errors.New("commit a file system: it is gone")
	}
	defer func() { err = errors.Join(err, a.Discard()) }()
	if err := a.removeStubs(stubs); err != nil {
		return "", fmt.Errorf("remove mount points: %w", err)
	}
	s := a.store
	dir, err := s.root.TempDir("layer")
	if err != nil {
		return "", err
	}
	defer state.RemoveAll(dir)
	fs := filepath.Join(dir, fsDir)
	if err := s.driver.Commit(ctx, a.Mount, a.lower, a.work, fs); err != nil {
		return "", fmt.Errorf("commit a file system: %w", err)
	}
	size, err := contentSize(fs)
	if err != nil {
		return "", err
	}
	l := Layer{ID: newID(), Dir: true, Size: size, Created: time.Now().UTC()}
	if err := s.publish(dir, l); err != nil {
		return "", err
	}
	if a.Mount.Upper != "" {
		// What is left is little, and nobody needs to wait for it.
		s.root.RemoveLater(a.work)
		a.work = ""
	}
	return l.ID, nil
}

// removeStubs removes mount points, those inside others first.
func (a *Active) removeStubs(stubs []string) error {
	if len(stubs) == 0 {
		return nil
	}
	written := a.Mount.Upper
	if written == "" {
		written = a.Mount.Bind
	}
	clean := make([]string, len(stubs))
	for i, stub := range stubs {
		clean[i] = strings.TrimPrefix(path.Clean("/"+stub), "/")
	}
	slices.SortFunc(clean, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, stub := range clean {
		if stub == "" {
			continue
		}
		_, err := a.lower.Lookup(stub)
		if err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := removeIfEmpty(written, stub); err != nil {
			return err
		}
	}
	return nil
}

// removeIfEmpty removes a file or directory that has nothing in it. Symlinks on
// the way are not followed: a step may have put them there.
func removeIfEmpty(root, path string) error {
	for parent := range parentsOf(path) {
		if !isDir(filepath.Join(root, parent)) {
			return nil
		}
	}
	host := filepath.Join(root, path)
	st, err := layerdir.Stat(host)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case st.Type == layers.Regular && st.Size == 0:
		if err := unix.Unlink(host); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	case st.Type == layers.Dir:
		if err := unix.Rmdir(host); err != nil && err != unix.ENOTEMPTY {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// Discard removes what was written. It may be called after Commit.
func (a *Active) Discard() error {
	if a.work == "" {
		return nil
	}
	work := a.work
	a.work = ""
	return state.RemoveAll(work)
}
