package gc

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// autoEvery is how often Auto looks: to measure a store takes time.
const autoEvery = 10 * time.Minute

// stamp is the file whose time tells when Auto looked last.
const stamp = "gc-stamp"

// Auto prunes if it is time to: ten minutes after the last time, or at once if
// less space is free than MinFree asks for. Processes that want it at the same
// time don't wait for each other.
func (s *Store) Auto(ctx context.Context, o Options) ([]Entry, error) {
	scarce, err := s.scarce(o)
	if err != nil {
		return nil, err
	}
	path := s.Root.Path(stamp)
	if fi, err := os.Stat(path); err == nil && time.Since(fi.ModTime()) < autoEvery && !scarce {
		return nil, nil
	}
	if err := s.Root.WriteFile(path, nil, 0o600, false); err != nil && !noSpace(err) {
		return nil, err
	}
	return s.Prune(ctx, o)
}

// scarce reports whether less is free than was asked for.
func (s *Store) scarce(o Options) (bool, error) {
	if o.MinFree <= 0 {
		return false, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.Root.Dir(), &st); err != nil {
		return false, err
	}
	return int64(st.Bavail)*st.Bsize < o.MinFree, nil
}
