package parser

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// An expander expands variables in words by the shell package, with a bound on
// what comes out: a file of 40 lines of ARG a=$a$a would double a value to a
// terabyte. It is not safe for concurrent use.
type expander struct {
	lex    *shell.Lex
	escape rune
	budget *budget
}

func newExpander(escape rune, b *budget) *expander {
	return &expander{lex: shell.NewLex(escape), escape: escape, budget: b}
}

// raw returns an expander for the contents of here-documents, where only
// variables and escapes mean something.
func (x *expander) raw() *expander {
	y := newExpander('\\', x.budget)
	y.lex.SkipProcessQuotes = true
	return y
}

// display returns an expander for texts that people see: quotes, escapes and
// unknown variables stay.
func (x *expander) display() *expander {
	y := newExpander(x.escape, x.budget)
	y.lex.RawQuotes = true
	y.lex.RawEscapes = true
	y.lex.SkipUnsetEnv = true
	return y
}

// word expands a word.
func (x *expander) word(word string, env shell.EnvGetter) (shell.ProcessWordResult, error) {
	if !strings.ContainsAny(word, `$'"\<`+string(x.escape)) {
		return shell.ProcessWordResult{Result: word}, nil
	}
	return x.process(word, env, func(word string, env shell.EnvGetter) (shell.ProcessWordResult, error) {
		return x.lex.ProcessWordWithMatches(word, env)
	})
}

// words expands a word and splits it at white space.
func (x *expander) words(word string, env shell.EnvGetter) ([]string, error) {
	res, err := x.process(word, env, func(word string, env shell.EnvGetter) (shell.ProcessWordResult, error) {
		words, err := x.lex.ProcessWords(word, env)
		return shell.ProcessWordResult{Words: words}, err
	})
	return res.Words, err
}

func (x *expander) process(word string, env shell.EnvGetter, f func(string, shell.EnvGetter) (shell.ProcessWordResult, error)) (shell.ProcessWordResult, error) {
	// The package reads runes and writes to stderr about invalid ones.
	word = string([]rune(word))
	depth, substitutions := nesting(word, x.escape, x.lex.SkipProcessQuotes)
	if depth > maxDepth {
		return shell.ProcessWordResult{}, fmt.Errorf("${} nested more than %d deep", maxDepth)
	}
	bounded := &boundedEnv{EnvGetter: env, word: len(word), substitutions: substitutions}
	res, err := f(word, bounded)
	if bounded.over {
		return shell.ProcessWordResult{}, errValue
	}
	if err != nil {
		return shell.ProcessWordResult{}, expandError(word, err)
	}
	size := len(res.Result)
	for _, w := range res.Words {
		size += len(w)
	}
	if size > maxValue+len(word) {
		return shell.ProcessWordResult{}, errValue
	}
	return res, x.budget.charge(size)
}

var errValue = fmt.Errorf("variables expand to more than %d MiB", maxValue>>20)

// expandError says what could not be expanded in few words, whatever the
// library put around the cause.
func expandError(word string, err error) error {
	cause := err
	for next := errors.Unwrap(cause); next != nil; next = errors.Unwrap(cause) {
		cause = next
	}
	return fmt.Errorf("expand %q: %s", shorten(word), shorten(cause.Error()))
}

// boundedEnv counts what an expansion takes from its variables, and gives
// nothing once it is too much.
type boundedEnv struct {
	shell.EnvGetter
	word          int // length of the word
	substitutions int // see nesting
	used          int
	over          bool
}

func (b *boundedEnv) Get(key string) (string, bool) {
	v, ok := b.EnvGetter.Get(key)
	b.used += len(v)
	if b.used > maxValue {
		b.over = true
	}
	if b.substitutions > 0 {
		// Each level may put all it has in place of each byte it has.
		most := 1
		for range b.substitutions + 1 {
			if most *= b.word + b.used; most > maxSubstitution {
				b.over = true
				break
			}
		}
	}
	if b.over {
		return "", ok
	}
	return v, ok
}

// nesting returns how deep ${} is nested in a word, and how deep
// ${name/pattern/replacement}. It reads quotes and escapes as the shell package
// does.
func nesting(word string, escape rune, skipQuotes bool) (depth, substitutions int) {
	const (
		quote = iota
		brace
		substitution
	)
	var open []int
	var now [3]int // of each kind, open
	pop := func() {
		now[open[len(open)-1]]--
		open = open[:len(open)-1]
	}
	runes := []rune(word)
	for i := 0; i < len(runes); i++ {
		inside := -1
		if len(open) > 0 {
			inside = open[len(open)-1]
		}
		push := func(kind int) {
			open = append(open, kind)
			now[kind]++
		}
		switch r := runes[i]; {
		case r == '$' && i+1 < len(runes) && runes[i+1] == '{':
			i++
			kind := brace
			if end := i + 1 + nameLength(runes[i+1:]); end < len(runes) && runes[end] == '/' {
				kind = substitution
			}
			push(kind)
			depth = max(depth, now[brace]+now[substitution])
			substitutions = max(substitutions, now[substitution])
		case r == escape:
			i++
		case inside == quote && r == '"':
			pop()
		case inside == quote:
		case inside > quote && r == '}':
			pop()
		case r == '"' && !skipQuotes:
			push(quote)
		case r == '\'' && !skipQuotes:
			for i++; i < len(runes) && runes[i] != '\''; i++ {
			}
		}
	}
	return depth, substitutions
}

// nameLength is the length of the variable name that runes begin with.
func nameLength(runes []rune) int {
	n := 0
	for n < len(runes) && (unicode.IsLetter(runes[n]) || unicode.IsDigit(runes[n]) || runes[n] == '_') {
		n++
	}
	if n == 0 && len(runes) > 0 && strings.ContainsRune("@*#?-$!0", runes[0]) {
		return 1
	}
	return n
}
