package cache

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime/debug"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/state"
)

// snapshotFile is the compacted log: every entry once, and an index sorted by
// id. It is mapped into memory, so that opening it costs the same however large
// it is, and is never changed, only replaced.
//
//	 0  "strakesn"
//	 8  version, 4 bytes, and 4 zero bytes
//	16  mark
//	24  where the index begins
//	32  how many entries it has
//	40  CRC-32C of the bytes above, and 4 zero bytes
//	48  frames
//	    index: id, offset of the frame (8 bytes), size of the frame (4), 4 zero bytes
type snapshotFile struct {
	data  []byte
	index []byte
	mark  mark
}

const (
	snapshotHeader = 48
	indexEntry     = 32
)

// openSnapshot maps the snapshot at path. A file that is not there is an empty
// snapshot.
func openSnapshot(path string) (*snapshotFile, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return &snapshotFile{}, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() < snapshotHeader || int64(int(fi.Size())) != fi.Size() {
		return nil, fmt.Errorf("%s: %w", path, errForeign)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	s := &snapshotFile{data: data}
	if err := s.parseHeader(); err != nil {
		s.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func (s *snapshotFile) parseHeader() (err error) {
	defer s.guard(&err)()
	if err := checkMagic(s.data, snapshotMagic); err != nil {
		return err
	}
	if crc32c(s.data[:40]) != binary.LittleEndian.Uint32(s.data[40:]) {
		return errForeign
	}
	start := binary.LittleEndian.Uint64(s.data[24:])
	count := binary.LittleEndian.Uint64(s.data[32:])
	size := uint64(len(s.data))
	if start < snapshotHeader || start > size || count > size/indexEntry || size-start < count*indexEntry {
		return errForeign
	}
	s.mark = mark(s.data[16:])
	s.index = s.data[start:][:count*indexEntry]
	return nil
}

func (s *snapshotFile) close() error {
	if s.data == nil {
		return nil
	}
	data := s.data
	s.data, s.index = nil, nil
	return unix.Munmap(data)
}

// guard makes an error of the fault that reading mapped memory gives where the
// disk fails or the file was cut short.
func (s *snapshotFile) guard(err *error) (end func()) {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		switch r := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }:
			*err = fmt.Errorf("%w: %v", errFrame, r)
		default:
			panic(r)
		}
	}
}

func (s *snapshotFile) len() int { return len(s.index) / indexEntry }

// lookup returns the frame of i. ok tells if there is one, which may be
// damaged.
func (s *snapshotFile) lookup(i id) (f frame, ok bool, err error) {
	if len(s.index) == 0 {
		return frame{}, false, nil
	}
	defer s.guard(&err)()
	n, ok := sort.Find(s.len(), func(n int) int { return bytes.Compare(i[:], s.index[n*indexEntry:][:len(i)]) })
	if !ok {
		return frame{}, false, nil
	}
	f, err = s.frame(n)
	return f, true, err
}

// frame returns the n-th frame.
func (s *snapshotFile) frame(n int) (frame, error) {
	e := s.index[n*indexEntry:][:indexEntry]
	offset := binary.LittleEndian.Uint64(e[16:])
	size := uint64(binary.LittleEndian.Uint32(e[24:]))
	if offset > uint64(len(s.data)) || size > uint64(len(s.data))-offset {
		return frame{}, errFrame
	}
	f, _, err := parseFrame(s.data[offset:][:size], s.mark)
	if err == nil && f.id != id(e[:16]) {
		err = errFrame
	}
	return f, err
}

// all yields all frames, or what is wrong with them.
func (s *snapshotFile) all() iter.Seq2[frame, error] {
	read := func(n int) (f frame, err error) {
		defer s.guard(&err)()
		return s.frame(n)
	}
	return func(yield func(frame, error) bool) {
		for n := range s.len() {
			if !yield(read(n)) {
				return
			}
		}
	}
}

// writeSnapshot replaces the snapshot at path by one of frames, which have
// different ids. The caller holds the write lock. It is on disk before it takes
// its name: the log that it replaces is gone then.
func writeSnapshot(path string, temp tempFile, m mark, frames iter.Seq[frame]) (err error) {
	f, err := temp("snapshot")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	defer f.Close()

	type place struct {
		id     id
		offset uint64
		size   uint32
	}
	var index []place
	offset := uint64(snapshotHeader)
	w := bufio.NewWriterSize(f, 1<<20)
	w.Write(make([]byte, snapshotHeader))
	var buf []byte
	for fr := range frames {
		buf = appendFrame(buf[:0], m, fr)
		if _, err := w.Write(buf); err != nil {
			return err
		}
		index = append(index, place{fr.id, offset, uint32(len(buf))})
		offset += uint64(len(buf))
	}
	slices.SortFunc(index, func(a, b place) int {
		if c := cmp.Compare(binary.BigEndian.Uint64(a.id[:]), binary.BigEndian.Uint64(b.id[:])); c != 0 {
			return c
		}
		return bytes.Compare(a.id[:], b.id[:])
	})
	for _, p := range index {
		buf = append(buf[:0], p.id[:]...)
		buf = binary.LittleEndian.AppendUint64(buf, p.offset)
		buf = binary.LittleEndian.AppendUint32(buf, p.size)
		w.Write(append(buf, 0, 0, 0, 0))
	}
	if err := w.Flush(); err != nil {
		return err
	}

	header := append([]byte(nil), snapshotMagic...)
	header = binary.LittleEndian.AppendUint32(header, version)
	header = append(header, 0, 0, 0, 0)
	header = append(header, m[:]...)
	header = binary.LittleEndian.AppendUint64(header, offset)
	header = binary.LittleEndian.AppendUint64(header, uint64(len(index)))
	header = binary.LittleEndian.AppendUint32(header, crc32c(header))
	if _, err := io.NewOffsetWriter(f, 0).Write(header); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return state.Place(f.Name(), path)
}
