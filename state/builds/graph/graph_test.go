package graph

import (
	"encoding/xml"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

func aGraph(t *testing.T) Graph {
	t.Helper()
	step := func(vertex, name, kind string, outcome builds.Outcome, inputs ...int) builds.Step {
		s := builds.Step{Vertex: vertex, Name: name, Kind: kind, Outcome: outcome}
		for _, i := range inputs {
			s.Inputs = append(s.Inputs, builds.Input{Step: i})
		}
		return s
	}
	g, err := Of([]builds.Step{
		step("0", "FROM a", "image", ""),
		step("1", `RUN echo "<x> & #1"`, "exec", builds.Cached, 0),
		step("2", "RUN make", "exec", builds.Unneeded, 1),
		step("3", "COPY --from=x / /", "file", builds.Unneeded, -1, 2, 2),
	}, func(fn func(int, progress.Event) error) error {
		return fn(1, progress.Event{Kind: progress.Start, Vertex: "2"})
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestStates(t *testing.T) {
	t.Parallel()
	var got []State
	for _, n := range aGraph(t).Nodes {
		got = append(got, n.State)
	}
	if diff := cmp.Diff([]State{Source, Cached, Running, Waiting}, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
}

func TestMermaid(t *testing.T) {
	t.Parallel()
	want := `flowchart TB
  n0["FROM a"]:::source
  n1["RUN echo #34;#60;x#62; #38; #35;1#34;"]:::cached
  n2["RUN make"]:::running
  n3["COPY --from=x / /"]:::waiting
  n0 --> n1
  n1 --> n2
  n2 --> n3
`
	if got, _, _ := strings.Cut(aGraph(t).Mermaid(), "  classDef"); got != want {
		t.Errorf("got\n%s", cmp.Diff(want, got))
	}
}

func TestDOT(t *testing.T) {
	t.Parallel()
	got := aGraph(t).DOT()
	for _, want := range []string{`n1 [label="RUN echo \"<x> & #1\"",`, "n2 -> n3;\n", `tooltip="running"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

// The picture is sound XML, whatever steps are called.
func TestSVG(t *testing.T) {
	t.Parallel()
	d := xml.NewDecoder(strings.NewReader(aGraph(t).SVG()))
	boxes := 0
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "text" {
			boxes++
		}
	}
	if boxes != 4 {
		t.Errorf("%d texts, want 4", boxes)
	}
}
