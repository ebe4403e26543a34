// Package cache remembers results: the record of each step's key, and the
// content digests of inputs.
//
// It is an append-only, checksummed log of small records with a snapshot, and
// any number of processes use it at once without waiting for each other. A torn
// or damaged record is a miss with a warning, never an error.
//
// Its directory, cache/ of the store root, holds
//
//	log       what was added since the snapshot was made; see frame.go
//	snapshot  everything before that, sorted, with an index
//	lock      locked by whoever appends to the log or replaces both
//	locks/    a file for each key that is being worked on
//
// A look-up costs one system call, which tells whether the log has grown or was
// replaced. Whoever finds the log large makes a new snapshot of both and an
// empty log, in this order: until the log is replaced too, its records are in
// both, which changes nothing.
package cache

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/state"
)

// Key identifies a step by everything that may change its result: 64 hex
// digits.
type Key string

// Record is the result of a step that was run, and why it was run.
//
// A new field needs a tag in codec.go.
type Record struct {
	Key Key `json:"key"`
	// Outputs are the trees of the step's results.
	Outputs []layers.Tree `json:"outputs"`
	// Trees are what Outputs are known by in memos, where that is not their
	// layers' IDs: a result that came from a remote cache keeps the identities
	// that it had where it was made.
	Trees []string  `json:"trees,omitempty"`
	Made  time.Time `json:"made"`
	// Used is when the record was last looked up, to the hour.
	Used time.Time     `json:"used"`
	Took time.Duration `json:"took"`
	Why  Why           `json:"why"`
}

// Why says what went into a key, for explanations.
type Why struct {
	Name     string   `json:"name"`           // the step's text
	Op       string   `json:"op"`             // its canonical form
	Inputs   []string `json:"inputs"`         // identities, in order
	Args     []string `json:"args,omitempty"` // build args used, NAME=value
	Platform string   `json:"platform,omitempty"`
}

const (
	// The log is compacted when it has grown to an eighth of the snapshot,
	// but within these bounds: it is read whole when the cache is opened.
	minCompact = 1 << 20
	maxCompact = 8 << 20

	// memoKeep is how long memos are kept that nobody asks for. They are
	// small, and cheap to make again.
	memoKeep = 30 * 24 * time.Hour
)

// Store is the cache of a store root. Its methods may be called at once.
type Store struct {
	dir  string
	temp tempFile
	warn func(error)
	now  func() time.Time

	mu     sync.Mutex
	log    *logFile // nil: there is none that can be read
	snap   *snapshotFile
	recent map[id]entry  // what the log says
	used   map[id]uint32 // uses to be told to the log, in hours
	newer  bool          // a newer version's files: nothing is read or written
	closed bool

	// There is damage that the next compaction heals; if it is the whole log,
	// badLog is the file.
	damage bool
	badLog os.FileInfo
}

// entry is a frame of the log that is still true.
type entry struct {
	kind    kind   // kindDelete: gone; kindUsed: the rest is in the snapshot
	used    uint32 // hours
	payload string
}

// Open opens the cache of root, and makes it if it is not there. warn is called
// for damaged records; it may be called from any goroutine that uses the Store,
// and must not use it.
func Open(root *state.Root, warn func(error)) (*Store, error) {
	s, err := open(filepath.Join(root.Dir(), "cache"), warn)
	if err != nil {
		return nil, err
	}
	s.temp = root.TempFile // it goes if we are killed
	return s, nil
}

func open(dir string, warn func(error)) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "locks"), 0o700); err != nil && !errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	// One of each is made at a time, under the write lock.
	temp := func(prefix string) (*os.File, error) { return os.Create(filepath.Join(dir, prefix+".new")) }
	s := &Store{dir: dir, temp: temp, warn: warn, now: time.Now, snap: &snapshotFile{}, used: make(map[id]uint32)}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	s.removeStaleLocks()
	return s, nil
}

