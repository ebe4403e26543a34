package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Kind is the kind of a thing that can be leased.
type Kind string

// The kinds of leased things: layers by ID, blobs by digest.
const (
	KindLayer Kind = "layer"
	KindBlob  Kind = "blob"
)

// A lease is a file, leases/<id>, that its process holds locked, with a line
// "<kind> <id>" for each thing the process uses. It is made before the
// temporary directory tmp/<id>, and removed after it: a lease that nobody has
// locked belongs to a dead process, and so does a temporary directory without a
// lease.
type lease struct {
	id   string
	file *os.File
	size int64 // of what is written and whole
	kept map[string]bool
	tmp  bool // tmp/<id> is there
}

// gcLock is the lock that garbage collection holds exclusively, and others,
// shared, while they add to their leases.
const gcLock = "gc"

// maxLeased bounds the length of a leased id.
const maxLeased = 256

// holdLease returns the process's lease and makes it if there is none yet. The
// caller has r.mu.
func (r *Root) holdLease() (*lease, error) {
	if r.closed {
		return nil, fmt.Errorf("store %s: %w", r.dir, os.ErrClosed)
	}
	if r.lease != nil {
		return r.lease, nil
	}
	if _, err := r.MkdirAll(leaseDir); err != nil {
		return nil, err
	}
	for {
		id := newLeaseID()
		f, err := os.OpenFile(r.Path(leaseDir, id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		// Another process may have taken the file for a dead one's before it
		// was locked.
		locked, err := tryLock(f, syscall.LOCK_EX)
		if err == nil && locked {
			locked, err = sameFile(f, f.Name())
		}
		if err == nil && locked {
			r.lease = &lease{id: id, file: f, kept: map[string]bool{}}
			return r.lease, nil
		}
		if cerr := f.Close(); err != nil || cerr != nil {
			return nil, errors.Join(err, cerr)
		}
	}
}

const leaseIDLen = 32

func newLeaseID() string {
	var b [leaseIDLen / 2]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func isLeaseID(name string) bool {
	_, err := hex.DecodeString(name)
	return err == nil && len(name) == leaseIDLen
}

// TempDir makes an empty directory on the store's file system. It is removed
// with the process's lease at the latest.
func (r *Root) TempDir(prefix string) (string, error) {
	dir, err := r.temp()
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(dir, prefix+"-")
}

// TempFile makes a file likewise. When it is complete, its user closes it and
// renames it to its place, or removes it.
func (r *Root) TempFile(prefix string) (*os.File, error) {
	dir, err := r.temp()
	if err != nil {
		return nil, err
	}
	return os.CreateTemp(dir, prefix+"-")
}

// temp returns the process's temporary directory.
func (r *Root) temp() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.holdLease()
	if err != nil {
		return "", err
	}
	dir := r.Path(tmpDir, l.id)
	if !l.tmp {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
		l.tmp = true
	}
	return dir, nil
}

// Keep leases things for the life of this process: garbage collection by any
// process leaves them alone. The caller checks after Keep that they still
// exist. What is leased already costs nothing.
//
// Keep waits for a garbage collection to end, so its caller doesn't hold the
// "gc" lock.
func (r *Root) Keep(kind Kind, ids ...string) error {
	lines := make([]string, len(ids))
	for i, id := range ids {
		if id == "" || len(id) > maxLeased || strings.ContainsAny(id, " \n") {
			return fmt.Errorf("lease %s: %q is no name", kind, id)
		}
		lines[i] = string(kind) + " " + id
	}
	missing, err := r.unkept(lines)
	if errors.Is(err, syscall.EROFS) {
		// Nothing can be kept in a store that can't be written to. What is
		// there can be read; that another process, who can write, takes it
		// away meanwhile is a miss like any other.
		return nil
	}
	if err != nil || len(missing) == 0 {
		return err
	}
	// Not while r.mu is held: the one who collects garbage may be another
	// goroutine of this process, which needs temporary directories.
	unlock, err := r.lockGC()
	if err != nil {
		return err
	}
	defer unlock()

	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.holdLease()
	if err != nil {
		return err
	}
	return l.add(lines)
}

// unkept returns the lines that are not in the lease yet.
func (r *Root) unkept(lines []string) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.holdLease()
	if err != nil {
		return nil, err
	}
	return l.missing(lines), nil
}

func (l *lease) missing(lines []string) []string {
	var missing []string
	for _, line := range lines {
		if !l.kept[line] {
			missing = append(missing, line)
		}
	}
	return missing
}

// add writes lines that are not in the lease yet.
func (l *lease) add(lines []string) error {
	lines = l.missing(lines)
	if len(lines) == 0 {
		return nil
	}
	data := strings.Join(lines, "\n") + "\n"
	if _, err := l.file.WriteAt([]byte(data), l.size); err != nil {
		// Half a line must not join the next one.
		return errors.Join(err, l.file.Truncate(l.size))
	}
	l.size += int64(len(data))
	for _, line := range lines {
		l.kept[line] = true
	}
	return nil
}

// lockGC takes the gc lock, shared. Its file is never removed (see unlock), so
// that this is three system calls.
func (r *Root) lockGC() (unlock func(), err error) {
	f, err := r.openLock(gcLock)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH)
		switch err {
		case nil:
			return func() { unlockFile(f) }, nil
		case syscall.EINTR:
		default:
			return nil, errors.Join(&fs.PathError{Op: "flock", Path: f.Name(), Err: err}, f.Close())
		}
	}
}

