package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// How long Lock waits until it tries again: flock can wait by itself, but then
// nothing could end it.
const (
	minWait = 500 * time.Microsecond
	maxWait = 20 * time.Millisecond
)

// Lock takes the named lock, shared by all processes, and waits for it until
// ctx ends. Names are hex digests or words; they become file names below
// "locks". The lock is freed by unlock, or when the process dies. It excludes
// other goroutines of this process, too.
func (r *Root) Lock(ctx context.Context, name string, exclusive bool) (unlock func(), err error) {
	if !isWord(name) {
		return nil, fmt.Errorf("lock %q: not a word", name)
	}
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	wait := minWait
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("wait for lock %s: %w", name, context.Cause(ctx))
		}
		f, err := r.tryLockName(name, how)
		if errors.Is(err, syscall.EROFS) {
			// Whoever has the lock can only read, as a listing does.
			return func() {}, nil
		}
		if err != nil {
			return nil, err
		}
		if f != nil {
			return func() { r.unlock(f, name, exclusive) }, nil
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		wait = min(2*wait, maxWait)
	}
}

// tryLockName locks the lock's file and returns it, or nil if it is taken.
func (r *Root) tryLockName(name string, how int) (*os.File, error) {
	for {
		f, err := r.openLock(name)
		if err != nil {
			return nil, err
		}
		ok, err := tryLock(f, how)
		if err != nil || !ok {
			return nil, errors.Join(err, f.Close())
		}
		// unlock removes files: what was locked may have lost its name.
		ok, err = sameFile(f, f.Name())
		if err == nil && ok {
			return f, nil
		}
		if cerr := f.Close(); err != nil || cerr != nil {
			return nil, errors.Join(err, cerr)
		}
	}
}

// unlock frees a lock. Its file is removed, so that locks don't pile up, but
// only by one who has it alone.
func (r *Root) unlock(f *os.File, name string, exclusive bool) {
	if name != gcLock {
		alone := exclusive
		if !alone {
			// The shared lock may be lost in this, and another holder have
			// removed the file.
			alone, _ = tryLock(f, syscall.LOCK_EX)
			if alone {
				alone, _ = sameFile(f, f.Name())
			}
		}
		if alone {
			_ = os.Remove(f.Name())
		}
	}
	_ = unlockFile(f)
}

// sweepLocks removes the lock files of dead processes, which nobody may want to
// lock again.
func (r *Root) sweepLocks() {
	for _, name := range names(r.Path(lockDir)) {
		if name == gcLock {
			continue
		}
		f, err := os.OpenFile(r.Path(lockDir, name), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		free, err := tryLock(f, syscall.LOCK_EX)
		if err != nil || !free {
			f.Close()
			continue
		}
		if named, err := sameFile(f, f.Name()); err == nil && named {
			_ = os.Remove(f.Name())
		}
		_ = unlockFile(f)
	}
}

// openLock opens the file of a lock, and makes it if there is none.
func (r *Root) openLock(name string) (*os.File, error) {
	path := r.Path(lockDir, name)
	f, err := OpenFile(path, os.O_RDWR)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if _, err := r.MkdirAll(lockDir); err != nil {
		return nil, err
	}
	return OpenFile(path, os.O_RDWR)
}

// tryLock takes a lock (syscall.LOCK_EX or LOCK_SH) on f unless another has it.
func tryLock(f *os.File, how int) (bool, error) {
	for {
		switch err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err {
		case nil:
			return true, nil
		case syscall.EWOULDBLOCK:
			return false, nil
		case syscall.EINTR:
		default:
			return false, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// unlockFile frees the lock on f and closes it. A child between fork and exec
// may have f open still, so closing it isn't enough.
func unlockFile(f *os.File) error {
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	return f.Close()
}

func isWord(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	return name != "" && len(name) <= 200 && name[0] != '.' && strings.Trim(name, letters) == ""
}
