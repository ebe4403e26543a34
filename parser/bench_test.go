package parser

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkPlan reads and plans a file of 1000 steps.
func BenchmarkPlan(b *testing.B) {
	var text strings.Builder
	text.WriteString("FROM alpine\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "RUN echo %d >> /x\n", i)
	}
	data := []byte(text.String())
	o := Options{BuildPlatform: amd64, Resolve: resolver(nil)}
	for b.Loop() {
		f, err := Parse("Dockerfile", data)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Plan(b.Context(), o); err != nil {
			b.Fatal(err)
		}
	}
}
