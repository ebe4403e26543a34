package source

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/state"
)

// The index is two files. "index" is a header and records sorted by device and
// inode, which is mapped into memory, so that opening it costs the same however
// large it is. Files of a directory mostly have inodes near each other: a search
// begins where the last one ended, and what it reads is in the processor's cache.
// "index.log" holds the records that were learned since, in no order; when it
// outgrows maxLog both are merged into a new "index". So a build that hashed
// one file writes one record.
//
// Each record is a fact of its own (a file with this identity had this digest)
// and has its own checksum. It does not matter in which order processes write
// them, nor which version of which file a reader sees; one that is damaged is
// as good as none.

const (
	indexMagic = "strake-index-2\n\x00"
	headerSize = 32 // magic, generation, checksum, padding
	recordSize = 80

	maxLog     = 8192    // records
	maxRecords = 1 << 20 // 80 MiB; the least lately used go first

	// Use is counted in days. To note every use would make builds that change
	// nothing write; once a week is enough to know what to drop.
	day           = 24 * 60 * 60
	noteUseAfter  = 7
	forgetAfter   = 90
	capabilityBit = 1 << 31 // of record.used: the file has security.capability
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// identity is what the kernel says about a file that changes when its content
// does.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

type record struct {
	identity
	sum        [32]byte
	capability bool
	used       uint32 // day of the last use
}

func (r record) append(b []byte) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint64(b, r.dev)
	b = binary.LittleEndian.AppendUint64(b, r.ino)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.size))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.mtime))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.ctime))
	b = append(b, r.sum[:]...)
	used := r.used
	if r.capability {
		used |= capabilityBit
	}
	b = binary.LittleEndian.AppendUint32(b, used)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func readIdentity(b []byte) identity {
	return identity{
		dev:   binary.LittleEndian.Uint64(b),
		ino:   binary.LittleEndian.Uint64(b[8:]),
		size:  int64(binary.LittleEndian.Uint64(b[16:])),
		mtime: int64(binary.LittleEndian.Uint64(b[24:])),
		ctime: int64(binary.LittleEndian.Uint64(b[32:])),
	}
}

func readRecord(b []byte) (record, bool) {
	b = b[:recordSize]
	if crc32.Checksum(b[:recordSize-4], castagnoli) != binary.LittleEndian.Uint32(b[recordSize-4:]) {
		return record{}, false
	}
	r := record{identity: readIdentity(b)}
	copy(r.sum[:], b[40:72])
	used := binary.LittleEndian.Uint32(b[72:])
	r.used, r.capability = used&^capabilityBit, used&capabilityBit != 0
	return r, true
}

type inode struct{ dev, ino uint64 }

func (i identity) inode() inode { return inode{i.dev, i.ino} }

// before is the order of records.
func (n inode) before(m inode) bool { return n.dev < m.dev || n.dev == m.dev && n.ino < m.ino }

// Index remembers the digests of files by (dev, ino, size, mtime, ctime), for
// all builds of a store. A file changed in the same instant as it was hashed is
// not trusted (git's racy rule). It may be used by many goroutines, and its
// directory by many processes.
type Index struct {
	dir string
	now func() time.Time

	saving sync.Mutex // held while files are written

	mu      sync.RWMutex
	base    []byte            // mapped records
	log     map[inode]*record // of index.log; they replace those of base
	learned []*record         // not saved yet, and not found
}

// OpenIndex opens the index kept in dir, or an empty one if it is missing or
// damaged.
func OpenIndex(dir string) (*Index, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	x := &Index{dir: dir, now: time.Now, base: mapBase(filepath.Join(dir, "index")), log: map[inode]*record{}}
	x.found(readLog(filepath.Join(dir, "index.log")))
	return x, nil
}

// Close frees what the index holds. Nobody uses it any more, nor a Dir that was
// opened with it.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.setBase(nil)
}

// setBase is called with the lock held.
func (x *Index) setBase(base []byte) error {
	old := x.base
	x.base = base
	if old == nil {
		return nil
	}
	return unix.Munmap(old)
}

// mapBase maps the file of sorted records, header included; nil if there are
// none.
func mapBase(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil
	}
	size := st.Size()
	if size <= headerSize || (size-headerSize)%recordSize != 0 || size > headerSize+2*maxRecords*recordSize {
		return nil
	}
	var head [headerSize]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || !validHeader(head[:], size) {
		return nil
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil
	}
	return m
}

