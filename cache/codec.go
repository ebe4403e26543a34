package cache

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
)

// A payload is a list of fields: a tag, a length, and so many bytes. Readers
// pass over tags they don't know, so that fields can be added. A build looks up
// every step, which is why this is not JSON: decoding takes a tenth of the time.
type tag byte

const (
	tagKey tag = iota + 1
	tagOutput
	tagMade
	tagTook
	tagName
	tagOp
	tagInput
	tagArg
	tagPlatform
	tagSelector
	tagDigest

	tagTree tag = 32
)

var errPayload = errors.New("damaged record content")

type memo struct {
	key, selector string
	digest        digest.Digest
}

func appendField(b []byte, t tag, s string) []byte {
	b = append(b, byte(t))
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendInt(b []byte, t tag, n int64) []byte {
	var buf [binary.MaxVarintLen64]byte
	size := binary.PutVarint(buf[:], n)
	return append(append(b, byte(t), byte(size)), buf[:size]...)
}

// fields calls fn for every field of a payload.
func fields(payload string, fn func(tag, string) error) error {
	for payload != "" {
		t := tag(payload[0])
		s, rest, err := cutField(payload[1:])
		if err != nil {
			return err
		}
		if err := fn(t, s); err != nil {
			return err
		}
		payload = rest
	}
	return nil
}

// cutField cuts a length and so many bytes off the front of s.
func cutField(s string) (field, rest string, err error) {
	n, size := uvarint(s)
	if size <= 0 || n > uint64(len(s)-size) {
		return "", "", errPayload
	}
	return s[size : size+int(n)], s[size+int(n):], nil
}

// uvarint is binary.Uvarint for a string.
func uvarint(s string) (n uint64, size int) {
	return binary.Uvarint([]byte(s[:min(len(s), binary.MaxVarintLen64)]))
}

func decodeInt(s string) (int64, error) {
	n, size := binary.Varint([]byte(s))
	if size != len(s) || size == 0 {
		return 0, errPayload
	}
	return n, nil
}

func encodeRecord(r Record) string {
	b := appendField(nil, tagKey, string(r.Key))
	for _, tree := range r.Outputs {
		var list []byte
		for _, id := range tree {
			list = binary.AppendUvarint(list, uint64(len(id)))
			list = append(list, id...)
		}
		b = appendField(b, tagOutput, string(list))
	}
	for _, id := range r.Trees {
		b = appendField(b, tagTree, id)
	}
	b = appendInt(b, tagMade, r.Made.UnixNano())
	b = appendInt(b, tagTook, int64(r.Took))
	b = appendField(b, tagName, r.Why.Name)
	b = appendField(b, tagOp, r.Why.Op)
	for _, in := range r.Why.Inputs {
		b = appendField(b, tagInput, in)
	}
	for _, arg := range r.Why.Args {
		b = appendField(b, tagArg, arg)
	}
	if r.Why.Platform != "" {
		b = appendField(b, tagPlatform, r.Why.Platform)
	}
	return string(b)
}

// decodeRecord is the inverse of encodeRecord. The record's strings are parts
// of the payload.
func decodeRecord(payload string) (r Record, err error) {
	err = fields(payload, func(t tag, s string) (err error) {
		var n int64
		switch t {
		case tagKey:
			r.Key = Key(s)
		case tagOutput:
			tree := make(layers.Tree, 0, 1+len(s)/65)
			for s != "" {
				var layer string
				if layer, s, err = cutField(s); err != nil {
					return err
				}
				tree = append(tree, layers.ID(layer))
			}
			r.Outputs = append(r.Outputs, tree)
		case tagTree:
			r.Trees = append(r.Trees, s)
		case tagMade:
			n, err = decodeInt(s)
			r.Made = time.Unix(0, n).UTC()
		case tagTook:
			n, err = decodeInt(s)
			r.Took = time.Duration(n)
		case tagName:
			r.Why.Name = s
		case tagOp:
			r.Why.Op = s
		case tagInput:
			r.Why.Inputs = append(r.Why.Inputs, s)
		case tagArg:
			r.Why.Args = append(r.Why.Args, s)
		case tagPlatform:
			r.Why.Platform = s
		}
		return err
	})
	return r, err
}

func encodeMemo(m memo) string {
	b := appendField(nil, tagKey, m.key)
	b = appendField(b, tagSelector, m.selector)
	return string(appendField(b, tagDigest, string(m.digest)))
}

func decodeMemo(payload string) (m memo, err error) {
	err = fields(payload, func(t tag, s string) error {
		switch t {
		case tagKey:
			m.key = s
		case tagSelector:
			m.selector = s
		case tagDigest:
			m.digest = digest.Digest(s)
		}
		return nil
	})
	return m, err
}
