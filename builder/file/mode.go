package file

import (
	"fmt"
	"io/fs"
	"strconv"

	mode "github.com/tonistiigi/dchapes-mode"
)

// chmod is a --chmod value. The zero value changes nothing.
type chmod struct {
	octal bool
	bits  uint32
	set   *mode.Set
}

// parseMode reads an octal ("0755") or symbolic ("u+x,go-w") mode.
func parseMode(s string) (chmod, error) {
	if s == "" {
		return chmod{}, nil
	}
	if bits, err := strconv.ParseUint(s, 8, 32); err == nil {
		if bits > 0o7777 {
			return chmod{}, fmt.Errorf("mode %q: not between 0 and 07777", s)
		}
		return chmod{octal: true, bits: uint32(bits)}, nil
	}
	set, err := mode.ParseWithUmask(s, 0)
	if err != nil {
		return chmod{}, fmt.Errorf("mode %q: %w", s, err)
	}
	return chmod{set: &set}, nil
}

// apply returns the mode bits of a file that had the bits old.
func (c chmod) apply(old uint32, dir bool) uint32 {
	switch {
	case c.octal:
		return c.bits
	case c.set == nil:
		return old
	}
	m := fs.FileMode(old & 0o777)
	if dir {
		m |= fs.ModeDir
	}
	for _, b := range specialBits {
		if old&b.bit != 0 {
			m |= b.mode
		}
	}
	m = c.set.Apply(m)
	bits := uint32(m.Perm())
	for _, b := range specialBits {
		if m&b.mode != 0 {
			bits |= b.bit
		}
	}
	return bits
}

var specialBits = [...]struct {
	bit  uint32
	mode fs.FileMode
}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}}
