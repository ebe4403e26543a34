package gc

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// cacheMount is cachemounts/<name>: the contents of cache mounts of one id.
type cacheMount struct {
	name string // the hash of the id; also the lock's
	id   string
	made time.Time
	used time.Time // changed last, as far as that can be told
}

// cacheMounts lists the cache mounts, and the names in their directory that are
// something else.
func (s *Store) cacheMounts() (list []cacheMount, strange []string, err error) {
	entries, err := os.ReadDir(s.Root.Path("cachemounts"))
	if err := ignoreMissing(err); err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		m := cacheMount{name: e.Name()}
		if _, err := hex.DecodeString(m.name); err != nil || !e.IsDir() {
			strange = append(strange, m.name)
			continue
		}
		fi, err := os.Lstat(s.Root.Path("cachemounts", m.name, "fs"))
		if err != nil || !fi.IsDir() {
			strange = append(strange, m.name)
			continue
		}
		var meta struct {
			ID      string    `json:"id"`
			Created time.Time `json:"created"`
		}
		data, err := os.ReadFile(s.Root.Path("cachemounts", m.name, "meta.json"))
		if err == nil && json.Unmarshal(data, &meta) == nil {
			m.id, m.made = meta.ID, meta.Created
		}
		m.used = s.mountUsed(m, fi)
		list = append(list, m)
	}
	return list, strange, nil
}

// mountUsed is the latest time of change near the top of a cache mount. Nobody
// notes when one is used.
func (s *Store) mountUsed(m cacheMount, top os.FileInfo) time.Time {
	used := m.made
	if top.ModTime().After(used) {
		used = top.ModTime()
	}
	entries, _ := os.ReadDir(s.Root.Path("cachemounts", m.name, "fs"))
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.ModTime().After(used) && fi.ModTime().Before(time.Now()) {
			used = fi.ModTime()
		}
	}
	return used
}

// tryMount locks a cache mount unless a step uses it.
func (s *Store) tryMount(name string) (unlock func(), ok bool) {
	return s.tryLock("cachemount-" + name)
}

// tryContext locks the copy of a context unless a build uses it.
func (s *Store) tryContext(id string) (unlock func(), ok bool) { return s.tryLock("context-" + id) }

// tryLock does not wait: steps hold these locks and wait for the gc lock, which
// we hold. Root.Lock has a context to end its waiting, but can't be asked to
// try once; the rules for the file are those of docs/store.md.
func (s *Store) tryLock(name string) (unlock func(), ok bool) {
	f, err := os.OpenFile(s.Root.Path("locks", name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !hasItsName(f) {
		f.Close()
		return nil, false
	}
	return func() {
		os.Remove(f.Name())
		unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}, true
}

func hasItsName(f *os.File) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(open, named)
}
