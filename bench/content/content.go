// Package content makes the contents of the files that the benchmarks build
// images of: like what layers hold, a third of programs, half of text, and a
// sixth of data that is compressed already. gzip -6 makes 44 % of it, as of a
// Debian /usr/lib, and is a bit faster there.
package content

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
)

// Bytes are size bytes that depend on the two numbers alone.
func Bytes(size int, a, b uint64) []byte {
	return Append(make([]byte, 0, size), size, a, b)
}

// Append appends size such bytes to buf.
func Append(buf []byte, size int, a, b uint64) []byte {
	rnd := rand.NewPCG(a, b)
	end := len(buf) + size
	for len(buf) < end {
		switch rnd.Uint64() % 6 {
		case 0, 1:
			buf = program.append(buf, min(end-len(buf), 16<<10), rnd)
		case 2, 3, 4:
			buf = text.append(buf, min(end-len(buf), 16<<10), rnd)
		case 5:
			for n := min(end-len(buf), 16<<10); n > 0; n -= 8 {
				buf = binary.LittleEndian.AppendUint64(buf, rnd.Uint64())
			}
		}
	}
	return buf[:end]
}

// vocabulary is a language of words that are the rarer the later they come, by
// Zipf's law.
type vocabulary struct {
	words [][]byte
	draw  []uint16 // words, as often as they are used
	noise int      // one word in so many is followed by bytes of chance; 0: none
}

var (
	text    = newVocabulary(6000, 2, 9, "etaoinshrdlucmfwypvbgkjqxz", " ", 0)
	program = newVocabulary(3000, 2, 6, machine(), "", 8)
)

// machine is bytes as instructions have them, some more often than others.
func machine() string {
	rnd := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, 160)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return string(b)
}

func newVocabulary(n, shortest, longest int, letters, end string, noise int) vocabulary {
	rnd := rand.New(rand.NewPCG(uint64(n), 0))
	v := vocabulary{noise: noise}
	for i := range n {
		word := make([]byte, shortest+rnd.IntN(longest-shortest+1))
		for j := range word {
			// Squared: the first letters are used most.
			f := rnd.Float64()
			word[j] = letters[int(f*f*float64(len(letters)))]
		}
		v.words = append(v.words, append(word, end...))
		for range int(math.Ceil(4000 / float64(i+4))) {
			v.draw = append(v.draw, uint16(i))
		}
	}
	return v
}

// append appends words, some with noise behind them, and now and then what came
// a while before once more.
func (v *vocabulary) append(buf []byte, size int, rnd *rand.PCG) []byte {
	start := len(buf)
	for end := start + size; len(buf) < end; {
		r := rnd.Uint64()
		buf = append(buf, v.words[v.draw[uint32(r)%uint32(len(v.draw))]]...)
		r >>= 32
		if v.noise > 0 && r%uint64(v.noise) == 0 {
			buf = append(buf, byte(r>>8))
		}
		if back := int(r >> 16 & 0x1fff); r>>30 == 0 && back > 64 && back < len(buf)-start {
			at := len(buf) - back
			buf = append(buf, buf[at:at+8+back%56]...)
		}
	}
	return buf
}
