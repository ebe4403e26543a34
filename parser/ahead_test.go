package parser

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What is copied from the context is told before images are looked up, if it is
// plain and the target needs it.
func TestAhead(t *testing.T) {
	t.Parallel()
	f := parse(t, `FROM alpine AS unused
COPY unused /
FROM alpine AS dev
COPY a b/../c /
ADD d https://example.com/e git@example.com:f.git /
COPY --exclude=*.o --link g /
COPY $x "h" i* ${x}j /
COPY --parents m/n /
COPY --from=alpine o /
COPY <<p /
p
RUN --mount=target=/q true
FROM dev
COPY . /
`)
	var told []string
	var late atomic.Bool
	base := resolver(nil)
	_, err := f.Plan(t.Context(), Options{
		BuildPlatform: amd64, Ahead: func(paths []string) { told = append(told, paths...) },
		Resolve: func(ctx context.Context, ref string, p ocispec.Platform) (Resolved, error) {
			late.Store(late.Load() || told == nil)
			return base(ctx, ref, p)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(told)
	if d := cmp.Diff([]string{".", "a", "b/../c", "d", "g"}, told); d != "" {
		t.Errorf("told (-want +got):\n%s", d)
	}
	if late.Load() {
		t.Error("an image was looked up before")
	}
}

// A context that is no directory has no paths to read.
func TestAheadOfAnotherContext(t *testing.T) {
	t.Parallel()
	_, err := parse(t, "FROM alpine\nCOPY . /\n").Plan(t.Context(), Options{
		BuildPlatform: amd64, Resolve: resolver(nil), Contexts: map[string]Context{"context": {Local: "other"}},
		Ahead: func(paths []string) { t.Errorf("told of %q", paths) },
	})
	if err != nil {
		t.Fatal(err)
	}
}
