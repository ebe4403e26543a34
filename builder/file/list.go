package file

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/strake-build/strake/layers"
)

// Listed is a file as Selection.Digest sees it: if two lists have the same files
// in the same order, the digests are equal but for names that share a file.
type Listed struct {
	Path     string // in the source
	Type     layers.Type
	Mode     uint32
	UID, GID int // -1 if owners don't count
	// Sum stands for the content, or the target of a link, with the extended
	// attributes: 16 hex digits.
	Sum string
}

// List calls fn for everything that is taken.
func (s Selection) List(fn func(Listed) error) error {
	for _, p := range s.parts {
		for it := range p.items.all {
			e := it.entry
			if p.contentsOnly && it.rel == "." && e.Type == layers.Dir {
				continue
			}
			l := Listed{Path: e.Path, Type: e.Type, Mode: e.Mode, UID: -1, GID: -1, Sum: sumOf(e)}
			if s.owned {
				l.UID, l.GID = e.UID, e.GID
			}
			if err := fn(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// sumOf is Listed.Sum; empty if there is nothing to sum up.
func sumOf(e *layers.Entry) string {
	sum := ""
	switch e.Type {
	case layers.Regular:
		sum = strings.TrimPrefix(string(e.Digest), "sha256:")
	case layers.Symlink:
		sum = hexSum(e.Link)
	}
	if len(e.Xattrs) > 0 {
		var b strings.Builder
		b.WriteString(sum)
		for _, k := range sortedKeys(e.Xattrs) {
			b.WriteString("\x00" + k + "\x00" + e.Xattrs[k])
		}
		sum = hexSum(b.String())
	}
	return sum[:min(16, len(sum))]
}

func hexSum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}
