package main

import (
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/state/builds"
	"github.com/strake-build/strake/state/builds/graph"
)

func newGraph(e *env) *cobra.Command {
	var format, output string
	cmd := &cobra.Command{
		Use:   "graph [OPTIONS] [BUILD]",
		Short: "Draw the steps of a build, and which were cached",
		Long: `Draw the steps of a build and what they need of each other: what was cached, what was
run and what waits, also while the build runs. BUILD is its ID, ^ for the last build,
^N for the Nth before it.`,
		Example: "  strake graph | dot -Tpng > graph.png\n  strake graph --format svg -o graph.svg\n  strake graph --format mermaid ^1",
		Args:    nArgs(0, 1, "one build"),
		RunE: func(_ *cobra.Command, args []string) error {
			draw := map[string]func(graph.Graph) string{"dot": graph.Graph.DOT, "mermaid": graph.Graph.Mermaid, "svg": graph.Graph.SVG}[format]
			if draw == nil {
				return usagef("--format %s: it is dot, mermaid or svg", format)
			}
			return withBuild(e, args, func(_ *store, r builds.Record) error {
				steps, err := r.Steps()
				if err != nil {
					return err
				}
				g, err := graph.Of(steps, r.Read)
				if err != nil {
					return err
				}
				return e.writeResult(output, draw(g))
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "dot", "dot, mermaid or svg")
	cmd.Flags().StringVarP(&output, "output", "o", "-", "write to a `FILE`")
	return cmd
}
