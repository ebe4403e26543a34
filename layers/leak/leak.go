// Package leak finds values of secrets in what a build makes.
//
// A Guard knows the values that a build was given: secrets, tokens, passwords.
// What leaves the build is searched for each of them as it is and in the forms
// that it takes by accident: base64 (at any offset in what was encoded, both
// alphabets), hexadecimal digits, URL and JSON escapes. Nothing is decompressed,
// and values that were cut or encrypted are not found.
//
// A value of less than MinLength bytes is not searched for: it would be found by
// chance.
//
//	g := &leak.Guard{}
//	g.Add("token", value)
//	s := g.Search()                 // an io.Writer
//	io.Copy(io.MultiWriter(out, s), stream)
//	if m, ok := s.Found(); ok { ... m.Secret, m.Form, m.Offset ... }
package leak

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// MinLength is the length, in bytes without white space around them, of the
// shortest value that is searched for.
const MinLength = 8

// maxLength is how much of a long value is searched for. Keys and tokens are
// shorter.
const maxLength = 4 << 10

// Guard knows the values of secrets. A nil Guard knows none. It may be used by
// many goroutines.
type Guard struct {
	mu     sync.Mutex
	values map[string]string // value → name
	index  *index            // of values; nil after a change
}

// Add makes a value known by the name of its secret. White space at its ends
// doesn't count. A value that is too short is left out.
func (g *Guard) Add(name string, value []byte) {
	v := string(bytes.TrimSpace(value))
	if g == nil || len(v) < MinLength {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.values[v]; ok {
		return
	}
	if g.values == nil {
		g.values = map[string]string{}
	}
	g.values[v] = name
	g.index = nil
}

// Marks returns a mark for each value, sorted: 16 bits of its hash, which tell
// that it was searched for and too little to guess it by.
func (g *Guard) Marks() []string {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	marks := make([]string, 0, len(g.values))
	for v := range g.values {
		marks = append(marks, mark(v))
	}
	slices.Sort(marks)
	return slices.Compact(marks)
}

// Mark is the mark of a value, or "" of one that is not searched for.
func Mark(value []byte) string {
	v := string(bytes.TrimSpace(value))
	if len(v) < MinLength {
		return ""
	}
	return mark(v)
}

func mark(v string) string {
	sum := sha256.Sum256([]byte("strake leak guard\x00" + v))
	return hex.EncodeToString(sum[:2])
}

// Match is a value that was found.
type Match struct {
	Secret string // its name
	Form   string // "as it is", "in base64", …
	Offset int64  // of its first byte in what was searched
	Length int
}

// Find returns the first value in b.
func (g *Guard) Find(b []byte) (Match, bool) {
	x := g.compiled()
	if x == nil {
		return Match{}, false
	}
	return x.find(b)
}

// compiled returns the index of the values; nil if there are none.
func (g *Guard) compiled() *index {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.index == nil && len(g.values) > 0 {
		g.index = newIndex(g.values)
	}
	return g.index
}

// pattern is a form of a value.
type pattern struct {
	text         string
	secret, form string
}

// patterns returns the forms of a value.
func patterns(name, v string) []pattern {
	full := v
	v = v[:min(len(v), maxLength)]
	var out []pattern
	add := func(form, text string) {
		if len(text) >= MinLength && !slices.ContainsFunc(out, func(p pattern) bool { return p.text == text }) {
			out = append(out, pattern{text, name, form})
		}
	}
	add("as it is", v)
	for shift := range 3 {
		add("in base64", encodedAt(base64.RawStdEncoding, v, shift))
		add("in base64", encodedAt(base64.RawURLEncoding, v, shift))
	}
	// Tools break base64 into lines of 76 digits. The second line of a long
	// value is its own; the first may be a header that many have.
	const line = 57
	switch {
	case len(full) >= 2*line:
		add("in base64", base64.StdEncoding.EncodeToString([]byte(full[line:2*line])))
	case len(full) > line:
		add("in base64", base64.StdEncoding.EncodeToString([]byte(full[:line])))
	}
	h := hex.EncodeToString([]byte(v))
	add("in hexadecimal", h)
	add("in hexadecimal", strings.ToUpper(h))
	for _, e := range []string{url.QueryEscape(v), url.PathEscape(v)} {
		add("URL-encoded", e)
		add("URL-encoded", lowerEscapes(e))
	}
	if j, err := json.Marshal(v); err == nil {
		add("in JSON", string(j[1:len(j)-1]))
		var plain bytes.Buffer
		enc := json.NewEncoder(&plain)
		enc.SetEscapeHTML(false)
		if enc.Encode(v) == nil {
			s := strings.TrimSpace(plain.String())
			add("in JSON", s[1:len(s)-1])
		}
	}
	return out
}

// encodedAt is the base64 of v where shift bytes, of which nothing is known, come
// before it: those digits that depend on v alone.
func encodedAt(enc *base64.Encoding, v string, shift int) string {
	s := enc.EncodeToString([]byte(strings.Repeat("\x00", shift) + v))
	first := (8*shift + 5) / 6
	last := 8 * (shift + len(v)) / 6
	return s[min(first, last):last]
}

// lowerEscapes writes %2F as %2f.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:], bytes.ToLower(b[i+1:i+3]))
			i += 2
		}
	}
	return string(b)
}
