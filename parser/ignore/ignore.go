// Package ignore reads .dockerignore files and matches paths against them.
//
// The meaning of patterns is that of github.com/moby/patternmatcher, as
// BuildKit applies it to a walk of the context: patterns are tried in order,
// the last one that matches wins, a pattern that matches a directory matches
// all below it, and "!" keeps what earlier patterns left out.
//
//	patterns, err := ignore.Read(f)
//	m, err := ignore.New(patterns)
//	ignored, skip := m.Ignored("node_modules", true)
package ignore

import (
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// maxSize bounds an ignore file in bytes, as the size of build files is.
const maxSize = 16 << 20

// maxPatterns bounds how many patterns an ignore file has: each takes about a
// kilobyte of memory.
const maxPatterns = 50_000

// maxMemo bounds how many directories a Matcher remembers the matches of.
const maxMemo = 1 << 16

// Read returns the patterns of an ignore file, cleaned, in order, without
// comments. Files of more than 16 MiB or 50,000 patterns
// and lines of 64 KiB are refused.
func Read(r io.Reader) ([]string, error) {
	limited := &io.LimitedReader{R: r, N: maxSize + 1}
	patterns, err := ignorefile.ReadAll(limited)
	if err != nil {
		return nil, err
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("larger than %d MiB", maxSize>>20)
	}
	if len(patterns) > maxPatterns {
		return nil, fmt.Errorf("more than %d patterns", maxPatterns)
	}
	return patterns, nil
}

// Matcher decides by patterns; the last one that matches wins, and "!" keeps.
type Matcher struct {
	patterns []pattern
	memo     sync.Map // directory → matches
	memoSize atomic.Int64
}

// matches tells for each pattern whether it matched a path or a directory that
// leads to it.
type matches []bool

// New compiles patterns. The error names the bad one.
func New(patterns []string) (*Matcher, error) {
	m := &Matcher{}
	for _, text := range patterns {
		p, ok, err := compile(text)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", text, err)
		}
		if ok {
			m.patterns = append(m.patterns, p)
		}
	}
	return m, nil
}

// Ignored reports whether path (relative, with slashes) is left out. For a
// directory, skip tells that nothing below it can be kept either. Safe for
// concurrent use. The root itself is never left out.
func (m *Matcher) Ignored(name string, dir bool) (ignored, skip bool) {
	ms := m.match(path.Clean(name))
	last := m.decisive(ms)
	if last < 0 || m.patterns[last].keep {
		return false, false
	}
	return true, dir && !m.keepsBelow(path.Clean(name), last)
}

// Rule returns the pattern that decided that path is left out; "" if it isn't.
func (m *Matcher) Rule(name string) string {
	last := m.decisive(m.match(path.Clean(name)))
	if last < 0 || m.patterns[last].keep {
		return ""
	}
	return m.patterns[last].text
}

// Decided returns the pattern that decided about path, as it is written, and
// whether it keeps the path; "" if no pattern matched it.
func (m *Matcher) Decided(name string) (pattern string, keep bool) {
	last := m.decisive(m.match(path.Clean(name)))
	if last < 0 {
		return "", false
	}
	return m.patterns[last].text, m.patterns[last].keep
}

// decisive returns the index of the last pattern that matched; -1 for none.
func (m *Matcher) decisive(ms matches) int {
	for i := len(ms) - 1; i >= 0; i-- {
		if ms[i] {
			return i
		}
	}
	return -1
}

// match returns the matches of a clean path.
func (m *Matcher) match(name string) matches {
	name = strings.TrimPrefix(name, "/")
	if name == "." || name == "" || len(m.patterns) == 0 {
		return nil
	}
	var parent matches
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		parent = m.directory(name[:i])
	}
	return m.matchIn(parent, name)
}

// directory is match with a memory, for directories that paths are asked of.
func (m *Matcher) directory(name string) matches {
	if ms, ok := m.memo.Load(name); ok {
		return ms.(matches)
	}
	// From the top down: a hostile path has many levels.
	var ms matches
	for end := 0; end < len(name); {
		if i := strings.IndexByte(name[end+1:], '/'); i >= 0 {
			end += 1 + i
		} else {
			end = len(name)
		}
		dir := name[:end]
		if known, ok := m.memo.Load(dir); ok {
			ms = known.(matches)
			continue
		}
		ms = m.matchIn(ms, dir)
		if m.memoSize.Load() < maxMemo {
			if _, loaded := m.memo.LoadOrStore(strings.Clone(dir), ms); !loaded {
				m.memoSize.Add(1)
			}
		}
	}
	return ms
}

