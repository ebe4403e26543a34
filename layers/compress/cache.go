package compress

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// SegmentCache is a directory of compressed segments, which any number of
// processes share. A segment is a file named by the SHA-256 of its content and
// of what its compression depends on. Its last four bytes are a checksum;
// damaged files are taken for missing. Nothing is synced: what a crash takes
// away is compressed again. That a segment can't be kept is no error either.
type SegmentCache struct{ dir string }

// touchAfter is how old a segment's time of use may be before it is renewed.
const touchAfter = time.Hour

// OpenSegments opens the segment cache at dir and makes it if missing. What
// killed processes left half-written is removed.
func OpenSegments(dir string) (*SegmentCache, error) {
	c := &SegmentCache{dir}
	if err := os.MkdirAll(c.tmp(), 0o755); err != nil {
		return nil, err
	}
	return c, c.clean()
}

func (c *SegmentCache) tmp() string { return filepath.Join(c.dir, "tmp") }

// clean removes temporary files that nobody has locked.
func (c *SegmentCache) clean() error {
	files, err := os.ReadDir(c.tmp())
	if err != nil {
		return err
	}
	for _, d := range files {
		path := filepath.Join(c.tmp(), d.Name())
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(path)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *SegmentCache) path(key [32]byte) string {
	return filepath.Join(c.dir, hex.EncodeToString(key[:]))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers the key too: a file under a wrong name is damaged.
func checksum(key [32]byte, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(key[:], castagnoli), castagnoli, data)
}

// get appends the segment to dst, if it is there.
func (c *SegmentCache) get(key [32]byte, dst []byte) ([]byte, bool) {
	f, err := os.Open(c.path(key))
	if err != nil {
		return dst, false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return dst, false
	}
	n := int(fi.Size()) - 4
	if !fi.Mode().IsRegular() || n <= 0 || n > 2*maxSegment {
		os.Remove(f.Name())
		return dst, false
	}
	start := len(dst)
	b := slices.Grow(dst, n+4)[:start+n+4]
	if _, err := io.ReadFull(f, b[start:]); err != nil {
		return dst, false
	}
	data, sum := b[start:start+n], b[start+n:]
	if binary.LittleEndian.Uint32(sum) != checksum(key, data) {
		os.Remove(f.Name())
		return b[:start], false
	}
	if now := time.Now(); now.Sub(fi.ModTime()) > touchAfter {
		os.Chtimes(f.Name(), now, now)
	}
	return b[:start+n], true
}

// put keeps a segment if it can.
func (c *SegmentCache) put(key [32]byte, data []byte) {
	f, err := os.CreateTemp(c.tmp(), "")
	if err != nil {
		return
	}
	defer f.Close()
	// The lock tells clean that the file has a living owner. It may have been
	// faster; then the rename fails.
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		_, err = f.Write(binary.LittleEndian.AppendUint32(nil, checksum(key, data)))
	}
	if err == nil {
		err = os.Rename(f.Name(), c.path(key))
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

// Size is the number of bytes that the segments take.
func (c *SegmentCache) Size() (int64, error) {
	total := int64(0)
	files, err := c.files()
	for _, f := range files {
		total += f.Size()
	}
	return total, err
}

// Prune removes the segments that were not used for the longest time, until the
// others take no more than maxBytes, and returns the bytes freed. Times of use
// are exact to an hour.
func (c *SegmentCache) Prune(maxBytes int64) (freed int64, err error) {
	files, err := c.files()
	if err != nil {
		return 0, err
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	for _, f := range files { // the last used first
		if maxBytes -= f.Size(); maxBytes >= 0 {
			continue
		}
		err := os.Remove(filepath.Join(c.dir, f.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, err
		}
		freed += f.Size()
	}
	return freed, nil
}

func (c *SegmentCache) files() ([]fs.FileInfo, error) {
	list, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var files []fs.FileInfo
	for _, d := range list {
		if !d.Type().IsRegular() {
			continue
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, fi)
	}
	return files, nil
}