func (s *Store) logPath() string      { return filepath.Join(s.dir, "log") }
func (s *Store) snapshotPath() string { return filepath.Join(s.dir, "snapshot") }

// load opens log and snapshot and reads the log. Files that are not what they
// should be are reported and taken for empty.
func (s *Store) load() error {
	for {
		s.unload()
		// The log first: if both are replaced meanwhile, the old log and the
		// new snapshot are complete, but the old snapshot and the new log
		// would not be.
		log, err := openLog(s.logPath())
		s.badLog = nil
		if errors.Is(err, errForeign) {
			s.badLog, _ = os.Stat(s.logPath())
		}
		if err := s.acceptDamage(err); err != nil {
			return err
		}
		s.log = log
		snap, err := openSnapshot(s.snapshotPath())
		if err := s.acceptDamage(err); err != nil {
			return err
		}
		if snap != nil {
			s.snap = snap
		}
		if s.log == nil {
			return nil
		}
		size, replaced, err := s.log.stat()
		if err != nil {
			return err
		}
		if !replaced {
			return s.read(size)
		}
	}
}

func (s *Store) acceptDamage(err error) error {
	switch {
	case errors.Is(err, errNewer):
		if !s.newer {
			s.warn(fmt.Errorf("the cache is not used: %w", err))
		}
		s.newer = true
		return nil
	case errors.Is(err, errForeign), errors.Is(err, errFrame):
		s.warn(fmt.Errorf("what was cached is lost: %w", err))
		s.damage = true
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

func (s *Store) unload() error {
	var err error
	if s.log != nil {
		err = s.log.f.Close()
		s.log = nil
	}
	err = errors.Join(err, s.snap.close())
	s.snap = &snapshotFile{}
	s.recent = make(map[id]entry)
	return err
}

// refresh takes note of what other processes did.
func (s *Store) refresh() error {
	if s.log == nil {
		fi, err := os.Stat(s.logPath())
		if err != nil || s.newer || s.badLog != nil && os.SameFile(fi, s.badLog) {
			return nil
		}
		return s.load()
	}
	size, replaced, err := s.log.stat()
	if err != nil {
		return err
	}
	if replaced || size < s.log.pos {
		return s.load()
	}
	return s.read(size)
}

func (s *Store) read(size int64) error {
	err := s.log.read(size, s.apply, func(at int64, n int) {
		s.warn(fmt.Errorf("%s: passed over %d damaged bytes at %d", s.logPath(), n, at))
		s.damage = true
	})
	if err != nil {
		s.warn(err)
	}
	return nil
}

// apply takes note of a frame of the log.
func (s *Store) apply(f frame) {
	switch f.kind {
	case kindRecord, kindMemo:
		s.recent[f.id] = entry{f.kind, f.used, f.payload}
	case kindDelete:
		s.recent[f.id] = entry{kind: kindDelete}
	case kindUsed:
		e, ok := s.recent[f.id]
		if !ok {
			e.kind = kindUsed
		}
		e.used = max(e.used, f.used)
		s.recent[f.id] = e
	}
}

// find returns the frame of an entry as it is now.
func (s *Store) find(i id, k kind) (frame, bool) {
	e, ok := s.recent[i]
	if ok && e.kind == kindDelete {
		return frame{}, false
	}
	if ok && e.kind != kindUsed {
		return frame{kind: e.kind, used: max(e.used, s.used[i]), id: i, payload: e.payload}, e.kind == k
	}
	f, ok, err := s.snap.lookup(i)
	if err != nil {
		s.damaged(i, err)
		return frame{}, false
	}
	f.used = max(f.used, e.used, s.used[i])
	return f, ok && f.kind == k
}

// damaged reports a bad entry, once.
func (s *Store) damaged(i id, err error) {
	s.warn(fmt.Errorf("%s: %w", s.dir, err))
	s.recent[i] = entry{kind: kindDelete}
	s.damage = true
}

// use looks an entry up and notes that it was used.
func (s *Store) use(i id, k kind) (frame, bool) {
	if s.closed {
		return frame{}, false
	}
	if err := s.refresh(); err != nil {
		s.warn(err)
		return frame{}, false
	}
	f, ok := s.find(i, k)
	if hour := s.hour(); ok && hour > f.used {
		s.used[i] = hour
		f.used = hour
	}
	return f, ok
}

// Get looks a key up, among records that other processes have just written too.
func (s *Store) Get(k Key) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := recordID(k)
	f, ok := s.use(i, kindRecord)
	if !ok {
		return Record{}, false
	}
	r, err := decodeRecord(f.payload)
	if err != nil || r.Key != k {
		s.damaged(i, cmp.Or(err, errPayload))
		return Record{}, false
	}
	r.Used = hourTime(f.used)
	return r, true
}

// Put adds a record, or replaces the one with its key. Its Used is the time of
// the call. Processes that look it up from now on find it; it is on disk when
// the Store was closed.
func (s *Store) Put(r Record) error {
	if r.Made.IsZero() {
		r.Made = s.now()
	}
	err := s.put(frame{kind: kindRecord, id: recordID(r.Key), payload: encodeRecord(r)})
	if err != nil {
		return fmt.Errorf("cache result of %q: %w", r.Why.Name, err)
	}
	return nil
}

// Delete forgets keys.
func (s *Store) Delete(keys ...Key) error {
	frames := make([]frame, len(keys))
	for n, k := range keys {
		frames[n] = frame{kind: kindDelete, id: recordID(k)}
	}
	if err := s.put(frames...); err != nil {
		return fmt.Errorf("forget cached results: %w", err)
	}
	return nil
}

// Memo returns what PutMemo stored: the digest of the content that selector
// names in the result that key identifies.
func (s *Store) Memo(key, selector string) (digest.Digest, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := memoID(key, selector)
	f, ok := s.use(i, kindMemo)
	if !ok {
		return "", false
	}
	m, err := decodeMemo(f.payload)
	if err != nil || m.key != key || m.selector != selector {
		s.damaged(i, cmp.Or(err, errPayload))
		return "", false
	}
	return m.digest, true
}

// PutMemo stores a content digest. Memos that are not asked for are forgotten
// after 30 days.
func (s *Store) PutMemo(key, selector string, d digest.Digest) error {
	m := memo{key, selector, d}
	if err := s.put(frame{kind: kindMemo, id: memoID(key, selector), payload: encodeMemo(m)}); err != nil {
		return fmt.Errorf("cache digest of %q: %w", selector, err)
	}
	return nil
}

// All returns every record, the most lately used first.
func (s *Store) All() ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	if err := s.refresh(); err != nil {
		return nil, err
	}
	var all []Record
	s.each(func(f frame) {
		if f.kind != kindRecord {
			return
		}
		r, err := decodeRecord(f.payload)
		if err != nil {
			s.damaged(f.id, err)
			return
		}
		r.Used = hourTime(f.used)
		all = append(all, r)
	})
	slices.SortFunc(all, func(a, b Record) int {
		if c := b.Used.Compare(a.Used); c != 0 {
			return c
		}
		return cmp.Or(b.Made.Compare(a.Made), strings.Compare(string(a.Key), string(b.Key)))
	})
	return all, nil
}

