package parser

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/agext/levenshtein"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	bparser "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/strake-build/strake/internal/lazyregexp"
	"github.com/strake-build/strake/plan"
)

// sourceAt returns the place of a location in the file; the file itself for
// none.
func (f *File) sourceAt(loc []bparser.Range) *plan.Source {
	s := &plan.Source{File: f.source}
	if first, last := lineRange(loc); first > 0 {
		s.Ranges = []plan.Range{{StartLine: first, EndLine: last}}
	}
	return s
}

// fault is an error at a location of the file.
func (f *File) fault(loc []bparser.Range, err error) *plan.Error {
	return &plan.Error{Source: f.sourceAt(loc), Err: err}
}

// at adds a location to an error that has none yet.
func (f *File) at(loc []bparser.Range, err error) error {
	var known *plan.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	hint, message := unwrapFault(err)
	e := f.fault(loc, message)
	e.Hint = hint
	return markQuoted(e)
}

// markQuoted points the error at the flag or word that its message quotes, if
// that is in its lines.
func markQuoted(e *plan.Error) *plan.Error {
	for _, re := range []func() *regexp.Regexp{namedFlag, quotedWord} {
		if m := re().FindStringSubmatch(e.Err.Error()); m != nil {
			return mark(e, m[1])
		}
	}
	return e
}

// mark points the error at the first occurrence of word in its lines.
func mark(e *plan.Error, word string) *plan.Error {
	if len(e.Source.Ranges) == 0 || word == "" {
		return e
	}
	r := &e.Source.Ranges[0]
	n := 0
	for line := range bytes.Lines(e.Source.File.Data) {
		if n++; n < r.StartLine {
			continue
		}
		if n > max(r.StartLine, r.EndLine) {
			break
		}
		if i := bytes.Index(line, []byte(word)); i >= 0 {
			*r = plan.Range{StartLine: n, StartColumn: i, EndLine: n, EndColumn: i + len(word)}
			return e
		}
	}
	return e
}

// InstructionError is an error in the syntax of one instruction.
type InstructionError struct {
	Line int // where it begins
	Err  error
}

func (e *InstructionError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *InstructionError) Unwrap() error { return e.Err }

const parseErrorPrefix = "dockerfile parse error on line "

// syntaxFault turns an error of the syntax packages into ours.
func (f *File) syntaxFault(err error) *plan.Error {
	var located *bparser.LocationError
	var loc []bparser.Range
	if errors.As(err, &located) && len(located.Locations) > 0 {
		loc = located.Locations[0]
	}
	hint, message := unwrapFault(err)
	text := message.Error()
	if misplaced().MatchString(text) && len(loc) == 1 {
		loc = location{{Start: bparser.Position{Line: loc[0].Start.Line + 1}}}
	}
	if text == "no build stage in current context" {
		message = errors.New("there is no FROM before this instruction")
	}
	if line := 0; strings.HasPrefix(err.Error(), parseErrorPrefix) {
		if _, serr := fmt.Sscanf(err.Error(), parseErrorPrefix+"%d", &line); serr == nil {
			message = &InstructionError{Line: line, Err: message}
		}
	}
	e := f.fault(loc, message)
	e.Hint = hint
	var unknown *instructions.UnknownInstructionError
	if errors.As(err, &unknown) {
		return mark(e, unknown.Instruction)
	}
	return markQuoted(e)
}

var (
	// misplaced are errors that the syntax packages give the line before for.
	misplaced  = lazyregexp.New(`^invalid escape token|parser directive can be used$`)
	namedFlag  = lazyregexp.New(`flag(?: specified)?:? (--[^\s,]+)`)
	quotedWord = lazyregexp.New(`["']([^"'$]{2,})["']`)
	suggestion = lazyregexp.New(`^(?s)(.*) \(did you mean ([^()]*)\?\)$`)
)

// unwrapFault takes the location, the line number and the suggestion that the
// syntax packages put into their messages off an error.
func unwrapFault(err error) (hint string, message error) {
	var located *bparser.LocationError
	if errors.As(err, &located) {
		err = located.Unwrap()
	}
	text := err.Error()
	if m := suggestion().FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("did you mean %q?", m[2]), errors.New(shorten(m[1]))
	}
	if short := shorten(text); short != text {
		return "", errors.New(short)
	}
	return "", err
}

// shorten makes text fit the one line of a message.
func shorten(s string) string {
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// closest returns the option that word was probably meant to be; "" if there is
// none, or if word is one of them.
func closest(word string, options []string) string {
	const near = 3 // edits, less than which is a typing error
	if len(word) > 200 || slices.Contains(options, word) {
		return ""
	}
	best, match := near, ""
	for _, o := range options {
		if d := len(o) - len(word); d >= near || d <= -near {
			continue
		}
		if d := levenshtein.Distance(word, o, nil); d < best {
			best, match = d, o
		}
	}
	return match
}

// didYouMean is the hint for a closest match; "" if there is none.
func didYouMean(word string, options []string) string {
	if m := closest(word, options); m != "" {
		return fmt.Sprintf("did you mean %q?", m)
	}
	return ""
}
