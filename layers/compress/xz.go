package compress

import (
	"fmt"
	"io"
)

// xzGuard passes an xz stream through and fails at a block whose dictionary is
// larger than maxXZDict: the decoder allocates what a block asks for, up to 4
// GiB. It knows the format (xz-file-format 1.2, and LZMA2's chunks) as far as it
// takes to find the headers of blocks; what is wrong otherwise is for the
// decoder to tell.
type xzGuard struct {
	r    io.Reader
	skip int64              // bytes that don't matter, before buf
	buf  []byte             // of the next want bytes
	want int                // how many next gets
	next func([]byte) error // sets all this anew

	check  int64 // size of a block's checksum
	packed int64 // bytes of the block's chunks
	props  int64 // bytes of properties that precede the chunk
	index  int64 // bytes of the index
	left   uint64
	shift  uint
}

func newXZGuard(r io.Reader) *xzGuard {
	g := &xzGuard{r: r}
	g.then(0, 4, g.start)
	return g
}

func (g *xzGuard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if err1 := g.scan(p[:n]); err1 != nil {
		return 0, err1
	}
	return n, err
}

func (g *xzGuard) then(skip int64, want int, next func([]byte) error) {
	g.skip, g.want, g.next = skip, want, next
}

func (g *xzGuard) scan(p []byte) error {
	for len(p) > 0 && g.next != nil {
		if g.skip > 0 {
			n := min(g.skip, int64(len(p)))
			g.skip -= n
			p = p[n:]
			continue
		}
		n := min(g.want-len(g.buf), len(p))
		g.buf = append(g.buf, p[:n]...)
		p = p[n:]
		if len(g.buf) < g.want {
			continue
		}
		b, next := g.buf, g.next
		g.buf, g.next = g.buf[:0], nil
		if err := next(b); err != nil {
			return err
		}
	}
	return nil
}

// start gets the first four bytes of a stream, or of the padding before it.
func (g *xzGuard) start(b []byte) error {
	if string(b) == "\x00\x00\x00\x00" {
		g.then(0, 4, g.start)
		return nil
	}
	g.then(0, 8, g.header)
	return nil
}

func (g *xzGuard) header(b []byte) error {
	sizes := [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}
	g.check = sizes[b[3]&15]
	g.then(0, 1, g.block)
	return nil
}

// block gets the size of a block's header, or the index indicator.
func (g *xzGuard) block(b []byte) error {
	if b[0] == 0 {
		g.index, g.left, g.shift = 1, 0, 0
		g.then(0, 1, g.records)
		return nil
	}
	g.then(0, (int(b[0])+1)*4-1, g.blockHeader)
	return nil
}

func (g *xzGuard) blockHeader(b []byte) error {
	flags, b := b[0], b[1:]
	for _, has := range []bool{flags&0x40 != 0, flags&0x80 != 0} {
		for has && len(b) > 0 { // the sizes of the block
			has = b[0]&0x80 != 0
			b = b[1:]
		}
	}
	const lzma2 = 0x21
	if len(b) < 3 || b[0] != lzma2 || b[1] != 1 {
		return nil
	}
	bits := uint(b[2])
	if dict := int64(2|bits&1) << (bits/2 + 11); bits > 40 || dict > maxXZDict {
		return fmt.Errorf("it wants more than %d MiB of memory", maxXZDict>>20)
	}
	g.packed = 0
	g.then(0, 1, g.chunk)
	return nil
}

func (g *xzGuard) chunk(b []byte) error {
	g.packed++
	switch c := b[0]; {
	case c == 0:
		g.then(-g.packed&3+g.check, 1, g.block)
	case c <= 2:
		g.then(0, 2, g.plain)
	case c >= 0x80:
		g.props = 0
		if c >= 0xc0 {
			g.props = 1
		}
		g.then(0, 4, g.lzma)
	}
	return nil
}

func (g *xzGuard) plain(b []byte) error {
	n := int64(b[0])<<8 + int64(b[1]) + 1
	g.packed += 2 + n
	g.then(n, 1, g.chunk)
	return nil
}

func (g *xzGuard) lzma(b []byte) error {
	n := g.props + int64(b[2])<<8 + int64(b[3]) + 1
	g.packed += 4 + n
	g.then(n, 1, g.chunk)
	return nil
}

// records gets the number of records in the index, byte by byte.
func (g *xzGuard) records(b []byte) error {
	g.index++
	g.left |= uint64(b[0]&0x7f) << g.shift
	if g.shift += 7; b[0]&0x80 != 0 && g.shift < 63 {
		g.then(0, 1, g.records)
		return nil
	}
	g.left *= 2 // numbers
	return g.numbers()
}

func (g *xzGuard) number(b []byte) error {
	g.index++
	if b[0]&0x80 == 0 {
		g.left--
	}
	return g.numbers()
}

func (g *xzGuard) numbers() error {
	if g.left > 0 {
		g.then(0, 1, g.number)
		return nil
	}
	const crc, footer = 4, 12
	g.then(-g.index&3+crc+footer, 4, g.start)
	return nil
}
