package compress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Limits of what a stream may have us remember of what was decompressed. They
// are the most that `zstd -22` and `xz -9` want.
const (
	maxZstdWindow = 128 << 20
	maxXZDict     = 64 << 20
)

// Detect names the compression by the first bytes (at least 6 where there are
// so many): "gzip", "zstd", "bzip2", "xz" or "".
func Detect(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		return "gzip"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return "zstd" // a skippable frame (RFC 8878 section 3.1.2)
	case len(head) >= 4 && string(head[:3]) == "BZh" && head[3] >= '1' && head[3] <= '9':
		return "bzip2"
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "xz"
	}
	return ""
}

// NewReader decompresses gzip, zstd, bzip2, xz or nothing, as the first bytes
// tell; several members or frames in a row are one stream. r is read to its end.
// Read-ahead runs in parallel.
//
// Memory is bounded whatever the stream says: zstd windows of more than 128 MiB
// and xz dictionaries of more than 64 MiB are errors. The size of the output is
// for the caller to bound.
//
// Close ends the read-ahead. It waits for the Read of r that is under way and
// does not close r.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	format := Detect(head)
	var in io.Reader
	free := func() {}
	switch format {
	case "gzip":
		in, err = gzip.NewReader(br)
	case "zstd":
		var d *zstd.Decoder
		d, err = zstd.NewReader(br,
			zstd.WithDecoderMaxWindow(maxZstdWindow),
			zstd.WithDecoderLowmem(true))
		if err == nil {
			in, free = d, d.Close
		}
	case "bzip2":
		in, err = bzip2.NewReader(br), nil
	case "xz":
		in, err = xz.NewReader(bufio.NewReaderSize(newXZGuard(br), 64<<10))
	default:
		in, err = br, nil
	}
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", format, err)
	}
	return newAhead(in, free, format), nil
}

// ahead reads ahead in a goroutine of its own.
type ahead struct {
	format string
	full   chan piece
	free   chan []byte
	stop   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup

	cur  []byte // not yet read of buf
	buf  []byte
	err  error // after cur
	over bool  // Close was called
}

type piece struct {
	buf []byte
	n   int
	err error
}

const (
	aheadPieces = 4
	aheadSize   = 256 << 10
)

// newAhead starts reading r; free is called when that is over.
func newAhead(r io.Reader, free func(), format string) *ahead {
	a := &ahead{
		format: format,
		full:   make(chan piece, aheadPieces),
		free:   make(chan []byte, aheadPieces),
		stop:   make(chan struct{}),
	}
	for range aheadPieces {
		a.free <- nil // made when needed: most streams are small
	}
	a.wg.Go(func() {
		defer free()
		a.fill(r)
	})
	return a
}

func (a *ahead) fill(r io.Reader) {
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		if buf == nil {
			buf = make([]byte, aheadSize)
		}
		n, err := fillBuf(r, buf)
		a.full <- piece{buf, n, err} // has room for all pieces
		if err != nil {
			return
		}
	}
}

// fillBuf is like io.ReadFull, but tells errors as r does: a short stream ends
// with io.EOF, a truncated one with io.ErrUnexpectedEOF.
func fillBuf(r io.Reader, buf []byte) (n int, err error) {
	for empty := 0; n < len(buf) && err == nil; {
		var m int
		m, err = r.Read(buf[n:])
		n += m
		if m > 0 {
			empty = 0
		} else if empty++; empty == 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

func (a *ahead) Read(p []byte) (int, error) {
	if a.over {
		return 0, io.ErrClosedPipe
	}
	if len(p) == 0 {
		return 0, nil
	}
	for len(a.cur) == 0 {
		if a.buf != nil {
			a.free <- a.buf
			a.buf = nil
		}
		if a.err != nil {
			return 0, a.err
		}
		next := <-a.full
		a.buf, a.cur, a.err = next.buf, next.buf[:next.n], next.err
		if a.err != nil && a.err != io.EOF && a.format != "" {
			a.err = fmt.Errorf("decompress %s: %w", a.format, a.err)
		}
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// Close may be called twice.
func (a *ahead) Close() error {
	a.over = true
	a.once.Do(func() { close(a.stop) })
	a.wg.Wait()
	return nil
}
