package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/bench/pair"
	"github.com/strake-build/strake/conformance/random"
)

// runDifffuzz has strake and BuildKit build contexts and Dockerfiles made at
// random, and compares the images.
func runDifffuzz(ctx context.Context, strake, out string, args []string) (err error) {
	flags := flag.NewFlagSet("difffuzz", flag.ContinueOnError)
	seed := flags.Uint64("seed", 1, "of the first input; those that follow have the numbers after it")
	n := flags.Int("n", 100, "how many inputs")
	limit := flags.Duration("for", time.Hour, "how long at most")
	most := flags.Int("stop", 1, "how many differences end the run")
	why := flags.Bool("why", false, "say why inputs were refused by both")
	show := flags.Bool("show", false, "show the inputs, and build nothing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *show {
		for i := range *n {
			fmt.Println(random.New(*seed + uint64(i)))
		}
		return nil
	}
	mirror, stop, err := startReference(ctx, out)
	if err != nil {
		return err
	}
	defer stop()
	both, err := pair.Start(pair.Options{Strake: strake, Mirror: mirror, Hosts: []string{"docker.io"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, both.Stop()) }()

	compare := func(in *random.Input) pair.Result {
		dir, err := os.MkdirTemp(out, "input-")
		if err != nil {
			return pair.Result{Diff: err.Error()}
		}
		defer os.RemoveAll(dir)
		if err := in.Write(dir); err != nil {
			return pair.Result{Diff: err.Error()}
		}
		return both.Compare(pair.Build{Context: dir, Dockerfile: filepath.Join(dir, "Dockerfile"), Target: in.Target, Args: in.Args, Labels: in.Labels})
	}
	start := time.Now()
	same, refused, known, wrong := 0, 0, map[string]int{}, 0
	for i := 0; i < *n && wrong < *most && time.Since(start) < *limit && ctx.Err() == nil; i++ {
		in := random.New(*seed + uint64(i))
		r := compare(in)
		switch {
		case r.Refused != nil:
			refused++
			if *why {
				lines := strings.Split(strings.TrimSpace(r.Refused.Error()), "\n")
				fmt.Printf("refused %d: %s\n", in.Seed, lines[len(lines)-1])
			}
			continue
		case r.Diff == "":
			same++
			continue
		}
		if reason := deliberate(in, r); reason != "" {
			known[reason]++
			continue
		}
		wrong++
		kind := kindOf(r.Diff)
		small := in.Shrink(func(in *random.Input) bool {
			r := compare(in)
			return r.Diff != "" && kindOf(r.Diff) == kind && deliberate(in, r) == ""
		})
		fmt.Printf("DIFFERENT\n%s\n%s\n", small, compare(small).Diff)
	}
	fmt.Printf("%d inputs from seed %d: %d built alike, %d refused by both, %d different\n", same+refused+wrong+sum(known), *seed, same, refused, wrong)
	for why, n := range known {
		fmt.Printf("%d differ and are meant to: %s\n", n, why)
	}
	if wrong > 0 {
		return errors.New("strake and BuildKit differ")
	}
	return ctx.Err()
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// kindOf is who refused, if somebody did: shrinking keeps to one kind.
func kindOf(diff string) string {
	who, _, ok := strings.Cut(diff, " refused: ")
	if !ok || strings.Contains(who, "\n") {
		return "images"
	}
	return who
}

// meant are refusals that are decided on, by what BuildKit or strake says.
var meant = []struct {
	diff *regexp.Regexp
	why  string
}{
	{regexp.MustCompile(`(?s)^buildkit refused.*invalid user index -1`), "BuildKit's own user IDs end at 2147483647, the kernel's at 4294967294"},
	{regexp.MustCompile(`(?s)^buildkit refused.*--parents.*": not found`), "BuildKit does not find the root, nor paths with slashes too many, beside other sources of COPY --parents"},
	{regexp.MustCompile(`(?s)^buildkit refused.*lstat /.*: no such file or directory`), "BuildKit's client does not send a directory in which a pattern matches nothing, and its daemon misses it"},
	{regexp.MustCompile(`(?s)^buildkit refused.*failed to calculate checksum of.*: too many links`), "BuildKit has no digest of a directory with a link that leads in a circle, where a pattern leaves something out"},
	{regexp.MustCompile(`(?s)^buildkit refused.*ERROR: chtimes /.*: (no such file or directory|not a directory)`), "BuildKit sets the times of a directory of an archive that a later entry has replaced"},
	{regexp.MustCompile(`(?s)^strake refused.*owner "4294967295"`), "a user or group 4294967295 is none: chown leaves the owner as it is"},
	{regexp.MustCompile(`(?s)^strake refused.*COPY.*--parents.*: not found`), "BuildKit does not look for the sources of COPY --parents in a stage that has nothing in it"},
}

var notSent = regexp.MustCompile(`(?s)^buildkit refused.*(": not found|failed to solve: open /.*: no such file or directory)`)

var replaced = regexp.MustCompile(`(?s)^buildkit refused.*cannot replace to directory .* with file`)

// deliberate returns why a difference is meant to be, or "".
func deliberate(in *random.Input, r pair.Result) string {
	for _, m := range meant {
		if m.diff.MatchString(r.Diff) {
			return m.why
		}
	}
	has := func(t byte) bool {
		return slices.ContainsFunc(in.Files, func(f random.File) bool { return f.Type == t })
	}
	if has('l') && strings.ContainsAny(in.Dockerfile(), "*?[") && notSent.MatchString(r.Diff) {
		return "BuildKit's client does not send what a link leads to that a pattern matches, and its daemon misses it"
	}
	climbs := func(f random.File) bool { return f.Type == 'l' && strings.Contains(f.Data, "/..") }
	if slices.ContainsFunc(in.Files, climbs) && replaced.MatchString(r.Diff) {
		return "BuildKit takes LINK/.. in the target of a link for the directory that LINK is in, strake as the kernel does"
	}
	if has('h') && r.Ours != nil && cmp.Equal(r.Theirs.Unlinked(), r.Ours.Unlinked()) {
		return "hard links in the context are files of their own (docs/decisions/0003-context-links.md)"
	}
	return ""
}
