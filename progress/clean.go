package progress

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes text of a stranger fit to be shown on one line of a terminal:
// escape sequences, control characters and the characters that turn the
// direction of text are gone, other bytes that are not UTF-8 become U+FFFD, and
// tabs and line ends are spaces.
func Clean(s string) string { return clean([]byte(s), ' ') }

// clean is Clean with the choice of what a tab becomes.
func clean(line []byte, tab rune) string {
	if plainASCII(line) {
		return string(line)
	}
	var b strings.Builder
	b.Grow(len(line))
	for len(line) > 0 {
		if line[0] == 0x1b {
			line = line[escape(line):]
			continue
		}
		r, n := utf8.DecodeRune(line)
		line = line[n:]
		switch {
		case r == '\t':
			b.WriteRune(tab)
		case r == '\n', r == '\r', r == '\u2028', r == '\u2029':
			b.WriteByte(' ')
		case unicode.IsControl(r), hidden(r):
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func plainASCII(s []byte) bool {
	for _, c := range s {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}

// hidden reports whether r shows nothing itself but changes how what follows is
// shown. The joiners U+200C and U+200D belong to words and emoji.
func hidden(r rune) bool {
	switch {
	case r == 0x200b, r == 0x200e, r == 0x200f, r == 0x061c, r == 0xfeff,
		r >= 0x202a && r <= 0x202e, r >= 0x2060 && r <= 0x206f,
		r >= 0xfff9 && r <= 0xfffb, r >= 0xe0000 && r <= 0xe007f:
		return true
	}
	return false
}

// escape returns the length of the escape sequence (ECMA-48) that s starts
// with. One that does not end in s is only its first byte long, so that nobody
// can hide the rest of a line by starting one.
func escape(s []byte) int {
	if len(s) < 2 {
		return 1
	}
	switch c := s[1]; {
	case c == '[':
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
			if s[i] < 0x20 || s[i] > 0x3f {
				break
			}
		}
	case c == ']', c == 'P', c == 'X', c == '^', c == '_':
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
				return i + 2
			}
		}
	case c >= 0x20 && c <= 0x2f:
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x30 && s[i] <= 0x7e {
				return i + 1
			}
			if s[i] < 0x20 || s[i] > 0x2f {
				break
			}
		}
	case c >= 0x30 && c <= 0x7e:
		return 2
	}
	return 1
}

// maxLine is where lines without an end are cut.
const maxLine = 16 << 10

// splitter cuts a stream of bytes into lines. A carriage return goes back to
// the start of the line, as on a terminal: what it overwrites is not shown.
type splitter struct{ buf []byte }

// write calls emit for every line that ends in p. The line is good until emit
// returns.
func (s *splitter) write(p []byte, emit func(line []byte)) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i >= 0 && len(s.buf) == 0 && i <= maxLine {
			emit(lastOverwrite(p[:i]))
			p = p[i+1:]
			continue
		}
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if room := maxLine - len(s.buf); len(part) > room {
			s.buf = append(s.buf, part[:room]...)
			p = p[room:]
			if j := bytes.LastIndexByte(s.buf[:len(s.buf)-1], '\r'); j >= 0 {
				s.buf = append(s.buf[:0], s.buf[j+1:]...)
				continue
			}
			s.flush(emit)
			continue
		}
		s.buf = append(s.buf, part...)
		p = p[len(part):]
		if i >= 0 {
			p = p[1:]
			emit(lastOverwrite(s.buf))
			s.buf = s.buf[:0]
		}
	}
}

// flush emits what is left without a line end.
func (s *splitter) flush(emit func(line []byte)) {
	if len(s.buf) > 0 {
		emit(lastOverwrite(s.buf))
		s.buf = s.buf[:0]
	}
}

func lastOverwrite(line []byte) []byte {
	line = bytes.TrimRight(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	return line
}

// Lines cuts the output of a step into lines and cleans each.
func Lines(output []byte) []string {
	var lines []string
	add := func(l []byte) { lines = append(lines, clean(l, '\t')) }
	var s splitter
	s.write(output, add)
	s.flush(add)
	return lines
}
