// Package answer puts what a build file says of itself into the forms of
// BuildKit's subrequests: JSON for programs and text for people.
//
//	text, err := answer.Targets(source, stages).JSON()
package answer

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
)

// Version is that of the forms, the same for all of them.
const Version = "1.0.0"

// The names of the questions.
const (
	RequestCheck    = "frontend.lint"
	RequestOutline  = "frontend.outline"
	RequestTargets  = "frontend.targets"
	RequestDescribe = "frontend.subrequests.describe"
)

// Answer is one of the forms: CheckResult, OutlineResult, TargetsResult and
// DescribeResult.
type Answer interface{ Text() string }

// JSON gives an answer as programs want it.
func JSON(a Answer) ([]byte, error) { return json.MarshalIndent(a, "", "  ") }

// Location is a place in the build file.
type Location struct {
	Ranges []Range `json:"ranges,omitempty"`
}

// Range is a part of one line; an end character of 0 means the whole line.
type Range struct {
	Start Position `json:"start"`
	End   Position `json:"end"`
}

// Position is a line, counted from 1, and a byte in it, counted from 0.
type Position struct {
	Line      int `json:"line,omitempty"`
	Character int `json:"character,omitempty"`
}

func location(s *plan.Source) *Location {
	l := &Location{}
	if s == nil {
		return l
	}
	// Clients expect a range for each line.
	for _, r := range s.Ranges {
		last := max(r.StartLine, r.EndLine)
		for n := r.StartLine; n <= last; n++ {
			p := Range{Start: Position{Line: n}, End: Position{Line: n}}
			if n == r.StartLine {
				p.Start.Character = r.StartColumn
			}
			if n == last {
				p.End.Character = r.EndColumn
			}
			l.Ranges = append(l.Ranges, p)
		}
	}
	return l
}

// OutlineResult is what a target can be given.
type OutlineResult struct {
	Name        string   `json:"name,omitempty"`
	Description string   `json:"description,omitempty"`
	Args        []Arg    `json:"args,omitempty"`
	Secrets     []Need   `json:"secrets,omitempty"`
	SSH         []Need   `json:"ssh,omitempty"`
	Sources     [][]byte `json:"sources,omitempty"`
}

// Arg is a build arg.
type Arg struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Value       string    `json:"value,omitempty"`
	Location    *Location `json:"location,omitempty"`
}

// Need is a secret or SSH agent.
type Need struct {
	Name     string    `json:"name"`
	Required bool      `json:"required,omitempty"`
	Location *Location `json:"location,omitempty"`
}

// Outline gives an outline of a file its form.
func Outline(f *plan.SourceFile, o *parser.Outline) OutlineResult {
	out := OutlineResult{Name: o.Stage, Description: o.Description, Sources: [][]byte{f.Data}}
	for _, a := range o.Args {
		out.Args = append(out.Args, Arg{a.Name, a.Description, a.Value, location(a.Source)})
	}
	needs := func(list []parser.Need) (out []Need) {
		for _, n := range list {
			out = append(out, Need{n.ID, n.Required, location(n.Source)})
		}
		return out
	}
	out.Secrets, out.SSH = needs(o.Secrets), needs(o.SSH)
	return out
}

// Text is a table of each kind.
func (o OutlineResult) Text() string {
	var b strings.Builder
	if o.Name != "" || o.Description != "" {
		name := o.Name
		if name == "" {
			name = "(default)"
		}
		rows := [][]string{{"TARGET:", name}}
		if o.Description != "" {
			rows = append(rows, []string{"DESCRIPTION:", o.Description})
		}
		table(&b, 1, rows)
		b.WriteByte('\n')
	}
	section := func(head []string, rows [][]string) {
		if len(rows) > 0 {
			table(&b, 3, append([][]string{head}, rows...))
			b.WriteByte('\n')
		}
	}
	var args [][]string
	for _, a := range o.Args {
		args = append(args, []string{a.Name, a.Value, a.Description})
	}
	section([]string{"BUILD ARG", "VALUE", "DESCRIPTION"}, args)
	needs := func(list []Need) (rows [][]string) {
		for _, n := range list {
			required := ""
			if n.Required {
				required = "true"
			}
			rows = append(rows, []string{n.Name, required})
		}
		return rows
	}
	section([]string{"SECRET", "REQUIRED"}, needs(o.Secrets))
	section([]string{"SSH", "REQUIRED"}, needs(o.SSH))
	return b.String()
}

// TargetsResult are the stages of a file.
type TargetsResult struct {
	Targets []Target `json:"targets"`
	Sources [][]byte `json:"sources"`
}

// Target is a stage that can be built.
type Target struct {
	Name        string    `json:"name,omitempty"`
	Default     bool      `json:"default,omitempty"`
	Description string    `json:"description,omitempty"`
	Base        string    `json:"base,omitempty"`
	Platform    string    `json:"platform,omitempty"`
	Location    *Location `json:"location,omitempty"`
}

// Targets gives the stages of a file their form.
func Targets(f *plan.SourceFile, stages []parser.Stage) TargetsResult {
	out := TargetsResult{Sources: [][]byte{f.Data}}
	for i, s := range stages {
		out.Targets = append(out.Targets, Target{
			Name: s.Name, Default: i == len(stages)-1, Description: s.Description, Base: s.Base, Platform: s.Platform, Location: location(s.Source),
		})
	}
	return out
}

// Text is a table.
func (t TargetsResult) Text() string {
	rows := [][]string{{"TARGET", "DESCRIPTION"}}
	for _, t := range t.Targets {
		name := t.Name
		if t.Default {
			name = strings.TrimSpace(name + " (default)")
		}
		rows = append(rows, []string{name, t.Description})
	}
	var b strings.Builder
	table(&b, 1, rows)
	return b.String()
}

// DescribeResult are the questions that there are.
type DescribeResult []Request

// Request is a question.
type Request struct {
	Name        string  `json:"name"`
	Version     string  `json:"version"`
	Type        string  `json:"type"`
	Description string  `json:"description"`
	Opts        []Named `json:"opts"`
	Inputs      []Named `json:"inputs"`
	Metadata    []Named `json:"metadata"`
	Refs        []Named `json:"refs"`
}

// Named is a part of a question or its answer.
type Named struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// Describe lists the questions that there are.
func Describe() DescribeResult {
	request := func(name, description string, more ...Named) Request {
		return Request{
			Name: name, Version: Version, Type: "rpc", Description: description,
			Metadata: append([]Named{{Name: "result.json"}, {Name: "result.txt"}}, more...),
		}
	}
	outline := request(RequestOutline, "List all parameters current build target supports")
	outline.Opts = []Named{{Name: "target", Description: "Target build stage"}}
	return DescribeResult{
		request(RequestDescribe, "List available subrequest types"),
		outline,
		request(RequestTargets, "List all targets current build supports"),
		request(RequestCheck, "Lint a Dockerfile", Named{Name: "result.statuscode"}),
	}
}

// Text is a table.
func (d DescribeResult) Text() string {
	rows := [][]string{{"NAME", "VERSION", "DESCRIPTION"}}
	for _, r := range d {
		rows = append(rows, []string{strings.TrimPrefix(r.Name, "frontend."), r.Version, r.Description})
	}
	var b strings.Builder
	table(&b, 1, rows)
	return b.String()
}

// table writes rows in columns that are at least padding apart.
func table(w io.Writer, padding int, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, padding, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush() // to memory
}
