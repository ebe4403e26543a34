package parser

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	bparser "github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/lazyregexp"
	"github.com/strake-build/strake/plan"
)

// openLinter makes the linter as the "# check" directive, or the build arg in
// its place, wants it.
func (t *target) openLinter() error {
	text, _, loc, _ := bparser.ParseDirective("check", t.file.source.Data)
	if v, ok := t.args["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		text, loc = v, nil
	}
	config, err := linter.ParseLintOptions(text)
	if err != nil {
		return t.file.fault(loc, fmt.Errorf("check=%s: %w", shorten(text), err))
	}
	config.Warn, t.plainLint = t.file.warn(&t.warnings), strings.TrimSpace(text) == ""
	t.lint = linter.New(config)
	return nil
}

// warn makes a linter add its findings to a list.
func (f *File) warn(to *[]plan.Warning) linter.LintWarnFunc {
	return func(rule, description, url, text string, loc []bparser.Range) {
		*to = append(*to, plan.Warning{
			Rule: rule, Text: shorten(text), Detail: description, URL: url, Source: f.sourceAt(loc),
		})
	}
}

// lintFailed is the error if there are warnings and "# check=error=true".
func (t *target) lintFailed() error {
	if !t.lint.ReturnAsError || len(t.warnings) == 0 {
		return nil
	}
	rules := map[string]struct{}{}
	for _, w := range t.warnings {
		rules[w.Rule] = struct{}{}
	}
	first := sortWarnings(t.warnings)[0]
	return &plan.Error{
		Source: first.Source,
		Err:    fmt.Errorf("lint violation found for rules: %s", strings.Join(sortedKeys(rules), ", ")),
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// lintStageNames warns of stage names that are used twice or mean something
// else.
func (t *target) lintStageNames() {
	seen := map[string]bool{}
	for _, st := range t.syntax.stages {
		if st.Name == "" {
			continue
		}
		if st.Name == scratch || st.Name == "context" {
			t.lint.Run(&linter.RuleReservedStageName, st.Location, linter.RuleReservedStageName.Format(st.Name))
		}
		if seen[st.Name] {
			t.lint.Run(&linter.RuleDuplicateStageName, st.Location, linter.RuleDuplicateStageName.Format(st.Name))
		}
		seen[st.Name] = true
	}
}

// lintCasing warns of instructions that are not in the case of the majority.
func (t *target) lintCasing() {
	lower, upper := 0, 0
	each := func(f func(name string, loc location)) {
		for _, st := range t.syntax.stages {
			f(st.OrigCmd, st.Location)
			for _, c := range st.Commands {
				f(c.Name(), c.Location())
			}
		}
	}
	each(func(name string, _ location) {
		switch name {
		case strings.ToLower(name):
			lower++
		case strings.ToUpper(name):
			upper++
		}
	})
	want, convert := "uppercase", strings.ToUpper
	if lower > upper {
		want, convert = "lowercase", strings.ToLower
	}
	each(func(name string, loc location) {
		if convert(name) != name {
			t.lint.Run(&linter.RuleConsistentInstructionCasing, loc, linter.RuleConsistentInstructionCasing.Format(name, want))
		}
	})
}

// lintDefaultBases warns of base names that are invalid unless a build arg is
// given.
func (t *target) lintDefaultBases(platformArgs *env) {
	e := platformArgs.clone()
	if t.globalArgs(e, nil, nil) != nil {
		return // there will be an error
	}
	for _, st := range t.syntax.stages {
		res, err := t.expander.word(st.BaseName, e)
		if err != nil {
			return
		}
		if _, err := reference.ParseNormalizedNamed(res.Result); err != nil {
			t.lint.Run(&linter.RuleInvalidDefaultArgInFrom, st.Location, linter.RuleInvalidDefaultArgInFrom.Format(st.BaseName))
		}
	}
}

// lintUndefinedInFrom warns of variables in FROM that no ARG before it declares.
func (t *target) lintUndefinedInFrom(res shell.ProcessWordResult, loc location, lint *linter.Linter) {
	if len(res.Unmatched) == 0 {
		return
	}
	known := slices.Clone(t.globals.Keys())
	for _, c := range t.syntax.args {
		for _, arg := range c.Args {
			known = append(known, arg.Key)
		}
	}
	for _, name := range sortedKeys(res.Unmatched) {
		if !slices.Contains(known, name) {
			lint.Run(&linter.RuleUndefinedArgInFrom, loc, linter.RuleUndefinedArgInFrom.Format(name, closest(name, known)))
		}
	}
}

// lintPlatform warns of FROM --platform where it says nothing or too much.
func (t *target) lintPlatform(stage, flag string, res shell.ProcessWordResult, loc location, lint *linter.Linter) {
	const targetPlatform = "TARGETPLATFORM"
	if _, ok := res.Matched[targetPlatform]; ok && len(res.Matched) == 1 && len(res.Unmatched) == 0 {
		if v, _ := t.globals.Get(targetPlatform); v == res.Result {
			lint.Run(&linter.RuleRedundantTargetPlatform, loc, linter.RuleRedundantTargetPlatform.Format(flag))
		}
	}
	if len(res.Matched) > 0 || len(res.Unmatched) > 0 {
		return
	}
	p, err := platforms.Parse(res.Result)
	if err != nil || strings.Contains(stage, p.OS) || strings.Contains(stage, p.Architecture) {
		return
	}
	lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, loc, linter.RuleFromPlatformFlagConstDisallowed.Format(res.Result))
}

// lintBasePlatform warns of an image that is for another platform than it was
// looked up for.
func (s *stage) lintBasePlatform(b *base) {
	if b.platform.OS == b.image.OS && b.platform.Architecture == b.image.Architecture {
		return
	}
	text := func(p ocispec.Platform) string { return platforms.FormatAll(platforms.Normalize(p)) }
	s.t.lint.Run(&linter.RuleInvalidBaseImagePlatform, s.Location,
		linter.RuleInvalidBaseImagePlatform.Format(s.BaseName, text(b.platform), text(b.image.Platform)))
}

// lintUndefined warns of variables that an instruction uses and nothing sets.
func (s *stage) lintUndefined(c instructions.Command, unmatched map[string]struct{}) {
	for _, name := range sortedKeys(unmatched) {
		if silentArgs[name] || slices.ContainsFunc(s.args, func(a instructions.KeyValuePairOptional) bool { return a.Key == name }) {
			continue
		}
		s.lint.Run(&linter.RuleUndefinedVar, c.Location(), linter.RuleUndefinedVar.Format(name, closest(name, s.env.Keys())))
	}
}

var (
	secretWord   = lazyregexp.New(`(?i)(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)`)
	harmlessWord = lazyregexp.New(`(?i)(?:_|^)(?:public|file|version)(?:_|$)`)
)

// lintSecret warns of variables that look like secrets, by their names.
func (s *stage) lintSecret(instruction, key string, c instructions.Command) {
	if secretWord().MatchString(key) && !harmlessWord().MatchString(key) {
		s.lint.Run(&linter.RuleSecretsUsedInArgOrEnv, c.Location(), linter.RuleSecretsUsedInArgOrEnv.Format(instruction, key))
	}
}

// usedOnce remembers an instruction of which only the last one counts.
type usedOnce struct {
	set bool
	loc location
}

// lintUsedOnce warns of the one before, since that one is ignored.
func (s *stage) lintUsedOnce(c instructions.Command, u *usedOnce) {
	if u.set {
		s.lint.Run(&linter.RuleMultipleInstructionsDisallowed, u.loc, linter.RuleMultipleInstructionsDisallowed.Format(c.Name()))
	}
	*u = usedOnce{true, c.Location()}
}

// lintIgnored warns of a source that .dockerignore leaves out. It does not try
// where the file has exceptions: something below the source may be kept.
func (s *stage) lintIgnored(tr *transfer, src string) {
	if tr.ignore == nil || slices.ContainsFunc(s.t.o.Exclude, func(p string) bool { return strings.HasPrefix(strings.TrimSpace(p), "!") }) {
		return
	}
	src = path.Clean(src)
	ignored, _ := tr.ignore.Ignored(src, false)
	if src == "." || src == "/" {
		ignored = slices.ContainsFunc(s.t.o.Exclude, func(p string) bool {
			p = path.Clean(strings.TrimSpace(p))
			return p == "*" || p == "**" || p == "**/*"
		})
	}
	if ignored {
		verb := tr.verb[:1] + strings.ToLower(tr.verb[1:])
		s.lint.Run(&linter.RuleCopyIgnoredFile, tr.Location(), linter.RuleCopyIgnoredFile.Format(verb, src))
	}
}
