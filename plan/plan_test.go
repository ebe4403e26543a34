package plan

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestErrorText(t *testing.T) {
	t.Parallel()
	file := &SourceFile{Name: "Dockerfile", Data: []byte("FROM a AS build\nFROM b\n\tCOPY --from=bulid x \x1b[31my\nRUN c\n")}
	cases := map[string]struct {
		err           Error
		text, excerpt string
	}{
		"column and hint": {
			Error{
				&Source{file, []Range{{3, 13, 3, 18}}}, errors.New(`COPY --from=bulid: no stage named "bulid"`),
				`did you mean "build"?`,
			},
			`Dockerfile:3:14: COPY --from=bulid: no stage named "bulid" (did you mean "build"?)`,
			"Dockerfile:3\n--------------------\n" +
				"   1 |     FROM a AS build\n   2 |     FROM b\n   3 | >>> \tCOPY --from=bulid x ?[31my\n" +
				"     |     \t            ^\n   4 |     RUN c\n   5 |\n--------------------\n",
		},
		"lines only": {
			Error{Source: &Source{file, []Range{{StartLine: 1, EndLine: 2}}}, Err: errors.New("no")},
			"Dockerfile:1: no",
			"Dockerfile:1\n--------------------\n" +
				"   1 | >>> FROM a AS build\n     |     ^\n   2 | >>> FROM b\n   3 |     \tCOPY --from=bulid x ?[31my\n   4 |     RUN c\n" +
				"--------------------\n",
		},
		"no line": {Error{Source: &Source{File: file}, Err: errors.New("empty")}, "Dockerfile: empty", ""},
		"line past the end": {
			Error{Source: &Source{file, []Range{{StartLine: 99}}}, Err: errors.New("odd")}, "Dockerfile:99: odd", "",
		},
	}
	for name, c := range cases {
		if d := cmp.Diff(c.text, c.err.Error()); d != "" {
			t.Errorf("%s: text (-want +got):\n%s", name, d)
		}
		if d := cmp.Diff(c.excerpt, c.err.Source.Excerpt()); d != "" {
			t.Errorf("%s: excerpt (-want +got):\n%s", name, d)
		}
	}
}

func TestExcerptIsBounded(t *testing.T) {
	t.Parallel()
	data := strings.Repeat(strings.Repeat("x", 1000)+"\n", 10000)
	s := &Source{&SourceFile{"f", []byte(data)}, []Range{{StartLine: 1, EndLine: 10000}}}
	if n := len(s.Excerpt()); n > 20<<10 {
		t.Errorf("excerpt has %d bytes", n)
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	linux := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	file := &SourceFile{Name: "Dockerfile", Data: []byte("FROM a\nRUN b c\n")}
	image := &Step{Op: &Image{Ref: "a", Digest: "sha256:0"}, Platform: linux, Name: "FROM a", Source: &Source{file, []Range{{StartLine: 1}}}}
	local := &Step{Op: &Local{Name: "context", Exclude: []string{"*.o"}}, Name: "[internal] load", Internal: true}
	run := &Step{
		Op: &Exec{
			Args: []string{"b c"}, Env: []string{"A=b c"}, User: "me",
			Mounts:    []Mount{{Type: MountBind, Target: "/m", Input: 1, Readonly: true}, {Type: MountTmpfs, Target: "/t", Input: -1}},
			BuildArgs: []string{"A=b c"},
		},
		Inputs: []Input{{Step: image}, {Step: local, Output: 1}}, NoCache: true, Name: "RUN b",
	}
	b := &Build{
		Targets: []Target{{Platform: linux, Step: run, Stage: "0"}, {Platform: linux, Stage: "none"}},
		Warnings: []Warning{{
			Rule: "R", Text: "text", Source: &Source{file, []Range{{StartLine: 2}}},
		}},
	}
	want := `target linux/arm64/v8 stage "0": #3
target linux/arm64/v8 stage "none": scratch

#1 FROM a
  linux/arm64/v8 Dockerfile:1
  image ref=a digest=sha256:0 platform=/

#2 [internal] load
  internal
  local name=context exclude=["*.o"]

#3 RUN b
  no-cache
  inputs #1 #2.1
  exec args=["b c"] user=me
  env "A=b c"
  mount bind target=/m input=1 readonly
  mount tmpfs target=/t
  build-args ["A=b c"]
warning Dockerfile:2 R: text
`
	if d := cmp.Diff(want, b.Text()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A chain as long as the largest build file does not exhaust the stack.
func TestTextOfLongChain(t *testing.T) {
	t.Parallel()
	var s *Step
	for range 200_000 {
		s = &Step{Op: &Merge{}, Inputs: []Input{{Step: s}}}
	}
	text := (&Build{Targets: []Target{{Step: s}}}).Text()
	if n := strings.Count(text, "merge"); n != 200_000 {
		t.Errorf("%d steps in the text", n)
	}
}
