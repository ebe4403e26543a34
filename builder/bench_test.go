package builder_test

import (
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// thousand is a build file of a thousand steps: ten stages of 99, and a last
// stage that copies from all.
func thousand() string {
	var df strings.Builder
	for stage := range 10 {
		fmt.Fprintf(&df, "FROM scratch AS s%d\n", stage)
		for i := range 99 {
			fmt.Fprintf(&df, "RUN write /f %d-%d\n", stage, i)
		}
	}
	df.WriteString("FROM scratch\n")
	for stage := range 10 {
		fmt.Fprintf(&df, "COPY --from=s%d /f /f%d\n", stage, stage)
	}
	return df.String()
}

// BenchmarkThousandSteps is what a build of a thousand steps costs before its
// first step runs (plan), and if none must run (cached: keys and look-ups, too).
func BenchmarkThousandSteps(b *testing.B) {
	f := newFixture(b, nil)
	text := []byte(thousand())
	o := parser.Options{BuildPlatform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Network: plan.NetworkNone}
	parse := func(b *testing.B) *plan.Build {
		file, err := parser.Parse("Dockerfile", text)
		if err != nil {
			b.Fatal(err)
		}
		p, err := file.Plan(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	build := func(b *testing.B, p *plan.Build) {
		if _, err := f.b.Build(b.Context(), builder.Request{Build: p, Progress: progress.Discard}); err != nil {
			b.Fatal(err)
		}
	}
	build(b, parse(b))
	b.Run("plan", func(b *testing.B) {
		for b.Loop() {
			parse(b)
		}
	})
	b.Run("cached", func(b *testing.B) {
		p := parse(b)
		for b.Loop() {
			build(b, p)
		}
	})
}
