package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/builder/explain"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

type whyOptions struct {
	registryOptions
	build, against, format string
}

func newWhy(e *env) *cobra.Command {
	var o whyOptions
	cmd := &cobra.Command{
		Use:   "why [OPTIONS] [STEP|TARGET]",
		Short: "Tell why steps of a build were run again",
		Long: `Tell why steps of a build were run again: the first step of each branch that was
not in the cache, and what of it changed since an earlier build: a file, a build
argument, a variable, the base image, a mount, the ID of a secret.

STEP is a part of a step's text, or its number in 'strake history inspect'; TARGET
is a stage. Without them the whole build is explained. Nothing is run, and nothing
but the records of builds is read.`,
		Example: `  strake why                            # the last build, against the one before it
  strake why 'COPY . .'                 # one step
  strake why --build ^1 --against ^5    # the last build but one, against the one 5 before the last
  strake why --against type=registry,ref=registry.example/app:cache
  strake why --format github            # annotations for GitHub Actions`,
		Args: nArgs(0, 1, "one step or stage at most"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runWhy(cmd.Context(), o, strings.Join(args, ""), e)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.build, "build", "^", "the build to explain: its `REF`, ^ for the last one, ^N for the Nth before it")
	f.StringVar(&o.against, "against", "", "the build to compare with, likewise, or the cache that a build like it was written to, as type=registry,ref=`REF` (default the last one like it)")
	f.StringVar(&o.format, "format", "text", "text, json, or github for annotations of GitHub Actions")
	o.registryOptions.addFlags(f)
	return cmd
}

func runWhy(ctx context.Context, o whyOptions, what string, e *env) (err error) {
	if o.format != "text" && o.format != "json" && o.format != "github" {
		return usagef("--format %s: it is text, json or github", o.format)
	}
	s, err := openStore(e, o.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	record, err := getBuild(s, o.build)
	if err != nil {
		return err
	}
	now, err := explain.Open(record)
	if err != nil {
		return err
	}
	if len(now.Steps) == 0 {
		return fmt.Errorf("build %s got to no step: %s", short12(record.Ref), noSteps(record))
	}
	var before []explain.Build
	switch {
	case isCache(o.against):
		if before, err = againstCache(ctx, s, o.against, now, record); err != nil {
			return err
		}
	case o.against != "":
		other, err := getBuild(s, o.against)
		if err != nil {
			return fmt.Errorf("--against: %w", err)
		}
		b, err := explain.Open(other)
		if err != nil {
			return err
		}
		before = []explain.Build{b}
	default:
		all, err := s.builds().List()
		if err != nil {
			return err
		}
		before = explain.Past(record, now.Steps, all)
	}
	findings := explain.Explain(now, before)
	steps := now.Steps
	if what != "" {
		if steps, findings, err = selectSteps(now, before, findings, what); err != nil {
			return err
		}
	}
	return e.printFindings(o.format, record, steps, findings, s.builds())
}

func noSteps(r builds.Record) string {
	switch {
	case r.Error != "":
		return progress.Clean(r.Error)
	case r.Status == builds.Running:
		return "it has not ended"
	}
	return "nothing is recorded of it"
}

// getBuild finds a build by what a user calls it.
func getBuild(s *store, ref string) (builds.Record, error) {
	r, err := s.builds().Get(ref)
	if errors.Is(err, builds.ErrNotFound) {
		return r, fmt.Errorf("%w; `strake history ls` lists those that are kept", err)
	}
	return r, err
}

// selectSteps finds the steps that what names, and the findings about them.
func selectSteps(now explain.Build, before []explain.Build, all []explain.Finding, what string) ([]builds.Step, []explain.Finding, error) {
	if findings, ok := explain.OfStage(now, all, what); ok {
		return explain.StepsOf(now, what), findings, nil
	}
	var steps []builds.Step
	var findings []explain.Finding
	number, _ := strconv.Atoi(strings.TrimPrefix(what, "#"))
	for i, n := range visible(now.Steps) {
		s := now.Steps[i]
		if n == 0 || n != number && (number != 0 || !strings.Contains(strings.ToLower(s.Name), strings.ToLower(what))) {
			continue
		}
		steps = append(steps, s)
		if f, ok := explain.One(now, before, i); ok {
			findings = append(findings, f)
		}
	}
	if len(steps) == 0 {
		return nil, nil, fmt.Errorf("%q: the build has no such step or stage; `strake history inspect` lists its steps", what)
	}
	return steps, findings, nil
}

// visible numbers the steps that users see, from 1; the others have 0.
func visible(steps []builds.Step) []int {
	numbers, n := make([]int, len(steps)), 0
	for i, s := range steps {
		if !s.Internal {
			n++
			numbers[i] = n
		}
	}
	return numbers
}

// shownCauses is how many causes of a step are shown as text.
const shownCauses = 10

func (e *env) printFindings(format string, r builds.Record, steps []builds.Step, findings []explain.Finding, all *builds.Store) error {
	if findings == nil {
		findings = []explain.Finding{}
	}
	var b strings.Builder
	switch format {
	case "json":
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"build": r.Ref, "findings": findings}); err != nil {
			return err
		}
	case "github":
		for _, f := range findings {
			b.WriteString(annotation(f) + "\n")
		}
	default:
		if len(findings) == 0 {
			fmt.Fprintf(&b, "Nothing was run: what build %s needed was in the cache (%s).\n", short12(r.Ref), plural(len(steps), "step"))
		}
		for _, f := range findings {
			writeFinding(&b, f, all)
		}
	}
	return e.printf("%s", b.String())
}

func writeFinding(b *strings.Builder, f explain.Finding, all *builds.Store) {
	b.WriteString(cleaned(f.Step))
	if f.Source != "" {
		fmt.Fprintf(b, " (%s)", cleaned(f.Source))
	}
	b.WriteByte('\n')
	for i, c := range f.Causes {
		if i == shownCauses {
			fmt.Fprintf(b, "  … and %d more\n", len(f.Causes)+f.More-i)
			break
		}
		fmt.Fprintf(b, "  %s\n", cleaned(c.Text()))
	}
	for _, s := range f.Follows {
		fmt.Fprintf(b, "  it follows %s, which was run\n", cleaned(s))
	}
	if f.Against != "" {
		fmt.Fprintf(b, "  compared with build %s", short12(f.Against))
		if r, err := all.Get(f.Against); err == nil {
			fmt.Fprintf(b, " of %s ago", strings.ToLower(units.HumanDuration(time.Since(r.Created))))
		}
		b.WriteByte('\n')
	}
}

// annotation is a finding as a workflow command of GitHub Actions, which shows
// it at the line of the build file.
func annotation(f explain.Finding) string {
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	var at string
	if name, line, ok := cutLast(f.Source, ':'); ok {
		if before, n, ok := cutLast(name, ':'); ok && isNumber(n) {
			name, line = before, n // there was a column
		}
		at = fmt.Sprintf("file=%s,line=%s,", property.Replace(name), line)
	}
	return fmt.Sprintf("::notice %stitle=%s::%s", at, property.Replace("Run again: "+cleaned(f.Step)), data.Replace(cleaned(f.Text())))
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func isNumber(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// short12 is the form of a build's ref in lists.
func short12(ref string) string { return ref[:min(12, len(ref))] }
