// Package graph draws the steps of a recorded build and what they need of each
// other.
package graph

import (
	"fmt"
	"html"
	"strings"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

// State is how a node is drawn.
type State string

// The states of a node.
const (
	Cached  State = "cached"
	Ran     State = "ran"
	Running State = "running"
	Failed  State = "failed"
	Waiting State = "waiting" // not run, or not yet
	Source  State = "source"  // an image, a directory: nothing to run
)

var states = []State{Cached, Ran, Running, Failed, Waiting, Source}

// Graph is a build as nodes; inputs come before what needs them.
type Graph struct{ Nodes []Node }

// Node is a step.
type Node struct {
	Text   string
	State  State
	Inputs []int // indexes of nodes
}

// Of makes the graph of a build. events, if there are any, tell of a build that
// has not ended what became of its steps so far.
func Of(steps []builds.Step, events func(func(n int, e progress.Event) error) error) (Graph, error) {
	live := map[string]State{}
	if events != nil {
		err := events(func(_ int, e progress.Event) error {
			switch e.Kind {
			case progress.Start:
				live[e.Vertex] = Running
			case progress.Cached:
				live[e.Vertex] = Cached
			case progress.Done:
				live[e.Vertex] = Ran
				if e.Error != "" {
					live[e.Vertex] = Failed
				}
			}
			return nil
		})
		if err != nil {
			return Graph{}, err
		}
	}
	var g Graph
	for i, s := range steps {
		n := Node{Text: progress.Clean(s.Name), State: stateOf(s)}
		if n.State == Waiting && live[s.Vertex] != "" {
			n.State = live[s.Vertex]
		}
		if s.Kind == "local" {
			n.Text = "context"
			if len(s.Parts) > 0 {
				n.Text = progress.Clean(s.Parts[0].Value)
			}
		}
		seen := map[int]bool{}
		for _, in := range s.Inputs {
			if in.Step >= 0 && in.Step < i && !seen[in.Step] {
				seen[in.Step] = true
				n.Inputs = append(n.Inputs, in.Step)
			}
		}
		g.Nodes = append(g.Nodes, n)
	}
	return g, nil
}

func stateOf(s builds.Step) State {
	if s.Kind == "local" || s.Kind == "image" {
		return Source
	}
	switch s.Outcome {
	case builds.Cached:
		return Cached
	case builds.Ran:
		return Ran
	case builds.StepFailed:
		return Failed
	}
	return Waiting
}

// colors are the fills of nodes.
var colors = map[State]string{
	Cached: "#cfe6cf", Ran: "#bcd5f5", Running: "#ddcff7", Failed: "#f5c2c2", Waiting: "#ffffff", Source: "#eeeeee",
}

// DOT draws for Graphviz.
func (g Graph) DOT() string {
	var b strings.Builder
	b.WriteString("digraph build {\n  rankdir=TB;\n  node [shape=box, style=filled, fontname=\"sans-serif\", fontsize=11];\n")
	for i, n := range g.Nodes {
		text := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(short(n.Text))
		fmt.Fprintf(&b, "  n%d [label=\"%s\", fillcolor=\"%s\", tooltip=\"%s\"];\n", i, text, colors[n.State], n.State)
	}
	for i, n := range g.Nodes {
		for _, in := range n.Inputs {
			fmt.Fprintf(&b, "  n%d -> n%d;\n", in, i)
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// Mermaid draws for Mermaid, which Markdown pages of many forges show.
func (g Graph) Mermaid() string {
	var b strings.Builder
	b.WriteString("flowchart TB\n")
	for i, n := range g.Nodes {
		// Mermaid takes entities by their numbers, after a "#".
		text := strings.NewReplacer("&", "#38;", `"`, "#34;", "<", "#60;", ">", "#62;", "#", "#35;", "`", "#96;").Replace(short(n.Text))
		fmt.Fprintf(&b, "  n%d[\"%s\"]:::%s\n", i, text, n.State)
	}
	for i, n := range g.Nodes {
		for _, in := range n.Inputs {
			fmt.Fprintf(&b, "  n%d --> n%d\n", in, i)
		}
	}
	for _, s := range states {
		fmt.Fprintf(&b, "  classDef %s fill:%s,stroke:#555,color:#222\n", s, colors[s])
	}
	return b.String()
}

// maxText is how much of a step's text is drawn, in characters.
const maxText = 60

func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > maxText {
		return string(r[:maxText-1]) + "…"
	}
	return s
}

// Sizes of an SVG, in pixels.
const (
	boxHeight = 28
	gapX      = 24
	gapY      = 46
	margin    = 20
	charWidth = 6.4 // of 11px sans-serif, roughly
)

type box struct{ x, y, width float64 }

// SVG draws a picture: rows of boxes, each below all that it needs.
func (g Graph) SVG() string {
	boxes, width, height := g.layout()
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="11">`+"\n", width, height, width, height)
	b.WriteString(`<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>` + "\n")
	fmt.Fprintf(&b, `<rect width="%.0f" height="%.0f" fill="#fff"/>`+"\n", width, height)
	for i, n := range g.Nodes {
		to := boxes[i]
		for _, in := range n.Inputs {
			from := boxes[in]
			x1, y1, x2, y2 := from.x+from.width/2, from.y+boxHeight, to.x+to.width/2, to.y
			fmt.Fprintf(&b, `<path d="M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f" fill="none" stroke="#555" marker-end="url(#arrow)"/>`+"\n", x1, y1, x1, (y1+y2)/2, x2, (y1+y2)/2, x2, y2)
		}
	}
	for i, n := range g.Nodes {
		x := boxes[i]
		fmt.Fprintf(&b, `<g class="%s"><title>%s (%s)</title><rect x="%.1f" y="%.1f" width="%.1f" height="%d" rx="4" fill="%s" stroke="#555"/><text x="%.1f" y="%.1f" fill="#222">%s</text></g>`+"\n",
			n.State, html.EscapeString(n.Text), n.State, x.x, x.y, x.width, boxHeight, colors[n.State], x.x+8, x.y+18, html.EscapeString(short(n.Text)))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (g Graph) layout() (boxes []box, width, height float64) {
	row := make([]int, len(g.Nodes))
	var used []float64 // width of each row
	boxes = make([]box, len(g.Nodes))
	for i, n := range g.Nodes {
		for _, in := range n.Inputs {
			row[i] = max(row[i], row[in]+1)
		}
		for len(used) <= row[i] {
			used = append(used, margin)
		}
		w := 16 + charWidth*float64(len([]rune(short(n.Text))))
		boxes[i] = box{x: used[row[i]], y: margin + float64(row[i])*(boxHeight+gapY), width: w}
		used[row[i]] += w + gapX
		width = max(width, used[row[i]])
	}
	// Each row in the middle.
	for i := range boxes {
		boxes[i].x += (width - used[row[i]]) / 2
	}
	return boxes, width + margin - gapX, 2*margin + float64(len(used))*(boxHeight+gapY) - gapY
}