// each calls fn for every entry as it is now.
func (s *Store) each(fn func(frame)) {
	// fn may mark entries as damaged, which changes recent.
	for _, i := range recentEntries(s.recent) {
		e := s.recent[i]
		fn(frame{kind: e.kind, used: max(e.used, s.used[i]), id: i, payload: e.payload})
	}
	for f, err := range s.snap.all() {
		if err != nil {
			s.warn(fmt.Errorf("%s: %w", s.snapshotPath(), err))
			s.damage = true
			continue
		}
		e, ok := s.recent[f.id]
		if ok && e.kind != kindUsed {
			continue
		}
		f.used = max(f.used, e.used, s.used[f.id])
		fn(f)
	}
}

// recentEntries returns the ids of entries whose content is in the log.
func recentEntries(recent map[id]entry) []id {
	var ids []id
	for i, e := range recent {
		if e.kind == kindRecord || e.kind == kindMemo {
			ids = append(ids, i)
		}
	}
	return ids
}

// put appends frames to the log, with the uses that were noted since.
func (s *Store) put(frames ...frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	for n := range frames {
		frames[n].used = s.hour()
		if len(frames[n].payload) > maxPayload {
			return fmt.Errorf("record of %d bytes is too large", len(frames[n].payload))
		}
	}
	if err := s.append(frames); err != nil {
		return err
	}
	// Close compacts sooner. A process that lives long comes by here.
	if s.log != nil && s.log.size > 4*compactAt(len(s.snap.data)) {
		if err := s.compact(); err != nil {
			s.warn(err)
		}
	}
	return nil
}