func header(size int64) []byte {
	b := append(make([]byte, 0, headerSize), indexMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return append(b, make([]byte, headerSize-len(b))...)
}

func validHeader(b []byte, size int64) bool { return bytes.Equal(b, header(size)) }

func readLog(name string) (log []*record) {
	f, err := os.Open(name)
	if err != nil {
		return log
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4*maxLog*recordSize))
	if err != nil {
		return log
	}
	for ; len(b) >= recordSize; b = b[recordSize:] {
		if r, ok := readRecord(b); ok {
			log = append(log, &r)
		}
	}
	return log
}

// place is where the look-up of a file ended; that of the next one in its
// directory begins there. The zero value is no place.
type place struct {
	at    int    // record
	today uint32 // to ask once
}

// find looks a file up. The digest is that of its content as long as the file
// has this identity.
func (x *Index) find(id identity, near *place) (record, bool) {
	r, ok := x.look(id.inode(), near)
	if !ok || r.identity != id {
		return record{}, false
	}
	if near.today == 0 {
		near.today = x.today()
	}
	if r.used+noteUseAfter < near.today {
		x.learn(r)
	}
	return r, true
}

func (x *Index) look(key inode, near *place) (record, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.log[key]; r != nil {
		return *r, true
	}
	return search(x.records(), key, &near.at)
}

func (x *Index) today() uint32 { return uint32(x.now().Unix() / day) }

// learn notes a digest, or that it was of use, until Save.
func (x *Index) learn(r record) {
	r.used = x.today()
	x.mu.Lock()
	x.learned = append(x.learned, &r)
	x.mu.Unlock()
}

func (x *Index) records() []byte {
	if x.base == nil {
		return nil
	}
	return x.base[headerSize:]
}

// search finds the record of an inode among sorted records, beginning at near.
// A disk that fails to read a page makes the record missing, not the program
// fail.
func search(recs []byte, key inode, near *int) (r record, ok bool) {
	n := len(recs) / recordSize
	if n == 0 {
		return record{}, false
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			r, ok = record{}, false
		}
	}()
	at := func(i int) inode {
		b := recs[i*recordSize:]
		return inode{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
	}
	// Gallop to a range that holds the record, then bisect it.
	lo := min(*near, n-1)
	up := lo
	if at(lo).before(key) {
		for step := 1; up < n && at(up).before(key); step *= 2 {
			lo, up = up+1, min(up+step, n)
		}
	} else {
		for step := 1; lo > 0 && !at(lo).before(key); step *= 2 {
			up, lo = lo, max(lo-step, 0)
		}
	}
	for lo < up {
		m := int(uint(lo+up) / 2)
		if at(m).before(key) {
			lo = m + 1
		} else {
			up = m
		}
	}
	*near = lo
	if lo == n || at(lo) != key {
		return record{}, false
	}
	return readRecord(recs[lo*recordSize:])
}

// Save writes what was learned, merged with what other processes saved. It is
// not synced: what a crash loses is hashed again. From then on it is found.
// Meanwhile the index may be used.
func (x *Index) Save() error {
	x.saving.Lock()
	defer x.saving.Unlock()
	x.mu.Lock()
	news := x.learned
	x.learned = nil
	x.mu.Unlock()
	if len(news) == 0 {
		return nil
	}
	err := x.write(news)
	if err != nil {
		x.mu.Lock()
		x.learned = append(news, x.learned...)
		x.mu.Unlock()
	}
	return err
}

// write adds records to the files.
func (x *Index) write(news []*record) error {
	unlock, err := x.lock()
	if err != nil {
		return err
	}
	defer unlock()
	err = x.appendLog(news)
	if errors.Is(err, errLogFull) {
		return x.merge(news)
	}
	if err == nil {
		x.mu.Lock()
		x.found(news)
		x.mu.Unlock()
	}
	return err
}

// found makes records of the log be found, a later one of a file instead of an
// earlier one. The lock is held.
func (x *Index) found(records []*record) {
	for _, r := range records {
		x.log[r.inode()] = r
	}
}

