package snapshot

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/strake-build/strake/layers"
)

// A recipe file is a sequence of blocks after a line that names the format. A
// block is its length and CRC-32C, and as many entries as make about 64 KiB. An
// empty block ends the file, so that one that was cut off is noticed. In an
// entry, paths are told by what they share with the one before.
//
// 100,000 entries take about 6 MB, most of it digests, and some 50 ms to read.
const (
	recipeMagic = "strake recipe 1\n"
	blockSize   = 64 << 10
	maxBlock    = 1 << 30 // an entry may have much inline content
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// Bits that tell which fields an entry has.
const (
	hasOwner = 1 << iota
	hasLink
	hasDevice
	hasXattrs
	hasTime
	hasDigest
	hasData
	hasOrigin
	isOpaque
)

var errDamaged = errors.New("damaged recipe")

// writeRecipe writes entries as a recipe.
func writeRecipe(w io.Writer, entries []layers.Entry) error {
	out := bufio.NewWriterSize(w, 256<<10)
	out.WriteString(recipeMagic)
	var enc recipeEncoder
	flush := func() error {
		var head [12]byte
		binary.LittleEndian.PutUint64(head[:8], uint64(len(enc.buf)))
		binary.LittleEndian.PutUint32(head[8:], crc32.Checksum(enc.buf, crcTable))
		out.Write(head[:])
		_, err := out.Write(enc.buf)
		enc = recipeEncoder{buf: enc.buf[:0]}
		return err
	}
	for _, e := range entries {
		if err := enc.entry(e); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		if len(enc.buf) >= blockSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(enc.buf) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	if err := flush(); err != nil { // the empty block
		return err
	}
	return out.Flush()
}

// recipeEncoder appends entries to a block.
type recipeEncoder struct {
	buf          []byte
	path, origin string // of the entry before
}

func (c *recipeEncoder) uint(v uint64)   { c.buf = binary.AppendUvarint(c.buf, v) }
func (c *recipeEncoder) int(v int64)     { c.buf = binary.AppendVarint(c.buf, v) }
func (c *recipeEncoder) string(s string) { c.uint(uint64(len(s))); c.buf = append(c.buf, s...) }

// after appends s, given that prev is known.
func (c *recipeEncoder) after(prev, s string) {
	n := 0
	for n < len(prev) && n < len(s) && prev[n] == s[n] {
		n++
	}
	c.uint(uint64(n))
	c.string(s[n:])
}

// fields tells which fields an entry has.
func fields(e layers.Entry) (has uint64) {
	set := func(bit uint64, is bool) {
		if is {
			has |= bit
		}
	}
	set(hasOwner, e.UID != 0 || e.GID != 0)
	set(hasLink, e.Link != "")
	set(hasDevice, e.Major != 0 || e.Minor != 0)
	set(hasXattrs, len(e.Xattrs) > 0)
	set(hasTime, !e.ModTime.IsZero())
	set(hasDigest, e.Digest != "")
	set(hasData, e.Inline)
	set(hasOrigin, e.Origin != layers.Origin{})
	set(isOpaque, e.Opaque)
	return has
}

func (c *recipeEncoder) entry(e layers.Entry) error {
	has := fields(e)
	c.uint(has)
	c.buf = append(c.buf, byte(e.Type))
	c.after(c.path, e.Path)
	c.path = e.Path
	c.uint(uint64(e.Mode))
	c.int(e.Size)
	if has&hasOwner != 0 {
		c.int(int64(e.UID))
		c.int(int64(e.GID))
	}
	if has&hasLink != 0 {
		c.string(e.Link)
	}
	if has&hasDevice != 0 {
		c.uint(uint64(e.Major))
		c.uint(uint64(e.Minor))
	}
	if has&hasXattrs != 0 {
		names := make([]string, 0, len(e.Xattrs))
		for name := range e.Xattrs {
			names = append(names, name)
		}
		slices.Sort(names)
		c.uint(uint64(len(names)))
		for _, name := range names {
			c.string(name)
			c.string(e.Xattrs[name])
		}
	}
	if has&hasTime != 0 {
		c.int(e.ModTime.Unix())
		c.uint(uint64(e.ModTime.Nanosecond()))
	}
	if has&hasDigest != 0 {
		raw, err := rawDigest(e.Digest)
		if err != nil {
			return err
		}
		c.buf = append(c.buf, raw[:]...)
	}
	if has&hasData != 0 {
		c.string(string(e.Data))
	}
	if has&hasOrigin != 0 {
		c.uint(uint64(e.Origin.Input))
		c.after(c.origin, e.Origin.Path)
		c.origin = e.Origin.Path
	}
	return nil
}

// readRecipe yields the entries of the recipe file at path. The error of one
// that is damaged is errDamaged.
func readRecipe(path string) iter.Seq2[layers.Entry, error] {
	return func(yield func(layers.Entry, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(layers.Entry{}, err)
			return
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			yield(layers.Entry{}, err)
			return
		}
		if err := decodeRecipe(bufio.NewReaderSize(f, 128<<10), info.Size(), yield); err != nil {
			yield(layers.Entry{}, fmt.Errorf("%s: %w", path, err))
		}
	}
}

// decodeRecipe decodes a recipe of size bytes. It returns nil when yield wants
// no more.
func decodeRecipe(r io.Reader, size int64, yield func(layers.Entry, error) bool) error {
	magic := make([]byte, len(recipeMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != recipeMagic {
		return errors.Join(errDamaged, unlessEnd(err))
	}
	var block []byte
	for {
		var head [12]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return errors.Join(errDamaged, unlessEnd(err))
		}
		n := binary.LittleEndian.Uint64(head[:8])
		if n > maxBlock || int64(n) > size {
			return errDamaged
		}
		if uint64(cap(block)) < n {
			block = make([]byte, n)
		}
		block = block[:n]
		if _, err := io.ReadFull(r, block); err != nil {
			return errors.Join(errDamaged, unlessEnd(err))
		}
		if crc32.Checksum(block, crcTable) != binary.LittleEndian.Uint32(head[8:]) {
			return errDamaged
		}
		if n == 0 {
			return nil
		}
		dec := recipeDecoder{buf: block}
		for len(dec.buf) > 0 {
			e := dec.entry()
			if dec.bad {
				return errDamaged
			}
			if !yield(e, nil) {
				return nil
			}
		}
	}
}

// unlessEnd is err if it is more than the end of a file.
func unlessEnd(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}

// recipeDecoder takes entries from a block. bad is set when it can't.
type recipeDecoder struct {
	buf          []byte
	path, origin string
	bad          bool
}

func (c *recipeDecoder) uint() uint64 {
	v, n := binary.Uvarint(c.buf)
	if n <= 0 {
		c.bad, c.buf = true, nil
		return 0
	}
	c.buf = c.buf[n:]
	return v
}

func (c *recipeDecoder) int() int64 {
	v, n := binary.Varint(c.buf)
	if n <= 0 {
		c.bad, c.buf = true, nil
		return 0
	}
	c.buf = c.buf[n:]
	return v
}

func (c *recipeDecoder) bytes(n uint64) []byte {
	if n > uint64(len(c.buf)) {
		c.bad, c.buf = true, nil
		return nil
	}
	b := c.buf[:n]
	c.buf = c.buf[n:]
	return b
}

func (c *recipeDecoder) string() string { return string(c.bytes(c.uint())) }

func (c *recipeDecoder) after(prev string) string {
	n := c.uint()
	if n > uint64(len(prev)) {
		c.bad = true
		return ""
	}
	rest := c.bytes(c.uint())
	return prev[:n] + string(rest)
}

func (c *recipeDecoder) entry() (e layers.Entry) {
	has := c.uint()
	if b := c.bytes(1); b != nil {
		e.Type = layers.Type(b[0])
	}
	e.Path = c.after(c.path)
	c.path = e.Path
	e.Mode = uint32(c.uint())
	e.Size = c.int()
	if has&hasOwner != 0 {
		e.UID = int(c.int())
		e.GID = int(c.int())
	}
	if has&hasLink != 0 {
		e.Link = c.string()
	}
	if has&hasDevice != 0 {
		e.Major = uint32(c.uint())
		e.Minor = uint32(c.uint())
	}
	if has&hasXattrs != 0 {
		for n := c.uint(); n > 0 && !c.bad; n-- {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			name := c.string()
			e.Xattrs[name] = c.string()
		}
	}
	if has&hasTime != 0 {
		sec := c.int()
		e.ModTime = time.Unix(sec, int64(c.uint()))
	}
	if has&hasDigest != 0 {
		e.Digest = hexDigest(c.bytes(rawDigestSize))
	}
	if has&hasData != 0 {
		e.Inline = true
		e.Data = append(e.Data, c.bytes(c.uint())...)
	}
	if has&hasOrigin != 0 {
		e.Origin.Input = int(c.uint())
		e.Origin.Path = c.after(c.origin)
		c.origin = e.Origin.Path
	}
	e.Opaque = has&isOpaque != 0
	return e
}

// recipe is the entries of a recipe, as a layer of a merge.Stack.
type recipe struct {
	entries []layers.Entry // in the order of layers.ComparePaths
}

func loadRecipe(path string) (*recipe, error) {
	r := &recipe{}
	for e, err := range readRecipe(path) {
		if err != nil {
			return nil, err
		}
		r.entries = append(r.entries, e)
	}
	return r, nil
}

// find returns the index of the first entry that is at path or after it.
func (r *recipe) find(path string) (int, bool) {
	return slices.BinarySearchFunc(r.entries, path, func(e layers.Entry, p string) int { return layers.ComparePaths(e.Path, p) })
}
