package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Log and snapshot are made of frames. All numbers are little endian.
//
//	 0  mark     8 bytes, the same for all frames of a file; see below
//	 8  sum      CRC-32C of everything after it
//	12  length   of the payload
//	16  kind     1 byte, then 3 zero bytes
//	20  used     hours since 1970
//	24  id      16 bytes
//	40  payload
//
// The mark is a random number that the file's header holds. A reader who meets
// damage finds the next frame by it, and no text of a Dockerfile that ends up in
// a payload can pass for a frame, because its author can't know the mark.
const (
	frameHeader = 40
	maxPayload  = 16 << 20
)

// kind is what a frame tells. Readers pass over kinds they don't know.
type kind byte

const (
	kindRecord kind = 1 // the payload is a Record
	kindMemo   kind = 2 // the payload is a memo
	kindDelete kind = 3 // the id is gone
	kindUsed   kind = 4 // the id was used
)

// id is the hash of what an entry is looked up by.
type id [16]byte

type mark [8]byte

type frame struct {
	kind    kind
	used    uint32
	id      id
	payload string
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc32c(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func appendFrame(b []byte, m mark, f frame) []byte {
	start := len(b)
	b = append(b, m[:]...)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.payload)))
	b = append(b, byte(f.kind), 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, f.used)
	b = append(b, f.id[:]...)
	b = append(b, f.payload...)
	binary.LittleEndian.PutUint32(b[start+8:], crc32c(b[start+12:]))
	return b
}

// errFrame: the bytes are not a whole, undamaged frame.
var errFrame = errors.New("damaged record")

// parseFrame reads the frame that b begins with and returns its size. The
// frame has no part of b.
func parseFrame(b []byte, m mark) (frame, int, error) {
	if len(b) < frameHeader || mark(b[:8]) != m {
		return frame{}, 0, errFrame
	}
	length := binary.LittleEndian.Uint32(b[12:])
	if length > maxPayload || int(length) > len(b)-frameHeader {
		return frame{}, 0, errFrame
	}
	size := frameHeader + int(length)
	if crc32c(b[12:size]) != binary.LittleEndian.Uint32(b[8:]) {
		return frame{}, 0, errFrame
	}
	return frame{
		kind:    kind(b[16]),
		used:    binary.LittleEndian.Uint32(b[20:]),
		id:      id(b[24:40]),
		payload: string(b[frameHeader:size]),
	}, size, nil
}

// nextFrame finds the first good frame in b and returns how many bytes before
// it were passed over, and its size. ok is false if there is none: b ends in
// the middle of a frame, or holds nothing but damage.
func nextFrame(b []byte, m mark) (f frame, skipped, size int, ok bool) {
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], m[:])
		if i < 0 {
			return frame{}, 0, 0, false
		}
		at += i
		if f, size, err := parseFrame(b[at:], m); err == nil {
			return f, at, size, true
		}
	}
}
