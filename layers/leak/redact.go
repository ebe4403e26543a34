package leak

import (
	"io"
	"strings"
)

// Redactor passes on what is written to it, with "[secret NAME]" in the place of
// values. What could be the beginning of one is held back until more is written,
// or until Flush.
type Redactor struct {
	g    *Guard
	w    io.Writer
	held []byte
}

// Redact returns a Redactor that writes to w.
func (g *Guard) Redact(w io.Writer) *Redactor { return &Redactor{g: g, w: w} }

func (r *Redactor) Write(p []byte) (int, error) {
	x := r.g.compiled()
	if x == nil {
		return r.w.Write(p)
	}
	b := p
	if len(r.held) > 0 {
		b = append(r.held, p...)
		r.held = nil
	}
	b = x.redact(b)
	hold := x.partial(b)
	r.held = append([]byte(nil), b[len(b)-hold:]...)
	if b = b[:len(b)-hold]; len(b) > 0 {
		if _, err := r.w.Write(b); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Flush writes what was held back.
func (r *Redactor) Flush() error {
	b := r.held
	if r.held = nil; len(b) == 0 {
		return nil
	}
	_, err := r.w.Write(b)
	return err
}

// redact replaces all values in b.
func (x *index) redact(b []byte) []byte {
	var out []byte
	for {
		m, ok := x.find(b)
		if !ok {
			break
		}
		out = append(out, b[:m.Offset]...)
		out = append(out, "[secret "+m.Secret+"]"...)
		b = b[m.Offset+int64(m.Length):]
	}
	if out == nil {
		return b
	}
	return append(out, b...)
}

// partial is how many bytes at the end of b begin a pattern.
func (x *index) partial(b []byte) int {
	longest := 0
	for start := max(0, len(b)-x.longest+1); start < len(b); start++ {
		if x.begins(string(b[start:])) {
			longest = len(b) - start
			break
		}
	}
	return longest
}

// begins reports whether a pattern begins with s and is longer.
func (x *index) begins(s string) bool {
	for i := range x.all {
		if t := x.all[i].text; len(t) > len(s) && strings.HasPrefix(t, s) {
			return true
		}
	}
	return false
}
