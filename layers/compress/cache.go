package compress

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// SegmentCache knows where in the blobs of a store compressed segments are, so
// that the same content need not be compressed again. It holds no segments
// itself: it is a directory of lists, which any number of processes share, one
// for each blob that Keep was told of, named like the blob. A segment goes with
// its blob.
//
// A list is a head, records of a segment each (see record), and a checksum
// (CRC-32C) of both, in little endian. Damaged lists and segments are taken for
// missing. Nothing is synced: what a crash takes away is compressed again. That
// a list can't be kept is no error either.
type SegmentCache struct {
	dir, blobs string
	temp       func(prefix string) (*os.File, error)

	mu     sync.Mutex
	read   map[string]bool // lists that were read, by name
	places map[segmentKey]place
}

// segmentKey is the SHA-256 of a segment's content and of what its compression
// depends on.
type segmentKey [32]byte

// place is where a segment is.
type place struct {
	blob string // hex digits
	span
}

// span is where in a blob a segment is.
type span struct {
	offset uint64
	size   uint32
	sum    uint32 // see checksum
}

// record is a segment in a blob.
type record struct {
	key segmentKey
	span
}

const (
	listHead   = "strake segments 2\n"
	recordSize = 32 + 8 + 4 + 4
	maxList    = 32 << 20 // of 800 GiB
	// maxPlaces bounds the memory: the segments of about 400 GiB.
	maxPlaces = 350_000
)

// OpenSegments returns the cache of the segments in the blobs of the directory
// blobs, whose names are hex digits. Its lists are in dir, which is made when
// there is one to be kept. temp makes temporary files on the same file system.
func OpenSegments(dir, blobs string, temp func(prefix string) (*os.File, error)) *SegmentCache {
	return &SegmentCache{dir: dir, blobs: blobs, temp: temp, read: map[string]bool{}, places: map[segmentKey]place{}}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers the key too: another segment in the place is damage.
func checksum(key segmentKey, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(key[:], castagnoli), castagnoli, data)
}

// load reads the lists that came since the last time.
func (c *SegmentCache) load() {
	c.mu.Lock()
	defer c.mu.Unlock()
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	for _, d := range files {
		name := d.Name()
		if _, err := hex.DecodeString(name); err != nil || len(name) != 64 || c.read[name] || len(c.places) > maxPlaces {
			continue
		}
		c.read[name] = true
		for _, r := range c.list(name) {
			c.places[r.key] = place{name, r.span}
		}
	}
}

// list reads the list of a blob. It is removed if it is damaged or the blob is
// gone.
func (c *SegmentCache) list(name string) []record {
	path := filepath.Join(c.dir, name)
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxList+1))
	if err != nil {
		return nil
	}
	_, missing := os.Lstat(filepath.Join(c.blobs, name))
	rest, ok := bytes.CutPrefix(data, []byte(listHead))
	n := len(rest) - 4
	ok = ok && len(data) <= maxList && n >= 0 && n%recordSize == 0 &&
		binary.LittleEndian.Uint32(rest[n:]) == crc32.Checksum(data[:len(data)-4], castagnoli)
	if !ok || os.IsNotExist(missing) {
		_ = os.Remove(path)
		return nil
	}
	list := make([]record, 0, n/recordSize)
	for b := range slices.Chunk(rest[:n], recordSize) {
		r := record{span: span{
			offset: binary.LittleEndian.Uint64(b[32:]),
			size:   binary.LittleEndian.Uint32(b[40:]),
			sum:    binary.LittleEndian.Uint32(b[44:]),
		}}
		copy(r.key[:], b)
		list = append(list, r)
	}
	return list
}

// get appends the segment to dst, if it is there.
func (c *SegmentCache) get(key segmentKey, dst []byte) ([]byte, bool) {
	c.mu.Lock()
	p, ok := c.places[key]
	c.mu.Unlock()
	if !ok || p.size > 2*maxSegment {
		return dst, false
	}
	f, err := os.Open(filepath.Join(c.blobs, p.blob))
	if err != nil {
		return dst, false
	}
	defer f.Close()
	start := len(dst)
	b := slices.Grow(dst, int(p.size))[:start+int(p.size)]
	if _, err := f.ReadAt(b[start:], int64(p.offset)); err != nil || checksum(key, b[start:]) != p.sum {
		return dst[:start], false
	}
	return b, true
}

// keep writes the list of a blob, if it can.
func (c *SegmentCache) keep(blob string, list []record) {
	if len(list) == 0 || len(list) > (maxList-len(listHead)-4)/recordSize {
		return
	}
	data := []byte(listHead)
	for _, r := range list {
		data = append(data, r.key[:]...)
		data = binary.LittleEndian.AppendUint64(data, r.offset)
		data = binary.LittleEndian.AppendUint32(data, r.size)
		data = binary.LittleEndian.AppendUint32(data, r.sum)
	}
	data = binary.LittleEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
	if c.write(blob, data) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read[blob] = true
	for _, r := range list {
		c.places[r.key] = place{blob, r.span}
	}
}

func (c *SegmentCache) write(name string, data []byte) error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	f, err := c.temp("segments")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
