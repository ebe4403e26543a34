package file

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// Selection is what an op takes from one of its inputs.
type Selection struct {
	// Digest is the digest of names, types, modes, links, attributes and
	// contents, and of owners if the input is Owned; never of times. It is
	// empty if nothing is taken.
	Digest digest.Digest

	owned bool
	parts []part
}

// part is what is taken from one match.
type part struct {
	items itemList
	// contentsOnly: of a directory only what is in it is taken.
	contentsOnly bool
}

// Select returns what the Copy actions of op take from input i. A source that is
// missing is an error (ErrNotFound), as it is for Apply.
func Select(ctx context.Context, op *plan.File, i int, in Input) (Selection, error) {
	h := newHasher(in)
	some := false
	for n, action := range op.Actions {
		c, ok := action.(*plan.Copy)
		if !ok || c.Input != i {
			continue
		}
		some = true
		h.number(uint64(n))
		matches, err := find(ctx, in, c)
		if err != nil {
			return Selection{}, err
		}
		h.number(uint64(len(matches)))
		for _, m := range matches {
			h.text(m.name)
			if err := h.match(ctx, c, m, c.ContentsOnly); err != nil {
				return Selection{}, err
			}
		}
	}
	if !some {
		return Selection{}, nil
	}
	return h.selection(), nil
}

// SelectPath returns likewise the file or tree at path of in, as a bind mount
// shows it, symlinks in path followed inside the tree.
func SelectPath(ctx context.Context, in Input, path string) (Selection, error) {
	matches, err := find(ctx, in, &plan.Copy{Source: path, FollowLinks: true})
	if err != nil {
		return Selection{}, err
	}
	h := newHasher(in)
	if err := h.match(ctx, &plan.Copy{}, matches[0], false); err != nil {
		return Selection{}, err
	}
	return h.selection(), nil
}

// hasher writes what is to be hashed in a form that can be read in one way
// only: numbers have a fixed width, texts their length before them.
type hasher struct {
	in    Input
	h     hash.Hash
	buf   []byte
	parts []part
}

func newHasher(in Input) *hasher {
	return &hasher{in: in, h: sha256.New(), buf: make([]byte, 0, 64<<10)}
}

func (h *hasher) number(n uint64) {
	h.buf = binary.LittleEndian.AppendUint64(h.buf, n)
}

func (h *hasher) text(s string) {
	h.number(uint64(len(s)))
	h.buf = append(h.buf, s...)
	if len(h.buf) > 32<<10 {
		h.flush()
	}
}

func (h *hasher) flush() {
	h.h.Write(h.buf)
	h.buf = h.buf[:0]
}

func (h *hasher) selection() Selection {
	h.flush()
	return Selection{Digest: digest.NewDigest(digest.SHA256, h.h), owned: h.in.Owned, parts: h.parts}
}

// match hashes what c takes from a match.
func (h *hasher) match(ctx context.Context, c *plan.Copy, m match, contentsOnly bool) error {
	items, err := digestItems(ctx, h.in, c, m)
	if err != nil {
		return err
	}
	// Other names of a file count only if they are taken, too: layers share
	// files with each other that have one name in the tree.
	names := map[linkID]int{}
	for it := range items.all {
		if it.link != (linkID{}) {
			names[it.link]++
		}
	}
	links := map[linkID]uint64{}
	h.number(uint64(items.n))
	for it := range items.all {
		link := uint64(0)
		if names[it.link] > 1 {
			if link = links[it.link]; link == 0 {
				link = uint64(len(links)) + 1
				links[it.link] = link
			}
		}
		h.item(it, link, contentsOnly)
	}
	h.parts = append(h.parts, part{items, contentsOnly})
	return nil
}

// digestItems lists what c takes from a match, with the digests of files.
func digestItems(ctx context.Context, in Input, c *plan.Copy, m match) (items itemList, err error) {
	if err := walk(ctx, in, c, m, items.add); err != nil {
		return items, err
	}
	var files []*item
	for it := range items.all {
		switch e := it.entry; {
		case e.Type != layers.Regular:
		case e.Inline || e.Size == 0:
			e.Digest = digest.FromBytes(e.Data)
		case e.Digest == "":
			files = append(files, it)
		}
	}
	return items, digestAll(ctx, in.tree(), len(files),
		func(i int) string { return files[i].entry.Path },
		func(i int, d digest.Digest) { files[i].entry.Digest = d })
}

// item hashes a file; link numbers those that have several names.
func (h *hasher) item(it *item, link uint64, contentsOnly bool) {
	e := it.entry
	h.text(it.rel)
	h.number(uint64(e.Type))
	if contentsOnly && it.rel == "." && e.Type == layers.Dir {
		return
	}
	flags := uint64(0)
	if it.parent {
		flags = 1
	}
	h.number(uint64(e.Mode) | flags<<32)
	if h.in.Owned {
		h.number(uint64(e.UID))
		h.number(uint64(e.GID))
	}
	switch e.Type {
	case layers.Regular:
		h.text(string(e.Digest))
		h.number(link)
	case layers.Symlink:
		h.text(e.Link)
	case layers.Char, layers.Block:
		h.number(uint64(e.Major))
		h.number(uint64(e.Minor))
	}
	h.number(uint64(len(e.Xattrs)))
	for _, k := range sortedKeys(e.Xattrs) {
		h.text(k)
		h.text(e.Xattrs[k])
	}
}

// itemList holds many items without copying them as it grows.
type itemList struct {
	n      int
	chunks [][]item
}

func (l *itemList) add(it *item) error {
	if last := len(l.chunks) - 1; last < 0 || len(l.chunks[last]) == cap(l.chunks[last]) {
		l.chunks = append(l.chunks, make([]item, 0, min(1024, max(8, l.n))))
	}
	c := &l.chunks[len(l.chunks)-1]
	*c = append(*c, *it)
	l.n++
	return nil
}

func (l *itemList) all(yield func(*item) bool) {
	for _, c := range l.chunks {
		for i := range c {
			if !yield(&c[i]) {
				return
			}
		}
	}
}
