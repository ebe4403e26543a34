package compress

import "io"

// The sizes of segments. A cut is made after minSegment bytes where the hash of
// the last 64 bytes has cutBits zeros, so that segments have 1.2 MiB on average.
// The more bytes, the fewer files the cache has; the fewer, the less is
// compressed again after a change.
const (
	minSegment = 256 << 10
	maxSegment = 4 << 20
	cutBits    = 20

	window = 64 // bytes that the hash depends on
)

// gear has a random number for every byte.
var gear = makeGear()

// makeGear is splitmix64. The numbers are part of what Version stands for.
func makeGear() (g [256]uint64) {
	x := uint64(0)
	for i := range g {
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		g[i] = z ^ z>>31
	}
	return g
}

// cutter finds the cuts of a stream that it is shown piece by piece.
type cutter struct {
	n    int // bytes of the segment seen
	hash uint64
}

// next returns how many bytes of p belong to the segment, and whether it ends
// there.
func (c *cutter) next(p []byte) (n int, cut bool) {
	end := min(len(p), maxSegment-c.n)
	skip := min(max(0, minSegment-window-c.n), end)
	fill := min(max(skip, minSegment-c.n), end) // up to here the hash only fills
	h := roll(c.hash, p[skip:fill])
	at, h := search(h, p[fill:end])
	if at >= 0 {
		*c = cutter{}
		return fill + at + 1, true
	}
	if c.n+end == maxSegment {
		*c = cutter{}
		return end, true
	}
	c.n += end
	c.hash = h
	return end, false
}

// roll is the hash after the bytes of p. Before the last 64 it may have been any.
func roll(h uint64, p []byte) uint64 {
	for _, b := range p {
		h = h<<1 + gear[b]
	}
	return h
}

// limit is what the hash is below where there is a cut.
const limit = 1 << (64 - cutBits)

// search returns where in p the first cut is, -1 if there is none, and the hash
// after p. Both halves are searched at the same time: a processor waits for the
// hash before each step, and does another step meanwhile.
func search(h uint64, p []byte) (at int, after uint64) {
	half := len(p) / 2
	if half < window {
		return searchPlain(h, p)
	}
	first, second := p[:half], p[half:2*half]
	h2 := roll(0, first[half-window:])
	for i, b := range first {
		h = h<<1 + gear[b]
		h2 = h2<<1 + gear[second[i]]
		switch {
		case h < limit:
			return i, 0
		case h2 < limit:
			// Unless the first half has one yet.
			if at, _ := searchPlain(h, first[i+1:]); at >= 0 {
				return i + 1 + at, 0
			}
			return half + i, 0
		}
	}
	at, after = searchPlain(h2, p[2*half:]) // a byte, if p has an odd number of them
	if at >= 0 {
		at += 2 * half
	}
	return at, after
}

func searchPlain(h uint64, p []byte) (at int, after uint64) {
	for i, b := range p {
		if h = h<<1 + gear[b]; h < limit {
			return i, 0
		}
	}
	return -1, h
}

// Cut calls fn for each segment of a stream. Segments end where the content
// says: streams that have much in common have segments in common. fn must not
// keep the segment.
func Cut(r io.Reader, fn func(segment []byte) error) error {
	var c cutter
	buf := make([]byte, 128<<10)
	segment := make([]byte, 0, maxSegment)
	for {
		n, err := r.Read(buf)
		for rest := buf[:n]; len(rest) > 0; {
			took, cut := c.next(rest)
			segment = append(segment, rest[:took]...)
			rest = rest[took:]
			if cut {
				if err := fn(segment); err != nil {
					return err
				}
				segment = segment[:0]
			}
		}
		if err == io.EOF {
			if len(segment) > 0 {
				return fn(segment)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}