// matchIn returns the matches of a path by those of its directory (nil at the
// top). A pattern that could not change the verdict so far is not tried, and
// then counts as not matching for all below: BuildKit does so, and results
// depend on it.
func (m *Matcher) matchIn(parent matches, name string) matches {
	ms := make(matches, len(m.patterns))
	ignored := false
	for i := range m.patterns {
		p := &m.patterns[i]
		switch {
		case parent != nil && parent[i]:
			ms[i] = true
		case p.keep == ignored:
			ms[i] = p.match(name)
		}
		if ms[i] {
			ignored = !p.keep
		}
	}
	return ms
}

// keepsBelow reports whether a pattern after number last may keep something
// below dir. Patterns before it can't: last matches all below as well.
func (m *Matcher) keepsBelow(dir string, last int) bool {
	for i := last + 1; i < len(m.patterns); i++ {
		if p := &m.patterns[i]; p.keep && p.mayMatchBelow(dir) {
			return true
		}
	}
	return false
}

// A pattern is one line of an ignore file.
type pattern struct {
	text string // as written
	keep bool   // "!"
	// segments are the leading path segments that hold no special
	// character; literal tells that there are no others.
	segments []string
	literal  bool
	// prefix and suffix are what every matching path begins and ends with.
	// They tell most paths apart without a regular expression.
	prefix, suffix string

	matcher *patternmatcher.PatternMatcher
}

// special holds the characters that may stand for something else than
// themselves.
const special = `*?[]^`

// compile compiles one pattern; ok is false for an empty one.
func compile(text string) (p pattern, ok bool, err error) {
	body := strings.TrimSpace(text)
	if body == "" {
		return p, false, nil
	}
	body = path.Clean(body)
	p.text = text
	if body[0] == '!' {
		p.keep = true
		if body = body[1:]; body == "" {
			return p, false, fmt.Errorf("\"!\" without a pattern")
		}
	}
	// As an exception, since those can be asked of with a verdict of true. The
	// library trims and cleans; a final slash saves a space before it.
	exception := "!" + body
	if strings.TrimSpace(exception) != exception {
		exception += "/"
	}
	p.matcher, err = patternmatcher.New([]string{exception})
	if err != nil {
		return p, false, err
	}
	// The library compiles at the first match, not safely for concurrent use.
	//lint:ignore SA1019 the verdict of one pattern on one path is what is wanted
	if _, err := p.matcher.MatchesUsingParentResult("x", true); err != nil {
		return p, false, err
	}
	p.literals(body)
	return p, true, nil
}

// literals fills in what is known about matching paths from the text alone.
// Whatever isn't plain ASCII is left to the matcher, and so are characters
// that the library passes on to its regular expressions.
func (p *pattern) literals(body string) {
	for i := range len(body) {
		if body[i] < ' ' || body[i] > '~' || strings.IndexByte(`{|}\`, body[i]) >= 0 {
			return
		}
	}
	first, last := strings.IndexAny(body, special), strings.LastIndexAny(body, special)
	if first < 0 {
		p.prefix, p.suffix, p.literal = body, body, true
		p.segments = strings.Split(body, "/")
		return
	}
	p.prefix, p.suffix = body[:first], body[last+1:]
	if body[last] == '*' {
		p.suffix = strings.TrimPrefix(p.suffix, "/") // "**/" matches nothing at all, too
	}
	if i := strings.LastIndexByte(p.prefix, '/'); i >= 0 {
		p.segments = strings.Split(p.prefix[:i], "/")
	}
}

func (p *pattern) match(name string) bool {
	if !strings.HasPrefix(name, p.prefix) || !strings.HasSuffix(name, p.suffix) {
		return false
	}
	// An exception changes a verdict of true if it matches.
	//lint:ignore SA1019 the verdict of one pattern on one path is what is wanted
	kept, err := p.matcher.MatchesUsingParentResult(name, true)
	return err == nil && !kept
}

// mayMatchBelow reports whether the pattern may match a path below dir that it
// would not match dir or a parent of it by.
func (p *pattern) mayMatchBelow(dir string) bool {
	for _, segment := range p.segments {
		first, rest, _ := strings.Cut(dir, "/")
		if first == "" {
			return true // the pattern goes on below dir
		}
		if first != segment {
			return false
		}
		dir = rest
	}
	return !p.literal
}