// Leased returns what all living processes hold. The caller holds the
// exclusive "gc" lock.
func (r *Root) Leased() (map[Kind]map[string]bool, error) {
	leased := map[Kind]map[string]bool{}
	for _, id := range names(r.Path(leaseDir)) {
		path := r.Path(leaseDir, id)
		alive, err := held(path)
		if err != nil {
			return nil, err
		}
		if !alive {
			continue
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // ended just now
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			kind, id, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if !ok {
				continue
			}
			k := Kind(kind)
			if leased[k] == nil {
				leased[k] = map[string]bool{}
			}
			leased[k][id] = true
		}
	}
	return leased, nil
}

// held reports whether a living process has locked the lease at path.
func held(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	free, err := tryLock(f, syscall.LOCK_SH)
	return !free, err
}

// sweep removes what dead processes left: their temporary directories, then
// their leases.
func (r *Root) sweep() error {
	var errs []error
	// Directories first: one that is listed now and has no lease afterwards
	// is an orphan, because its lease was there before it.
	temps := names(r.Path(tmpDir))
	for _, id := range names(r.Path(leaseDir)) {
		errs = append(errs, r.sweepLease(id))
	}
	for _, id := range temps {
		_, err := os.Lstat(r.Path(leaseDir, id))
		if isLeaseID(id) && errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, RemoveAll(r.Path(tmpDir, id)))
		}
	}
	return errors.Join(errs...)
}

// sweepLease removes a lease and its temporary files if its process is dead.
func (r *Root) sweepLease(id string) error {
	if !isLeaseID(id) {
		return nil
	}
	f, err := os.OpenFile(r.Path(leaseDir, id), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dead, err := tryLock(f, syscall.LOCK_EX)
	if err != nil || !dead {
		return errors.Join(err, f.Close())
	}
	return r.removeLease(id, f)
}

// removeLease removes a lease that this process has locked, and closes it.
func (r *Root) removeLease(id string, f *os.File) error {
	err := RemoveAll(r.Path(tmpDir, id))
	if err == nil {
		err = os.Remove(f.Name())
	}
	return errors.Join(err, unlockFile(f))
}

// names lists a directory; one that is missing or unreadable is empty.
func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = filepath.Base(e.Name())
	}
	return names
}
