// Package ignore reads .dockerignore files and matches paths against them.
package ignore

import "io"

// Read returns the patterns of an ignore file, cleaned, in order, without
// comments.
func Read(r io.Reader) ([]string, error) { panic("unwritten") }

// Matcher decides by patterns; the last one that matches wins, and "!" keeps.
type Matcher struct{}

// New compiles patterns. The error names the bad one.
func New(patterns []string) (*Matcher, error) { panic("unwritten") }

// Ignored reports whether path (relative, with slashes) is left out. For a
// directory, skip tells that nothing below it can be kept either. Safe for
// concurrent use.
func (m *Matcher) Ignored(path string, dir bool) (ignored, skip bool) { panic("unwritten") }

// Rule returns the pattern that decided that path is left out; "" if it isn't.
func (m *Matcher) Rule(path string) string { panic("unwritten") }
