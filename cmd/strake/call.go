package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"github.com/tonistiigi/go-csvvalue"

	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/parser/answer"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// callOptions ask about the build file instead of building it.
type callOptions struct {
	call  string
	check bool
}

func (o *callOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.call, "call", "build", "answer a question about the build file: `check`, outline (what a target can be given) or targets; with ,format=json for programs")
	f.BoolVar(&o.check, "check", false, "check the build file, as --call check")
}

// question is a --call that is not for a build.
type question struct {
	name         string // check, outline, targets or subrequests.describe
	json         bool
	ignoreStatus bool // findings are no failure
}

// question returns nil where a build is wanted.
func (o callOptions) question() (*question, error) {
	fields, err := csvvalue.Fields(o.call, nil)
	if err != nil {
		return nil, usagef("--call %s: %w", o.call, err)
	}
	var q question
	for i, f := range fields {
		key, value, pair := strings.Cut(f, "=")
		switch {
		case i == 0 && !pair:
			q.name = f
		case key == "format" && (value == "json" || value == "text"):
			q.json = value == "json"
		case key == "format":
			return nil, usagef("--call %s: format is json or text", o.call)
		case key == "ignorestatus":
			if q.ignoreStatus, err = strconv.ParseBool(value); err != nil && value != "" {
				return nil, usagef("--call %s: ignorestatus is true or false", o.call)
			}
			q.ignoreStatus = q.ignoreStatus || !pair
		default:
			return nil, usagef("--call %s: %q is not one of format, ignorestatus", o.call, key)
		}
	}
	switch q.name {
	case "lint":
		q.name = "check"
	case "check", "outline", "targets", "subrequests.describe":
	case "build", "":
		if !o.check {
			return nil, nil
		}
		q.name = "check"
	default:
		return nil, usagef("--call %s: it is build, check, outline or targets", o.call)
	}
	if o.check && q.name != "check" {
		return nil, usagef("--check and --call %s are both given", o.call)
	}
	return &q, nil
}

// answer prints what was asked for, once the display of progress is over.
func (q *question) answer(ctx context.Context, name string, data []byte, o parser.Options, d *progress.Display, e *env) error {
	source := &plan.SourceFile{Name: name, Data: data}
	if q.name == "check" {
		return q.check(ctx, source, o, d, e)
	}
	file, err := parser.Parse(name, data)
	if err != nil {
		return err
	}
	var a answer.Answer = answer.Describe()
	switch q.name {
	case "outline":
		outline, err := file.Outline(ctx, o)
		if err != nil {
			return err
		}
		a = answer.Outline(source, outline)
	case "targets":
		stages, err := file.List()
		if err != nil {
			return err
		}
		a = answer.Targets(source, stages)
	}
	e.closeDisplay(d)
	return q.print(a, "", e)
}

func (q *question) check(ctx context.Context, source *plan.SourceFile, o parser.Options, d *progress.Display, e *env) error {
	o.AllStages = o.Target == ""
	file, err := parser.Parse(source.Name, source.Data)
	warnings := file.Warnings()
	if err == nil {
		var build *plan.Build
		if build, err = file.Plan(ctx, o); build != nil {
			warnings = build.Warnings
		}
	}
	message := ""
	var fault *plan.Error
	switch {
	case errors.As(err, &fault):
		message = fault.Error()
	case err != nil:
		return err
	}
	result := answer.Check(source, warnings, err, message)
	head := "Check complete, no warnings found.\n"
	switch n := len(warnings); {
	case n == 1:
		head = "Check complete, 1 warning has been found!\n"
	case n > 1:
		head = fmt.Sprintf("Check complete, %d warnings have been found!\n", n)
	case err != nil:
		head = ""
	}
	e.closeDisplay(d)
	if err := q.print(result, head, e); err != nil {
		return err
	}
	if code := result.Status(); code != 0 && !q.ignoreStatus {
		return exitError{code: code}
	}
	return nil
}

func (q *question) print(a answer.Answer, head string, e *env) error {
	if !q.json {
		return e.printf("%s%s", head, a.Text())
	}
	data, err := answer.JSON(a)
	if err != nil {
		return err
	}
	return e.printf("%s\n", data)
}
