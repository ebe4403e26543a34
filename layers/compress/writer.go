package compress

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"io/fs"
	"sync"
)

// segment is a piece of the stream on its way.
type segment struct {
	raw  []byte
	out  []byte
	key  segmentKey // if there is a cache
	sum  uint32     // of out, likewise
	err  error
	done chan struct{} // gets a value when out or err is there
}

// frame is what a format has around the segments.
type frame interface {
	head() []byte
	// add is shown the segments in order.
	add(raw []byte)
	tail() []byte
}

// Writer compresses a stream. It cuts in the caller's goroutine, compresses in
// workers and writes in the goroutine emit.
type Writer struct {
	w          io.Writer
	frame      frame
	newEncoder func() (encoder, error)
	cache      *SegmentCache
	nonce      []byte // of keys in the cache

	cut     cutter
	seg     *segment      // being filled
	free    chan *segment // limits how many there are
	jobs    chan *segment
	order   chan *segment
	workers int // that may still be started
	wg      sync.WaitGroup
	closed  bool
	list    []record // of the segments written, if there is a cache

	mu  sync.Mutex
	err error // the first
}

func newWriter(w io.Writer, f frame, newEncoder func() (encoder, error), workers int, cache *SegmentCache, id string) *Writer {
	n := workers + 2 // one is being filled, one written
	if cache != nil && cache.load() != nil {
		cache = nil
	}
	z := &Writer{
		w:          w,
		frame:      f,
		newEncoder: newEncoder,
		cache:      cache,
		nonce:      nonce(id),
		free:       make(chan *segment, n),
		jobs:       make(chan *segment, n),
		order:      make(chan *segment, n),
		workers:    workers,
	}
	for range n {
		z.free <- &segment{done: make(chan struct{}, 1)}
	}
	z.wg.Go(z.emit)
	return z
}

func (z *Writer) Write(p []byte) (int, error) {
	if z.closed {
		return 0, fs.ErrClosed
	}
	total := len(p)
	for len(p) > 0 {
		if err := z.failed(); err != nil {
			return 0, err
		}
		if z.seg == nil {
			z.seg = <-z.free
		}
		n, cut := z.cut.next(p)
		z.seg.raw = append(z.seg.raw, p[:n]...)
		p = p[n:]
		if cut {
			z.submit()
		}
	}
	return total, nil
}

// submit hands the segment over to a worker.
func (z *Writer) submit() {
	z.order <- z.seg
	z.jobs <- z.seg
	z.seg = nil
	if z.workers > 0 {
		z.workers--
		z.wg.Go(z.work)
	}
}

// Keep tells the segment cache that what was written, from the first byte to the
// last, is the blob of this name in its directory of blobs. It must come after
// Close.
func (z *Writer) Keep(blob string) {
	if z.cache != nil && z.failed() == nil {
		z.cache.keep(blob, z.list)
	}
}

// Close flushes and ends the stream. It may be called twice.
func (z *Writer) Close() error {
	if z.closed {
		return z.failed()
	}
	z.closed = true
	if z.seg != nil {
		z.submit()
	}
	close(z.jobs)
	close(z.order)
	z.wg.Wait()
	return z.failed()
}

func (z *Writer) failed() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.err
}

func (z *Writer) fail(err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.err == nil {
		z.err = err
	}
}

// emit writes the segments in order. After an error it only takes them away.
func (z *Writer) emit() {
	offset := uint64(0)
	write := func(p []byte) {
		if z.failed() != nil {
			return
		}
		if _, err := z.w.Write(p); err != nil {
			z.fail(err)
		}
		offset += uint64(len(p))
	}
	write(z.frame.head())
	for s := range z.order {
		<-s.done
		if s.err != nil {
			z.fail(s.err)
		}
		z.frame.add(s.raw)
		if z.cache != nil {
			z.list = append(z.list, record{s.key, span{offset, uint32(len(s.out)), s.sum}})
		}
		write(s.out)
		s.raw, s.out, s.err = s.raw[:0], s.out[:0], nil
		z.free <- s
	}
	write(z.frame.tail())
}

// work compresses segments.
func (z *Writer) work() {
	var enc encoder // made when a segment is not cached
	for s := range z.jobs {
		if z.failed() == nil {
			s.err = z.compress(&enc, s)
		}
		s.done <- struct{}{}
	}
}

func (z *Writer) compress(enc *encoder, s *segment) (err error) {
	if z.cache != nil {
		s.key = z.cache.key(z.nonce, s.raw)
		defer func() { s.sum = checksum(s.key, s.out) }()
		var ok bool
		if s.out, ok = z.cache.get(s.key, s.out[:0]); ok {
			return nil
		}
	}
	if *enc == nil {
		if *enc, err = z.newEncoder(); err != nil {
			return err
		}
	}
	s.out, err = (*enc).encode(s.out[:0], s.raw)
	return err
}

// gzipFrame is a gzip member (RFC 1952).
type gzipFrame struct {
	crc  uint32
	size uint32
}

// head has no time, and says nothing of the operating system (255).
func (f *gzipFrame) head() []byte {
	return []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
}

func (f *gzipFrame) add(raw []byte) {
	f.crc = crc32.Update(f.crc, crc32.IEEETable, raw)
	f.size += uint32(len(raw))
}

// tail is an empty last block with fixed codes, and the trailer.
func (f *gzipFrame) tail() []byte {
	b := []byte{3, 0}
	b = binary.LittleEndian.AppendUint32(b, f.crc)
	return binary.LittleEndian.AppendUint32(b, f.size)
}

// zstdFrame has nothing around the segments, which are frames of their own. If
// there are none it is an empty frame, since nothing is no zstd stream.
type zstdFrame struct{ some bool }

func (f *zstdFrame) head() []byte { return nil }
func (f *zstdFrame) add([]byte)   { f.some = true }

func (f *zstdFrame) tail() []byte {
	if f.some {
		return nil
	}
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0}
}
