package parser

import (
	"bytes"
	"fmt"

	bparser "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Bounds on what a build file may ask of this process.
const (
	maxFileSize     = 16 << 20 // bytes, as BuildKit's
	maxStages       = 1000
	maxInstructions = 20_000
	// maxBraces bounds the "${" of one logical line, and so how deep the
	// syntax packages recurse while they split it.
	maxBraces = 10_000
	// maxDepth bounds how deep "${" may be nested where variables are expanded.
	maxDepth = 50
	// maxValue bounds what one expansion may take from variables, and what
	// may come out of it, in bytes. A kernel refuses longer values anyway.
	maxValue = 1 << 20
	// maxEnv bounds the environment of a stage in bytes.
	maxEnv = 4 << 20
	// maxSubstitution bounds what one word with ${name/pattern/replacement}
	// could come to by its length and nesting, in bytes.
	maxSubstitution = 64 << 20
	// maxTotal bounds the memory for all values, names, environments and
	// history entries of a plan, in bytes, roughly.
	maxTotal = 64 << 20
)

// checkText refuses data that is no build file, before anything reads it.
// loc is the place to name, nil for where in the file the trouble is.
func (f *File) checkText(data []byte, loc []bparser.Range) error {
	at := func(line int) []bparser.Range {
		if loc != nil {
			return loc
		}
		return []bparser.Range{{Start: bparser.Position{Line: line}, End: bparser.Position{Line: line}}}
	}
	if len(data) > maxFileSize {
		return f.fault(nil, fmt.Errorf("larger than %d MiB", maxFileSize>>20))
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return f.fault(loc, fmt.Errorf("the build file is empty"))
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		err := f.fault(at(bytes.Count(data[:i], []byte("\n"))+1), fmt.Errorf("not a text file: it has a zero byte"))
		if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
			err.Hint = "save it as UTF-8 instead of UTF-16"
		}
		return err
	}
	// A logical line goes on after a line that ends in an escape character,
	// and comments and blank lines do not end it.
	braces, n := 0, 0
	for line := range bytes.Lines(data) {
		n++
		if braces += bytes.Count(line, []byte("${")); braces > maxBraces {
			return f.fault(at(n), fmt.Errorf("more than %d \"${\" in one instruction", maxBraces))
		}
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[len(line)-1] != '\\' && line[len(line)-1] != '`' {
			braces = 0
		}
	}
	return nil
}

// budget counts the memory that a plan takes.
type budget struct{ used int64 }

var errTotal = fmt.Errorf("variables, names and history come to more than %d MiB", maxTotal>>20)

// charge takes n bytes.
func (b *budget) charge(n int) error {
	b.used += int64(n)
	if b.used > maxTotal {
		return errTotal
	}
	return nil
}
