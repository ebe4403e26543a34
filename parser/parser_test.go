package parser

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
)

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse("Dockerfile", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestStages(t *testing.T) {
	t.Parallel()
	got := parse(t, "ARG x\nFROM a AS One\nFROM b\nFROM one as two\n").Stages()
	if d := cmp.Diff([]string{"one", "", "two"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// All images are asked for at once, each of them once, and only those that the
// target needs.
func TestResolveConcurrently(t *testing.T) {
	t.Parallel()
	f := parse(t, `FROM --platform=$BUILDPLATFORM alpine:1 AS a
FROM alpine:2 AS b
FROM alpine:3 AS unused
FROM alpine:1
COPY --from=a / /
COPY --from=b / /
COPY --from=alpine:2 / /
RUN --mount=from=alpine:4,target=/m x
`)
	var all sync.WaitGroup
	all.Add(6) // three for each platform; that of the build platform is one of them
	var mu sync.Mutex
	var asked []string
	base := resolver(nil)
	b, err := f.Plan(t.Context(), Options{
		BuildPlatform: amd64, Platforms: []ocispec.Platform{amd64, {OS: "linux", Architecture: "arm64"}},
		Resolve: func(ctx context.Context, ref string, p ocispec.Platform) (Resolved, error) {
			mu.Lock()
			asked = append(asked, ref+" "+p.Architecture)
			mu.Unlock()
			all.Done()
			all.Wait() // hangs if they come one after the other
			return base(ctx, ref, p)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(asked)
	want := []string{}
	for _, tag := range []string{"1", "2", "4"} {
		want = append(want, "docker.io/library/alpine:"+tag+" amd64", "docker.io/library/alpine:"+tag+" arm64")
	}
	if d := cmp.Diff(want, asked); d != "" {
		t.Errorf("asked for (-want +got):\n%s", d)
	}
	checkBuild(t, b)
}

func TestPlanCancelled(t *testing.T) {
	t.Parallel()
	cause := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	var started atomic.Int32
	_, err := parse(t, "FROM alpine:1 AS a\nFROM alpine:2\nCOPY --from=a / /\n").Plan(ctx, Options{
		BuildPlatform: amd64,
		Resolve: func(ctx context.Context, ref string, _ ocispec.Platform) (Resolved, error) {
			if started.Add(1) == 2 {
				cancel(cause)
			}
			<-ctx.Done()
			return Resolved{}, ctx.Err()
		},
	})
	if !errors.Is(err, cause) {
		t.Errorf("error %v, want the cause", err)
	}
}

// An error of one image is what is reported, not that the others were given up.
func TestResolveErrorWins(t *testing.T) {
	t.Parallel()
	bad := errors.New("denied")
	_, err := parse(t, "FROM alpine:1 AS a\nFROM alpine:2\nCOPY --from=a / /\n").Plan(t.Context(), Options{
		BuildPlatform: amd64, Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}, amd64},
		Resolve: func(ctx context.Context, ref string, p ocispec.Platform) (Resolved, error) {
			if strings.HasSuffix(ref, ":2") && p.Architecture == "amd64" {
				return Resolved{}, bad
			}
			<-ctx.Done()
			return Resolved{}, ctx.Err()
		},
	})
	var fault *plan.Error
	if !errors.Is(err, bad) || !errors.As(err, &fault) || fault.Source.Ranges[0].StartLine != 2 {
		t.Errorf("error %v", err)
	}
}

// One file may be planned several times at once, and a plan does not change it.
func TestPlanIsRepeatable(t *testing.T) {
	t.Parallel()
	f := parse(t, "ARG V=1\nFROM alpine\nARG V\nENV A=$V\nRUN --mount=type=cache,target=/$A x\nCOPY $A <<E /y/\n$A\nE\nEXPOSE $V\n")
	texts := make([]string, 8)
	var wg sync.WaitGroup
	for i := range texts {
		wg.Go(func() {
			b, err := f.Plan(t.Context(), Options{BuildPlatform: amd64, Args: map[string]string{"V": fmt.Sprint(i % 2)}, Resolve: resolver(nil)})
			if err != nil {
				t.Error(err)
				return
			}
			texts[i] = b.Text()
		})
	}
	wg.Wait()
	for i := range texts {
		if texts[i] != texts[i%2] || !strings.Contains(texts[i], fmt.Sprintf(`"A=%d"`, i%2)) {
			t.Errorf("plan %d:\n%s", i, texts[i])
		}
	}
}

// A file is parsed once for the first target and once for each more, and what
// the linter says of its syntax is told by all, as its options have it.
func TestParsedOnce(t *testing.T) {
	t.Parallel()
	plan := func(f *File, args map[string]string) (texts []string) {
		t.Helper()
		b, err := f.Plan(t.Context(), Options{BuildPlatform: amd64, Args: args, Resolve: resolver(nil)})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range b.Warnings {
			texts = append(texts, w.Rule)
		}
		return texts
	}
	f := parse(t, "FROM alpine as a\nMAINTAINER me\nENV x=$x y=1\n")
	want := []string{"FromAsCasing", "MaintainerDeprecated", "UndefinedVar"}
	if d := cmp.Diff(want[1:], plan(f, map[string]string{"BUILDKIT_DOCKERFILE_CHECK": "skip=FromAsCasing"})); d != "" {
		t.Errorf("with an option (-want +got):\n%s", d)
	}
	if f.parsed.Load() == nil {
		t.Error("what was parsed was taken by a linter with options")
	}
	for range 2 {
		if d := cmp.Diff(want, plan(f, nil)); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if f.parsed.Load() != nil {
			t.Error("the file was parsed again")
		}
	}
}

func TestSharedSteps(t *testing.T) {
	t.Parallel()
	b, err := parse(t, "FROM --platform=$BUILDPLATFORM alpine AS tool\nRUN make\nFROM alpine\nCOPY --from=tool /a .\nCOPY . .\n").Plan(
		t.Context(), Options{BuildPlatform: amd64, Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "s390x"}}, Resolve: resolver(nil)})
	if err != nil {
		t.Fatal(err)
	}
	x, y := b.Targets[0].Step, b.Targets[1].Step
	if x == y {
		t.Error("the targets are one step")
	}
	if x.Inputs[1].Step != y.Inputs[1].Step {
		t.Error("the build context is there twice")
	}
	if x.Inputs[0].Step.Inputs[1].Step != y.Inputs[0].Step.Inputs[1].Step {
		t.Error("the step of the build platform is there twice")
	}
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		o    Options
		want string
	}{
		"no build platform": {Options{Resolve: resolver(nil)}, "platform of this machine"},
		"no resolver":       {Options{BuildPlatform: amd64}, "can be looked up"},
		"RUN for windows":   {Options{BuildPlatform: amd64, Platforms: []ocispec.Platform{{OS: "windows", Architecture: "amd64"}}, Resolve: resolver(nil)}, "RUN for Windows is not supported"},
		"context":           {Options{BuildPlatform: amd64, Contexts: map[string]Context{"alpine": {Image: "Not A Reference"}}, Resolve: resolver(nil)}, "context alpine"},
		"check":             {Options{BuildPlatform: amd64, Args: map[string]string{"BUILDKIT_DOCKERFILE_CHECK": "x"}}, "check=x"},
	}
	for name, c := range cases {
		_, err := parse(t, "FROM alpine\nRUN true\n").Plan(t.Context(), c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}

// The context may be an image, or a step made elsewhere.
func TestMainContext(t *testing.T) {
	t.Parallel()
	git := &plan.Step{Op: &plan.Git{Remote: "https://example.com/x.git"}, Name: "git"}
	for name, c := range map[string]struct {
		context Context
		want    func(*plan.Step) bool
	}{
		"image":   {Context{Image: "alpine:9"}, func(s *plan.Step) bool { op, ok := s.Op.(*plan.Image); return ok && strings.HasSuffix(op.Ref, ":9") }},
		"step":    {Context{Step: git}, func(s *plan.Step) bool { return s == git }},
		"local":   {Context{Local: "l"}, func(s *plan.Step) bool { op, ok := s.Op.(*plan.Local); return ok && op.Name == "l" }},
		"scratch": {Context{Image: "scratch"}, func(s *plan.Step) bool { return s == nil }},
	} {
		b, err := parse(t, "FROM scratch\nCOPY a b\n").Plan(t.Context(), Options{BuildPlatform: amd64, Contexts: map[string]Context{"context": c.context}, Resolve: resolver(nil)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !c.want(b.Targets[0].Step.Inputs[1].Step) {
			t.Errorf("%s: wrong input\n%s", name, b.Text())
		}
	}
}
