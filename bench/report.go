package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// row is what was measured of a case.
type row struct {
	benchCase
	samples map[string][]sample // by tool
	syncs   map[string]int      // by tool; empty if not counted
	floor   time.Duration       // 0 if not known
}

// ratio is strake's time by BuildKit's, 0 if one of them is missing.
func (r row) ratio() float64 {
	ours, theirs := median(r.samples["strake"]), median(r.samples["buildkit"])
	if ours.wall == 0 || theirs.wall == 0 {
		return 0
	}
	return ours.wall.Seconds() / theirs.wall.Seconds()
}

func timesHead(tools []string) string {
	return "| case | work | " + strings.Join(tools, " s | ") + " s | floor s | × BuildKit | goal |\n|---|---|" + strings.Repeat("---|", len(tools)+3) + "\n"
}

func (r row) times(tools []string) string {
	cells := []string{r.name, r.work}
	for _, t := range tools {
		cells = append(cells, seconds(r.samples[t]))
	}
	least := "–"
	if r.floor > 0 {
		least = fmt.Sprintf("%.3f (%s)", r.floor.Seconds(), floors[r.name].what)
	}
	ratio := "–"
	if x := r.ratio(); x > 0 {
		ratio = fmt.Sprintf("%.3f", x)
	}
	return "| " + strings.Join(append(cells, least, ratio, r.goal), " | ") + " |\n"
}

func seconds(s []sample) string {
	if len(s) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3f", median(s).wall.Seconds())
}

// resources is the table of what else was spent: "strake / buildkit" in each
// column.
func resources(rows []row) string {
	var b strings.Builder
	b.WriteString("| case | processor s | peak memory MiB | store MiB | image MiB | forced writes |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		pair := func(of func(sample) string) string {
			var both []string
			for _, t := range []string{"strake", "buildkit"} {
				if len(r.samples[t]) == 0 {
					both = append(both, "–")
					continue
				}
				both = append(both, of(median(r.samples[t])))
			}
			return strings.Join(both, " / ")
		}
		mib := func(n int64) string {
			if n == 0 {
				return "–"
			}
			return fmt.Sprintf("%.0f", float64(n)/(1<<20))
		}
		syncs := func(tool string) string {
			if n, ok := r.syncs[tool]; ok {
				return fmt.Sprint(n)
			}
			return "–"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s / %s |\n", r.name,
			pair(func(s sample) string { return fmt.Sprintf("%.2f", s.cpu.Seconds()) }),
			pair(func(s sample) string { return mib(s.peak) }),
			pair(func(s sample) string { return mib(s.disk) }),
			pair(func(s sample) string { return mib(s.size) }),
			syncs("strake"), syncs("buildkit"))
	}
	return b.String()
}

const (
	beginMark = "<!-- what follows is written by make bench -->\n"
	endMark   = "<!-- end of what make bench writes -->\n"
)

// writeReport replaces the measured part of a document and draws the pictures
// beside it, in a directory of its name.
func writeReport(doc string, tools []string, rows []row, graphs []graph) error {
	text, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return fmt.Errorf("%s: the marks between which the tables go are missing", doc)
	}
	pictures := strings.TrimSuffix(doc, filepath.Ext(doc))
	if err := os.MkdirAll(pictures, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "\nMeasured on %s: %s/%s, %d processors, %s.\n", time.Now().UTC().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), kernel())
	draw := func(name, svg string) error {
		fmt.Fprintf(&b, "\n![%s](%s/%s.svg)\n", name, filepath.Base(pictures), name)
		return os.WriteFile(filepath.Join(pictures, name+".svg"), []byte(svg), 0o644)
	}
	if len(rows) > 0 {
		b.WriteString("\n" + timesHead(tools))
		for _, r := range rows {
			b.WriteString(r.times(tools))
		}
		b.WriteString("\nWhat else was spent, strake / BuildKit:\n\n" + resources(rows))
		if err := draw("cases", bars(rows, tools)); err != nil {
			return err
		}
	}
	for _, g := range graphs {
		b.WriteString("\n" + g.table())
		if err := draw(g.name, g.svg()); err != nil {
			return err
		}
	}
	b.WriteString("\n")
	out := append(append(append([]byte{}, before...), beginMark...), b.Bytes()...)
	return os.WriteFile(doc, append(append(out, endMark...), after...), 0o644)
}

func kernel() string {
	data, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "Linux"
	}
	return "Linux " + strings.TrimSpace(string(data))
}
