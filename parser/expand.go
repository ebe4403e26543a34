package parser

import (
	"errors"
	"fmt"
	"strings"

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
	depth, substitutes := nesting(word, x.escape, x.lex.SkipProcessQuotes)
	if depth > maxDepth {
		return shell.ProcessWordResult{}, fmt.Errorf("${} nested more than %d deep", maxDepth)
	}
	bounded := &boundedEnv{EnvGetter: env, word: len(word), depth: depth, substitutes: substitutes}
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
	word        int // length of the word
	depth       int // nesting of ${}
	substitutes bool
	used        int
	over        bool
}

func (b *boundedEnv) Get(key string) (string, bool) {
	v, ok := b.EnvGetter.Get(key)
	b.used += len(v)
	if b.used > maxValue {
		b.over = true
	}
	if b.substitutes {
		// Each level may put all it has in place of each byte it has.
		most := 1
		for range b.depth + 1 {
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

// nesting returns how deep ${} is nested in a word, and whether there may be a
// ${name/pattern/replacement} in it. It reads quotes and escapes as the shell
// package does.
func nesting(word string, escape rune, skipQuotes bool) (depth int, substitutes bool) {
	const (
		brace = '}'
		quote = '"'
	)
	var open []rune // brace or quote
	in := func(r rune) bool { return len(open) > 0 && open[len(open)-1] == r }
	braces := 0
	runes := []rune(word)
	for i := 0; i < len(runes); i++ {
		switch r := runes[i]; {
		case r == '$' && i+1 < len(runes) && runes[i+1] == '{':
			i++
			open = append(open, brace)
			braces++
			depth = max(depth, braces)
		case in(quote) && r == quote:
			open = open[:len(open)-1]
		case r == escape:
			i++
		case in(quote):
		case r == '}' && in(brace):
			open = open[:len(open)-1]
			braces--
		case r == '"' && !skipQuotes:
			open = append(open, quote)
		case r == '\'' && !skipQuotes:
			for i++; i < len(runes) && runes[i] != '\''; i++ {
			}
		case r == '/' && braces > 0:
			substitutes = true
		}
	}
	return depth, substitutes
}
