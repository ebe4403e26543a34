package compress

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
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
// A list is a head, the secret that its keys were made with, records of a segment
// each (see record), and a checksum (CRC-32C) of all, in little endian. All lists
// have the same secret; those of another are left out, as there are if two processes
// began the directory at once. Damaged lists and segments are taken for
// missing. Nothing is synced: what a crash takes away is compressed again. That
// a list can't be kept is no error either.
type SegmentCache struct {
	dir, blobs string
	temp       func(prefix string) (*os.File, error)

	mu     sync.Mutex
	read   map[string]bool // lists that were read, by name
	places map[segmentKey]place
	// Both are there after load, and don't change.
	secret secret
	mac    cipher.AEAD
}

// segmentKey is the GMAC (NIST SP 800-38D) of a segment's content under the
// secret of the store, with a nonce for what its compression depends on. It is
// seven times as fast as SHA-256. Who does not know the secret can't make two
// contents of one key, not even by trying: of n segments two have the same with a
// probability below n²/2^111. Who can read the secret, in the store, can write
// there what he likes. Several messages have the same nonce, which would give the
// secret away if the keys were to be seen elsewhere: they must not be.
type segmentKey [16]byte

// secret is a key of AES.
type secret [16]byte

// nonce stands for what the form of compressed segments depends on, of which id
// tells.
func nonce(id string) []byte {
	sum := sha256.Sum256([]byte(id))
	return sum[:12]
}

// key is the key of a segment with this content.
func (c *SegmentCache) key(nonce, content []byte) (k segmentKey) {
	c.mac.Seal(k[:0], nonce, nil, content)
	return k
}

// use makes keys with a secret from now on.
func (c *SegmentCache) use(s secret) error {
	block, err := aes.NewCipher(s[:])
	if err != nil {
		return err
	}
	mac, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	c.secret, c.mac = s, mac
	return nil
}

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
	listHead   = "strake segments 3\n"
	recordSize = 16 + 8 + 4 + 4
	maxList    = 24 << 20 // of 900 GiB
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

// load reads the lists that came since the last time. It fails if keys can't be
// made.
func (c *SegmentCache) load() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	files, _ := os.ReadDir(c.dir)
	for _, d := range files {
		name := d.Name()
		if _, err := hex.DecodeString(name); err != nil || len(name) != 64 || c.read[name] || len(c.places) > maxPlaces {
			continue
		}
		c.read[name] = true
		s, list := c.list(name)
		if c.mac == nil && len(list) > 0 {
			if err := c.use(s); err != nil {
				return err
			}
		}
		if s != c.secret {
			continue
		}
		for _, r := range list {
			c.places[r.key] = place{name, r.span}
		}
	}
	if c.mac == nil {
		var s secret
		rand.Read(s[:])
		return c.use(s)
	}
	return nil
}

// list reads the list of a blob. It is removed if it is damaged or the blob is
// gone.
func (c *SegmentCache) list(name string) (s secret, list []record) {
	path := filepath.Join(c.dir, name)
	f, err := os.Open(path)
	if err != nil {
		return s, nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxList+1))
	if err != nil {
		return s, nil
	}
	_, missing := os.Lstat(filepath.Join(c.blobs, name))
	rest, ok := bytes.CutPrefix(data, []byte(listHead))
	n := len(rest) - len(s) - 4
	ok = ok && len(data) <= maxList && n > 0 && n%recordSize == 0 &&
		binary.LittleEndian.Uint32(data[len(data)-4:]) == crc32.Checksum(data[:len(data)-4], castagnoli)
	if !ok || os.IsNotExist(missing) {
		_ = os.Remove(path)
		return s, nil
	}
	rest = rest[copy(s[:], rest):]
	list = make([]record, 0, n/recordSize)
	for b := range slices.Chunk(rest[:n], recordSize) {
		var r record
		b = b[copy(r.key[:], b):]
		r.offset = binary.LittleEndian.Uint64(b)
		r.size = binary.LittleEndian.Uint32(b[8:])
		r.sum = binary.LittleEndian.Uint32(b[12:])
		list = append(list, r)
	}
	return s, list
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
	if len(list) == 0 || len(list) > (maxList-len(listHead)-len(c.secret)-4)/recordSize {
		return
	}
	data := append([]byte(listHead), c.secret[:]...)
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
