package leak

import (
	"encoding/binary"
	"io"
	"math/bits"
	"slices"
	"strings"
)

// index finds patterns. Of the text only every stride-th group of four bytes is
// looked at. The stride is so that one of those lies in any occurrence of any
// pattern, among its first stride+3 bytes. Most groups are in no pattern, which
// a table of bits tells; the others are looked up in a second one, and compared. It
// is the more worth the longer the patterns are.
type index struct {
	stride  int
	longest int
	shift   uint     // of a hash, to an index of the tables
	bits    []uint64 // by the one hash
	again   []uint64 // by another one
	groups  map[uint32][]place
	all     []pattern
}

// place is where a group is in a pattern.
type place struct {
	p  *pattern
	at int
}

const (
	groupLen  = 4
	maxStride = 64
	// The tables have this many bits for each group, within limits: few are set,
	// and for one or two secrets they fit into the fastest cache.
	bitsPerGroup     = 64
	minBits, maxBits = 16, 20 // as logarithms
)

func newIndex(values map[string]string) *index {
	var all []pattern
	for v, name := range values {
		all = append(all, patterns(name, v)...)
	}
	// Which of several is told must not be chance.
	slices.SortFunc(all, func(a, b pattern) int {
		return strings.Compare(a.secret+"\x00"+a.text, b.secret+"\x00"+b.text)
	})
	x := &index{stride: maxStride, groups: map[uint32][]place{}, all: all}
	for _, p := range all {
		x.stride = min(x.stride, len(p.text)-groupLen+1)
		x.longest = max(x.longest, len(p.text))
	}
	size := min(max(bits.Len(uint(len(all)*x.stride*bitsPerGroup)), minBits), maxBits)
	x.shift = uint(32 - size)
	x.bits, x.again = make([]uint64, 1<<size/64), make([]uint64, 1<<size/64)
	for i := range all {
		p := &all[i]
		for at := range x.stride {
			g := binary.LittleEndian.Uint32([]byte(p.text[at:]))
			x.groups[g] = append(x.groups[g], place{p, at})
			h, a := g*multiplier>>x.shift, g*another>>x.shift
			x.bits[h>>6] |= 1 << (h & 63)
			x.again[a>>6] |= 1 << (a & 63)
		}
	}
	return x
}

// A group is hashed by a multiplication, of which the upper bits count.
const multiplier, another uint32 = 0x9e3779b1, 0x85ebca6b

// find returns the first pattern in b.
func (x *index) find(b []byte) (Match, bool) {
	stride, shift, bits := x.stride, x.shift, x.bits
	for i := 0; i+groupLen <= len(b); i += stride {
		g := binary.LittleEndian.Uint32(b[i:])
		h := g * multiplier >> shift
		if bits[h>>6]>>(h&63)&1 == 0 {
			continue
		}
		if a := g * another >> shift; x.again[a>>6]>>(a&63)&1 == 0 {
			continue
		}
		if m, ok := x.at(b, i, g); ok {
			return m, true
		}
	}
	return Match{}, false
}

// at looks for a pattern that has the group g at b[i].
func (x *index) at(b []byte, i int, g uint32) (Match, bool) {
	for _, pl := range x.groups[g] {
		start := i - pl.at
		end := start + len(pl.p.text)
		if start >= 0 && end <= len(b) && string(b[start:end]) == pl.p.text {
			return Match{Secret: pl.p.secret, Form: pl.p.form, Offset: int64(start), Length: len(pl.p.text)}, true
		}
	}
	return Match{}, false
}

// Search searches what is written to it. The values are those that the Guard
// knows when it is made.
type Search struct {
	x     *index
	tail  []byte // the end of what was written, as long as a pattern may be
	n     int64  // bytes written
	match Match
	found bool
}

// Search returns a new Search; nil if the Guard knows no values.
func (g *Guard) Search() *Search {
	x := g.compiled()
	if x == nil {
		return nil
	}
	return &Search{x: x}
}

// Beside returns a writer that writes to w, and to the Search at the same time on
// another processor: to hash bytes takes longer than to search them. Of nil it is
// w.
func (s *Search) Beside(w io.Writer) io.Writer {
	if s == nil {
		return w
	}
	return beside{s, w}
}

type beside struct {
	s *Search
	w io.Writer
}

func (b beside) Write(p []byte) (n int, err error) {
	b.s.during(p, func() { n, err = b.w.Write(p) })
	return n, err
}

// during searches p while fn runs, on another processor if that is worth it.
func (s *Search) during(p []byte, fn func()) {
	const worthIt = 16 << 10 // handing over less takes longer than searching it
	if len(p) < worthIt {
		_, _ = s.Write(p)
		fn()
		return
	}
	searched := make(chan struct{})
	go func() {
		defer close(searched)
		_, _ = s.Write(p)
	}()
	fn()
	<-searched
}

// Gate returns a writer that searches, and passes to w only what has been
// searched: no byte of a value that is found, and nothing after it, not even if
// the value came in pieces. The search of what comes next runs beside w. What is
// held back is written by Close, which does not close w. Of nil it is w.
func (s *Search) Gate(w io.Writer) io.WriteCloser {
	if s == nil {
		return open{w}
	}
	return &gate{s: s, w: w}
}

type open struct{ io.Writer }

func (open) Close() error { return nil }

type gate struct {
	s    *Search
	w    io.Writer
	held []byte // searched; its end may be the beginning of a value
}

func (g *gate) Write(p []byte) (n int, err error) {
	safe := max(0, len(g.held)-(g.s.x.longest-1))
	g.s.during(p, func() { err = g.pass(g.held[:safe]) })
	if g.s.found {
		g.held = nil
		return len(p), err
	}
	g.held = append(g.held[:copy(g.held, g.held[safe:])], p...)
	return len(p), err
}

func (g *gate) pass(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := g.w.Write(p)
	return err
}

func (g *gate) Close() error {
	err := g.pass(g.held)
	g.held = nil
	return err
}

// Write never fails.
func (s *Search) Write(p []byte) (int, error) {
	n := len(p)
	if s.found {
		return n, nil
	}
	keep := s.x.longest - 1
	if len(s.tail) > 0 {
		// What began before p.
		old := len(s.tail)
		s.tail = append(s.tail, p[:min(len(p), keep)]...)
		s.note(s.tail, s.n-int64(old))
		s.tail = s.tail[:old]
	}
	s.note(p, s.n)
	if len(p) >= keep {
		s.tail = append(s.tail[:0], p[len(p)-keep:]...)
	} else {
		s.tail = append(s.tail, p...)
		if over := len(s.tail) - keep; over > 0 {
			s.tail = append(s.tail[:0], s.tail[over:]...)
		}
	}
	s.n += int64(n)
	return n, nil
}

func (s *Search) note(b []byte, offset int64) {
	if s.found {
		return
	}
	if m, ok := s.x.find(b); ok {
		m.Offset += offset
		s.match, s.found = m, true
	}
}

// Found returns the first value that was found.
func (s *Search) Found() (Match, bool) {
	if s == nil {
		return Match{}, false
	}
	return s.match, s.found
}
