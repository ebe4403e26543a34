package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/state"
)

// Lock waits until nobody else, in this process or another, runs the step of
// this key, and keeps others from it until unlock. The caller looks the key up
// again then. If ctx ends first, the error is its cause.
func (s *Store) Lock(ctx context.Context, k Key) (unlock func(), err error) {
	i := recordID(k)
	path := filepath.Join(s.dir, "locks", hex.EncodeToString(i[:]))
	begun := time.Now()
	for {
		unlock, err := tryLock(path)
		if unlock != nil || err != nil {
			return unlock, err
		}
		// There is no waiting for a file lock that a context could end. The
		// lock is held while a step runs: look often at first, then less.
		wait := min(max(time.Since(begun)/8, 200*time.Microsecond), 10*time.Millisecond)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// tryLock locks the file at path; unlock is nil if somebody else has. The file
// is removed by unlock, so that there are no more files than locks: a lock is
// good only if its file still has the name when it is taken.
func tryLock(path string) (unlock func(), err error) {
	f, err := state.OpenFile(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
	case unix.EWOULDBLOCK, unix.EINTR:
		f.Close()
		return nil, nil
	default:
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	named, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f.Close()
		return nil, nil
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	own, err := f.Stat()
	if err != nil || !os.SameFile(own, named) {
		f.Close()
		return nil, err
	}
	return sync.OnceFunc(func() {
		os.Remove(path) // while locked
		f.Close()
	}), nil
}

// removeStaleLocks removes the lock files of killed processes: nobody may ever
// want those of their keys again.
func (s *Store) removeStaleLocks() {
	dir := filepath.Join(s.dir, "locks")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if unlock, err := tryLock(filepath.Join(dir, e.Name())); err == nil && unlock != nil {
			unlock()
		}
	}
}
