package parser

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	bparser "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// syntax is what the syntax packages make of a file. Planning changes the
// instructions in place, so each target reads its own.
type syntax struct {
	escape rune
	stages []instructions.Stage
	args   []instructions.ArgCommand // before the first FROM
}

// read parses the file.
func (f *File) read(lint *linter.Linter) (*syntax, error) {
	res, err := bparser.Parse(bytes.NewReader(f.source.Data))
	if err != nil {
		return nil, f.syntaxFault(err)
	}
	if n := len(res.AST.Children); n > maxInstructions {
		return nil, f.fault(res.AST.Children[maxInstructions].Location(), fmt.Errorf("more than %d instructions", maxInstructions))
	}
	for _, w := range res.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL && w.Location != nil {
			lint.Run(&linter.RuleNoEmptyContinuation, []bparser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	stages, args, err := instructions.Parse(res.AST, lint)
	if err != nil {
		return nil, f.syntaxFault(err)
	}
	if len(stages) == 0 {
		return nil, f.fault(nil, errors.New("dockerfile contains no stages to build"))
	}
	if len(stages) > maxStages {
		return nil, f.fault(stages[maxStages].Location, fmt.Errorf("more than %d stages", maxStages))
	}
	return &syntax{escape: res.EscapeToken, stages: stages, args: args}, nil
}

// readTrigger parses an ONBUILD trigger for a stage at loc.
func (f *File) readTrigger(trigger string, loc []bparser.Range, lint *linter.Linter) (instructions.Command, error) {
	if err := f.checkText([]byte(trigger), loc); err != nil {
		return nil, err
	}
	res, err := bparser.Parse(strings.NewReader(trigger))
	if err == nil && len(res.AST.Children) != 1 {
		err = errors.New("a trigger is one instruction")
	}
	var parsed any
	if err == nil {
		node := res.AST.Children[0]
		node.StartLine, node.EndLine = lineRange(loc)
		parsed, err = instructions.ParseInstructionWithLinter(node, lint)
	}
	cmd, ok := parsed.(instructions.Command)
	if err == nil && !ok {
		err = errors.New("FROM can't be a trigger")
	}
	if err != nil {
		hint, message := unwrapFault(err)
		e := f.fault(loc, fmt.Errorf("ONBUILD %s: %w", shorten(trigger), message))
		e.Hint = hint
		return nil, e
	}
	return cmd, nil
}

// checkSyntaxDirective accepts "# syntax" directives that name the language
// that is built in, of any version, and refuses others.
func (f *File) checkSyntaxDirective() error {
	ref, _, loc, ok := bparser.DetectSyntax(f.source.Data)
	if !ok || builtinSyntax(ref) {
		return nil
	}
	err := f.fault(loc, fmt.Errorf("syntax image %q is not supported", shorten(ref)))
	err.Hint = "only docker/dockerfile is built in"
	return err
}

// builtinSyntax reports whether ref is an image of Docker's Dockerfile frontend.
func builtinSyntax(ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return false
	}
	switch named.Name() {
	case "docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream":
		return true
	}
	return false
}

func lineRange(loc []bparser.Range) (first, last int) {
	for i, r := range loc {
		if i == 0 || r.Start.Line < first {
			first = r.Start.Line
		}
		last = max(last, r.Start.Line, r.End.Line)
	}
	return first, last
}
