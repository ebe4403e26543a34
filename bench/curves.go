package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// benchCurve is a workload of which the cost is measured against its size.
type benchCurve struct {
	name, work, unit string
	sizes            []int
	reduced          int // how many of the sizes are measured unless all are wanted
	at               func(size int) benchCase
}

var curves = []benchCurve{
	{"files-cold", "COPY of files of 4 kB, cold", "files", []int{1000, 10000, 100000}, 2, func(n int) benchCase {
		return benchCase{prepare: copyFiles(n, nil), request: output("oci", "")}
	}},
	{"files-unchanged", "the same again, unchanged", "files", []int{1000, 10000, 100000}, 2, func(n int) benchCase {
		return benchCase{prepare: copyFiles(n, func(ctx context.Context, w *workspace) error {
			return w.again(ctx, request{output: "oci"})
		}), request: output("oci", "")}
	}},
	{"files-one-changed", "the same after one file changed", "files", []int{1000, 10000, 100000}, 2, func(n int) benchCase {
		return benchCase{prepare: copyFiles(n, func(ctx context.Context, w *workspace) error {
			if err := w.again(ctx, request{output: "oci"}); err != nil {
				return err
			}
			return w.changeFile()
		}), request: output("oci", "")}
	}},
	{"layer", "RUN writes a layer, OCI archive", "MiB", []int{10, 100, 1024, 4096}, 2, func(n int) benchCase {
		return benchCase{prepare: layerOf(n, nil), request: output("oci", "")}
	}},
	{"layer-changed", "the same layer packed again after 1 MB of it changed", "MiB", []int{10, 100, 1024, 4096}, 2, func(n int) benchCase {
		return benchCase{prepare: layerOf(n, w4Changed), request: output("oci", "")}
	}},
	{"steps", "small RUN steps in a row", "steps", []int{1, 10, 100, 1000}, 3, func(n int) benchCase {
		return benchCase{prepare: runs(n, false), request: local}
	}},
	{"steps-cached", "the same again, cached", "steps", []int{1, 10, 100, 1000}, 3, func(n int) benchCase {
		return benchCase{prepare: runs(n, true), request: local, repeat: 3}
	}},
	{"slots", "16 stages that compute for a second each", "slots", []int{1, 2, 4, 8, 16}, 3, func(n int) benchCase {
		return benchCase{prepare: func(ctx context.Context, w *workspace) error {
			return w.stages(ctx, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
		}, request: local, slots: n}
	}},
}

// graph is what was measured of a curve.
type graph struct {
	benchCurve
	tools  []string
	points map[string][]point
}

type point struct {
	size    int
	seconds float64
}

func (b *bench) curve(ctx context.Context, c benchCurve, full bool, n int) (graph, error) {
	g := graph{benchCurve: c, points: map[string][]point{}}
	for _, t := range b.toolNames() {
		if t != "buildah" { // which costs ten times the time, to no purpose
			g.tools = append(g.tools, t)
		}
	}
	sizes := c.sizes
	if !full {
		sizes = sizes[:c.reduced]
	}
	for _, size := range sizes {
		one := c.at(size)
		one.name = fmt.Sprintf("%s-%d", c.name, size)
		for i := range n {
			for _, t := range b.tools {
				if t.name() == "buildah" {
					continue
				}
				if ctx.Err() != nil {
					return g, context.Cause(ctx)
				}
				s, _, err := b.once(ctx, one, t, i, false)
				if err != nil {
					fmt.Fprintf(os.Stderr, "bench: %s: %s: %v\n", one.name, t.name(), err)
					continue
				}
				g.add(t.name(), size, s)
			}
		}
	}
	return g, nil
}

// add keeps the best time of a size: a curve shows cost, and others' noise only
// adds to it.
func (g graph) add(tool string, size int, samples []sample) {
	seconds := median(samples).wall.Seconds()
	pts := g.points[tool]
	if len(pts) > 0 && pts[len(pts)-1].size == size {
		pts[len(pts)-1].seconds = min(pts[len(pts)-1].seconds, seconds)
		return
	}
	g.points[tool] = append(pts, point{size, seconds})
}

func (g graph) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| %s: %s | %s s |\n|---|%s\n", g.work, g.unit, strings.Join(g.tools, " s | "), strings.Repeat("---|", len(g.tools)))
	rows := map[int]map[string]float64{}
	for t, pts := range g.points {
		for _, p := range pts {
			if rows[p.size] == nil {
				rows[p.size] = map[string]float64{}
			}
			rows[p.size][t] = p.seconds
		}
	}
	for _, size := range g.sizes {
		if rows[size] == nil {
			continue
		}
		fmt.Fprintf(&b, "| %d |", size)
		for _, t := range g.tools {
			fmt.Fprintf(&b, " %.3f |", rows[size][t])
		}
		b.WriteString("\n")
	}
	return b.String()
}

func copyFiles(n int, then func(context.Context, *workspace) error) func(context.Context, *workspace) error {
	return func(ctx context.Context, w *workspace) error {
		if err := w.files(n, 4000); err != nil {
			return err
		}
		if err := w.dockerfile("FROM %s\nCOPY . /src/\n", w.mustBase("busybox", busybox)); err != nil {
			return err
		}
		if then != nil {
			return then(ctx, w)
		}
		return nil
	}
}

// changeFile changes one file of the context.
func (w *workspace) changeFile() error {
	return os.WriteFile(filepath.Join(w.context, "d0", "f0"), []byte(fmt.Sprint("changed ", w.run)), 0o644)
}

// layerOf is a RUN step that writes so many MiB; others in each run, so that no
// registry has them yet.
func layerOf(mib int, then func(string) func(context.Context, *workspace) error) func(context.Context, *workspace) error {
	return func(ctx context.Context, w *workspace) error {
		text := fmt.Sprintf("FROM %%s\nRUN gen /data %d 1 %d\n", mib, w.run)
		if err := w.dockerfile(text, w.mustBase("gen", busybox, w.generator)); err != nil {
			return err
		}
		if then != nil {
			return then(fmt.Sprintf("FROM %%s\nRUN gen /data %d 2 %d\n", mib, w.run))(ctx, w)
		}
		return w.warmBase(ctx)()
	}
}

// runs is a row of small RUN steps.
func runs(n int, cached bool) func(context.Context, *workspace) error {
	return func(ctx context.Context, w *workspace) error {
		var df strings.Builder
		df.WriteString("FROM %s\n")
		for i := range n {
			fmt.Fprintf(&df, "RUN echo %d > /f%d\n", i, i)
		}
		then := w.warmBase(ctx)
		if cached {
			then = func() error { return w.again(ctx, request{}) }
		}
		return w.dockerfile(df.String(), w.mustBase("busybox", busybox), then)
	}
}

// stages are 16 stages that run a command, and a last one with a file of each.
func (w *workspace) stages(ctx context.Context, command string) error {
	base := w.mustBase("busybox", busybox)
	var df strings.Builder
	for i := range 16 {
		fmt.Fprintf(&df, "FROM %s AS s%d\nRUN %s; echo %d > /out%d\n", base, i, command, i, i)
	}
	fmt.Fprintf(&df, "FROM %s\n", base)
	for i := range 16 {
		fmt.Fprintf(&df, "COPY --from=s%d /out%d /\n", i, i)
	}
	return w.dockerfile("%s", df.String(), w.warmBase(ctx))
}
