package plan

import (
	"fmt"
	"strings"
	"unicode"
)

// Error is a fault of a build file, or a failure that belongs to a place in one.
type Error struct {
	// Source is the place; never nil.
	Source *Source
	Err    error
	// Hint tells what to do about it (`did you mean "build"?`); may be empty.
	Hint string
}

// Error gives the place, the message and the hint in one line:
// `Dockerfile:12:8: COPY --from=bulid: no stage named "bulid" (did you mean "build"?)`.
func (e *Error) Error() string {
	var b strings.Builder
	if at := e.Source.String(); at != "" {
		b.WriteString(at)
		b.WriteString(": ")
	}
	b.WriteString(e.Err.Error())
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// String gives the place as "name:line", or "name:line:column", the column
// counted from 1, if it is known.
func (s *Source) String() string {
	if s == nil || s.File == nil {
		return ""
	}
	if len(s.Ranges) == 0 {
		return s.File.Name
	}
	r := s.Ranges[0]
	if r.EndColumn == 0 {
		return fmt.Sprintf("%s:%d", s.File.Name, r.StartLine)
	}
	return fmt.Sprintf("%s:%d:%d", s.File.Name, r.StartLine, r.StartColumn+1)
}

// excerptContext is how many lines an excerpt shows around the source, at most
// excerptLines of which are shown.
const (
	excerptContext = 2
	excerptLines   = 40
	excerptWidth   = 240 // bytes of a line that are shown
)

// Excerpt returns the lines of the build file around the source, numbered, the
// lines themselves marked by ">>>" and a caret under the column, or under the
// beginning of the line if there is none. It is empty if the source names no
// line of the file. Of a source of many lines, the first ones are shown.
func (s *Source) Excerpt() string {
	if s == nil || s.File == nil || len(s.Ranges) == 0 {
		return ""
	}
	lines := strings.Split(string(s.File.Data), "\n")
	first, last := s.Ranges[0].StartLine, 0
	for _, r := range s.Ranges {
		first = min(first, r.StartLine)
		last = max(last, r.StartLine, r.EndLine)
	}
	if first < 1 || first > len(lines) {
		return ""
	}
	last = min(last, len(lines))

	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n--------------------\n", s.File.Name, first)
	from, to := max(1, first-excerptContext), min(len(lines), last+excerptContext)
	for n := from; n <= to; n++ {
		if n-from == excerptLines {
			b.WriteString(" ... |\n")
			break
		}
		mark := "   "
		if s.contains(n) {
			mark = ">>>"
		}
		line := printable(lines[n-1])
		b.WriteString(strings.TrimRight(fmt.Sprintf(" %3d | %s %s", n, mark, line), " "))
		b.WriteByte('\n')
		if r := s.Ranges[0]; n == r.StartLine && line != "" {
			column := r.StartColumn
			if r.EndColumn == 0 { // the whole line
				column = len(line) - len(strings.TrimLeft(line, " \t"))
			}
			if column < len(line) {
				fmt.Fprintf(&b, "     |     %s^\n", caretIndent(line[:column]))
			}
		}
	}
	b.WriteString("--------------------\n")
	return b.String()
}

// contains reports whether line n is in one of the ranges.
func (s *Source) contains(n int) bool {
	for _, r := range s.Ranges {
		if r.StartLine <= n && n <= max(r.StartLine, r.EndLine) {
			return true
		}
	}
	return false
}

// printable makes a line of an untrusted file safe for a terminal, and no
// longer than fits one. Bytes keep their columns.
func printable(line string) string {
	line = Redact(strings.TrimSuffix(line, "\r"))
	if len(line) > excerptWidth {
		line = strings.ToValidUTF8(line[:excerptWidth], "")
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, line)
}

// caretIndent is white space as wide as s, tabs kept, so that a caret stands
// below what follows s.
func caretIndent(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, s)
}
