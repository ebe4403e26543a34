package parser

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
)

func TestParseGit(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		git  bool
		bad  bool
		want plan.Git
	}{
		"https://github.com/a/b.git":                    {git: true, want: plan.Git{Remote: "https://github.com/a/b.git"}},
		"https://u:p@h/b.git#main":                      {git: true, want: plan.Git{Remote: "https://u:p@h/b.git", Ref: "main"}},
		"https://h/b.git#:sub/../dir":                   {git: true, want: plan.Git{Remote: "https://h/b.git", Subdir: "dir"}},
		"https://h/b.git#v1:../../etc":                  {git: true, want: plan.Git{Remote: "https://h/b.git", Ref: "v1", Subdir: "etc"}},
		"https://h/b.git?tag=v1&commit=abc":             {git: true, want: plan.Git{Remote: "https://h/b.git", Ref: "refs/tags/v1", Checksum: "abc"}},
		"git://h/b":                                     {git: true, want: plan.Git{Remote: "git://h/b"}},
		"ssh://git@h:22/b#x":                            {git: true, want: plan.Git{Remote: "ssh://git@h:22/b", Ref: "x"}},
		"git@h:a/b?submodules=0#x:y":                    {git: true, want: plan.Git{Remote: "git@h:a/b", Ref: "x", Subdir: "y", SkipSubmodules: true}},
		"https://h/b":                                   {},
		"https://h/b.git/archive.tar":                   {},
		"./git@h:x":                                     {},
		"github.com/a/b":                                {},
		"ftp://h/b.git":                                 {},
		"a:b":                                           {},
		"file.git":                                      {},
		"https://h/b.git?ref=":                          {git: true, bad: true},
		"https://h/b.git?ref=a&ref=b":                   {git: true, bad: true},
		"https://h/b.git?mtime=commit":                  {git: true, bad: true},
		"https://h/b.git?fetch-by-commit=true#x":        {git: true, want: plan.Git{Remote: "https://h/b.git", Ref: "x"}},
		"https://h/b.git?keep-git-dir=maybe":            {git: true, bad: true},
		"https://h/b.git?subdir=a#x:b":                  {git: true, bad: true},
		"https://h/b.git?branch=a&tag=b":                {git: true, bad: true},
		"https://h/b.git?mtime=checkout&submodules=yes": {git: true, bad: true},
	}
	for src, c := range cases {
		g, git, err := parseGit(src)
		if git != c.git || (err != nil) != c.bad {
			t.Errorf("%s: git %v, error %v", src, git, err)
			continue
		}
		if git && !c.bad {
			if d := cmp.Diff(c.want, g.op); d != "" {
				t.Errorf("%s (-want +got):\n%s", src, d)
			}
		}
	}
}

func TestChmodAndOwner(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"755": "0755", "0644": "0644", "7777": "7777", "u+x": "u+x", "a=rX,u+w": "a=rX,u+w", "10000": "", "8": "", "u+q": "", "-1": "",
	} {
		got, err := chmod(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("chmod(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]struct {
		owner plan.Owner
		named bool
	}{
		"1:2": {plan.Owner{User: "1", Group: "2"}, false}, "1": {plan.Owner{User: "1"}, false}, "root": {plan.Owner{User: "0"}, false},
		"me": {plan.Owner{User: "me"}, true}, "1:wheel": {plan.Owner{User: "1", Group: "wheel"}, true}, "5:": {plan.Owner{User: "5"}, false},
	} {
		got, named := owner(in)
		if *got != want.owner || named != want.named {
			t.Errorf("owner(%q) = %+v, %v; want %+v", in, *got, named, want)
		}
	}
}

func TestIsSignal(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]bool{
		"SIGTERM": true, "term": true, "9": true, "SIGRTMIN+3": true, "RTMAX-14": true, "RTMAX-15": false, "0": false, "": false, "SIG": false, "BOGUS": false,
	} {
		if got := isSignal(in); got != want {
			t.Errorf("isSignal(%q) = %v", in, got)
		}
	}
}

func TestNesting(t *testing.T) {
	t.Parallel()
	for word, want := range map[string][2]int{
		`plain`: {0, 0}, `$a/$b`: {0, 0}, `${a}/${b}`: {1, 0}, `${a:-${b}}`: {2, 0}, `${a:-x/y}`: {1, 0},
		`${a/x/y}${b/x/y}`: {1, 1}, `${a//x/${b//y/z}}`: {2, 2}, `${a//x/'}'${b//y/z}}`: {2, 2}, `"${a//x/"}"${b/y/z}}"`: {2, 2},
		`${a//x/\}${b//y/z}}`: {2, 2}, `'${a//x/y}'`: {0, 0}, `\${a//x/y}`: {0, 0}, `${a:-${b//x/y}}`: {2, 1}, `${@//x/y}`: {1, 1},
		`${a//x/y`: {1, 1}, `}}}`: {0, 0},
	} {
		depth, substitutions := nesting(word, '\\', false)
		if got := [2]int{depth, substitutions}; got != want {
			t.Errorf("nesting(%s) = %v, want %v", word, got, want)
		}
	}
}

func TestClosest(t *testing.T) {
	t.Parallel()
	options := []string{"build", "test", "release"}
	for word, want := range map[string]string{"bulid": "build", "build": "", "tst": "test", "completely-else": "", "releas": "release"} {
		if got := closest(word, options); got != want {
			t.Errorf("closest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestAlignHistory(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		history string // L: entry with a layer, e: without
		layers  int
		want    string
	}{
		"fits": {"LeL", 2, "LeL"}, "none": {"", 2, "LL"}, "too few": {"Le", 2, "LeL"}, "too many": {"LLeL", 1, "Leee"}, "no layers": {"L", 0, "e"},
	} {
		in := historyOf(c.history)
		got := ""
		for _, h := range alignHistory(in, c.layers) {
			got += map[bool]string{true: "e", false: "L"}[h.EmptyLayer]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func historyOf(s string) []ocispec.History {
	var out []ocispec.History
	for _, r := range s {
		out = append(out, ocispec.History{EmptyLayer: r == 'e'})
	}
	return out
}