func (x *Index) lock() (unlock func(), err error) {
	f, err := state.OpenFile(filepath.Join(x.dir, "lock"), os.O_RDWR)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return func() { f.Close() }, nil
}

var errLogFull = errors.New("log is full")

func (x *Index) appendLog(news []*record) (err error) {
	f, err := state.OpenFile(filepath.Join(x.dir, "index.log"), os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size/recordSize+int64(len(news)) > maxLog {
		return errLogFull
	}
	b := make([]byte, 0, len(news)*recordSize)
	for _, r := range news {
		b = r.append(b)
	}
	// A record that a killed process left half-written is written over.
	_, err = f.WriteAt(b, size-size%recordSize)
	return err
}

// merge makes a new base of the base, the log and news. Memory grows with what
// is new, not with the base.
func (x *Index) merge(news []*record) (err error) {
	name := filepath.Join(x.dir, "index")
	logName := filepath.Join(x.dir, "index.log")
	if err := x.removeTemps(); err != nil {
		return err
	}
	news = append(readLog(logName), news...)
	slices.SortFunc(news, func(a, b *record) int {
		// The newest of a file first. Where the clock was set back that is
		// another one, and the file is hashed once more.
		return cmp.Or(cmp.Compare(a.dev, b.dev), cmp.Compare(a.ino, b.ino), cmp.Compare(b.ctime, a.ctime), cmp.Compare(b.used, a.used))
	})
	news = slices.CompactFunc(news, func(a, b *record) bool { return a.inode() == b.inode() })

	var old []byte
	if base := mapBase(name); base != nil {
		defer func() { err = errors.Join(err, unix.Munmap(base)) }()
		old = base[headerSize:]
		// As in search, for a disk that fails; the next build starts anew.
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if r := recover(); r != nil {
				err = errors.Join(fmt.Errorf("read %s: %v", name, r), os.Remove(name))
			}
		}()
	}
	// merged yields both lists in their order, without the records of base
	// that newer ones replace.
	merged := func(yield func(record) bool) {
		rest := news
		for b := old; len(b) >= recordSize; b = b[recordSize:] {
			r, ok := readRecord(b)
			if !ok {
				continue
			}
			for len(rest) > 0 && rest[0].inode().before(r.inode()) {
				if !yield(*rest[0]) {
					return
				}
				rest = rest[1:]
			}
			if len(rest) > 0 && rest[0].inode() == r.inode() {
				continue
			}
			if !yield(r) {
				return
			}
		}
		for _, r := range rest {
			if !yield(*r) {
				return
			}
		}
	}
	if err := writeBase(name, drop(merged, x.today(), maxRecords)); err != nil {
		return err
	}
	if err := os.Remove(logName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return x.renew(name)
}

// renew takes the base just written.
func (x *Index) renew(name string) error {
	base := mapBase(name)
	if base == nil {
		return nil // unreadable or replaced at once: the next process sees
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.log)
	return x.setBase(base)
}

// removeTemps removes what killed processes left; nobody else writes while the
// lock is held.
func (x *Index) removeTemps() error {
	left, err := filepath.Glob(filepath.Join(x.dir, ".index-*"))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// drop leaves out what was not used for long, and of the rest what was least
// lately used beyond limit records.
func drop(all iter.Seq[record], today uint32, limit int) iter.Seq[record] {
	days := map[uint32]int{}
	for r := range all {
		days[r.used]++
	}
	room := map[uint32]int{} // by day, how many stay
	for _, d := range slices.Backward(slices.Sorted(maps.Keys(days))) {
		if d+forgetAfter < today {
			break
		}
		room[d] = min(days[d], limit)
		limit -= room[d]
	}
	return func(yield func(record) bool) {
		for r := range all {
			if room[r.used] == 0 {
				continue
			}
			room[r.used]--
			if !yield(r) {
				return
			}
		}
	}
}

func writeBase(name string, all iter.Seq[record]) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".index-*")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = state.Place(f.Name(), name)
		}
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	size := int64(headerSize)
	b := make([]byte, headerSize, 1<<20)
	for r := range all {
		b = r.append(b)
		size += recordSize
		if len(b) > 1<<20-recordSize {
			if _, err := f.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	_, err = f.WriteAt(header(size), 0)
	return err
}