func (s *Store) append(frames []frame) error {
	unlock, err := writeLock(s.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.refresh(); err != nil || s.newer {
		return err
	}
	if s.log == nil {
		if err := newLog(s.logPath(), s.temp, newMark()); err != nil {
			return err
		}
		if err := s.load(); err != nil {
			return err
		}
		if s.log == nil {
			return fmt.Errorf("%s: %w", s.logPath(), errForeign)
		}
	}
	var b []byte
	for i, hour := range s.used {
		b = appendFrame(b, s.log.mark, frame{kind: kindUsed, used: hour, id: i})
	}
	for _, f := range frames {
		b = appendFrame(b, s.log.mark, f)
	}
	if err := s.log.append(b); err != nil {
		return err
	}
	clear(s.used)
	return s.refresh()
}

// compactAt is the size of a log that is worth to be compacted.
func compactAt(snapshot int) int64 {
	return min(max(int64(snapshot)/8, minCompact), maxCompact)
}

// Compact rewrites the snapshot and empties the log.
func (s *Store) Compact() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	return s.compact()
}

func (s *Store) compact() error {
	unlock, err := writeLock(s.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.refresh(); err != nil || s.newer {
		return err
	}
	m := newMark()
	oldest := hours(s.now().Add(-memoKeep))
	err = writeSnapshot(s.snapshotPath(), s.temp, m, func(yield func(frame) bool) {
		more := true // no longer if writing failed, as on a full disk
		s.each(func(f frame) {
			if more && (f.kind != kindMemo || f.used >= oldest) {
				more = yield(f)
			}
		})
	})
	if err != nil {
		return fmt.Errorf("compact cache: %w", err)
	}
	if err := newLog(s.logPath(), s.temp, m); err != nil {
		return fmt.Errorf("compact cache: %w", err)
	}
	clear(s.used)
	s.damage = false
	s.removeStaleLocks()
	return s.load()
}

// Close compacts the log if it is large or damaged. Nothing is synced: neither are
// the layers that records are about.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if len(s.used) > 0 {
		// When something was last used is no reason to fail, on a full disk
		// say.
		_ = s.append(nil)
	}
	if s.damage || s.log != nil && s.log.size > compactAt(len(s.snap.data)) {
		if err := s.compact(); err != nil {
			s.warn(err)
		}
	}
	return s.unload()
}

func (s *Store) hour() uint32 { return hours(s.now()) }

func hours(t time.Time) uint32 { return uint32(t.Unix() / 3600) }

func hourTime(h uint32) time.Time { return time.Unix(int64(h)*3600, 0).UTC() }

func recordID(k Key) id { return hashID('r', string(k), "") }

func memoID(key, selector string) id { return hashID('m', key, selector) }

func hashID(what byte, a, b string) id {
	in := append(make([]byte, 0, 256), what)
	in = binary.AppendUvarint(in, uint64(len(a)))
	in = append(append(in, a...), b...)
	sum := sha256.Sum256(in)
	return id(sum[:])
}
