package gc

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"os"
	"time"
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
func (s *Store) tryMount(ctx context.Context, name string) (unlock func(), ok bool) {
	// Steps hold this lock and wait for the gc lock, which we hold: no
	// waiting here.
	ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	unlock, err := s.Root.Lock(ctx, "cachemount-"+name, true)
	return unlock, err == nil
}
