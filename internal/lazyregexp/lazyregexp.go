// Package lazyregexp compiles regular expressions when they are first used,
// which most never are, instead of when the program starts.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns what compiles expr once. It panics, when called, if expr is none.
func New(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
