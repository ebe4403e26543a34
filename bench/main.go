// Command bench measures strake side by side with BuildKit and buildah on the
// workloads of docs/performance.md: generated, deterministic ones, the same for
// all. Runs are interleaved, a tool at a time, and medians and ratios are printed.
//
//	go run ./bench -strake ./strake -cases W2,W5a -n 3
//
// BuildKit takes part if buildkitd and buildctl are on PATH (or -peers names
// their directory), buildah if it is. The bases come from a registry that bench
// runs itself; nothing is fetched from outside.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	strake := flag.String("strake", "strake", "strake's program")
	peers := flag.String("peers", "", "directory of buildkitd and buildctl")
	names := flag.String("cases", "", "cases to run, by comma (default: all)")
	tools := flag.String("tools", "strake,buildkit,buildah", "tools to run")
	n := flag.Int("n", 3, "runs of each case and tool")
	work := flag.String("work", "", "working directory (default: a new one that is removed)")
	verbose := flag.Bool("v", false, "show what the tools print")
	flag.Parse()

	dir := *work
	if dir == "" {
		tmp, err := os.MkdirTemp("", "strake-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	if *peers != "" {
		os.Setenv("PATH", *peers+":"+os.Getenv("PATH"))
	}
	program, err := filepath.Abs(*strake)
	if err != nil {
		return err
	}
	b := &bench{dir: dir, verbose: *verbose}
	if err := b.startRegistry(); err != nil {
		return err
	}
	for _, name := range strings.Split(*tools, ",") {
		if t := newTool(b, name, program); t != nil {
			b.tools = append(b.tools, t)
		} else {
			fmt.Fprintf(os.Stderr, "bench: %s is not here: left out\n", name)
		}
	}
	fmt.Println("| case | work |", strings.Join(b.toolNames(), " s | "), "s | ratio to buildkit | strake peak MiB | store MiB |")
	fmt.Println("|---|---|" + strings.Repeat("---|", len(b.tools)+3))
	for _, c := range cases {
		if *names != "" && !slices.Contains(strings.Split(*names, ","), c.name) {
			continue
		}
		if err := b.measure(ctx, c, *n); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// bench is one run of this program.
type bench struct {
	dir      string
	registry string // host:port
	tools    []tool
	verbose  bool
}

func (b *bench) toolNames() []string {
	var names []string
	for _, t := range b.tools {
		names = append(names, t.name())
	}
	return names
}

// sample is one run of one tool.
type sample struct {
	wall time.Duration
	peak int64 // bytes, largest process
	disk int64 // bytes of the tool's store
}

// measure runs a case n times with each tool in turn and prints its row.
func (b *bench) measure(ctx context.Context, c benchCase, n int) error {
	samples := map[string][]sample{}
	for i := range n {
		for _, t := range b.tools {
			s, err := b.once(ctx, c, t, i)
			if err != nil {
				fmt.Fprintf(os.Stderr, "bench: %s: %s: %v\n", c.name, t.name(), err)
				continue
			}
			samples[t.name()] = append(samples[t.name()], s)
		}
	}
	row := []string{c.name, c.work}
	for _, t := range b.tools {
		row = append(row, seconds(samples[t.name()]))
	}
	ours, theirs := median(samples["strake"]), median(samples["buildkit"])
	ratio := "-"
	if ours.wall > 0 && theirs.wall > 0 {
		ratio = fmt.Sprintf("%.3f", ours.wall.Seconds()/theirs.wall.Seconds())
	}
	row = append(row, ratio, fmt.Sprint(ours.peak>>20), fmt.Sprint(ours.disk>>20))
	fmt.Println("| " + strings.Join(row, " | ") + " |")
	return nil
}

func seconds(s []sample) string {
	if len(s) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", median(s).wall.Seconds())
}

func median(s []sample) sample {
	if len(s) == 0 {
		return sample{}
	}
	s = slices.SortedFunc(slices.Values(s), func(a, b sample) int { return cmp.Compare(a.wall, b.wall) })
	return s[len(s)/2]
}

// once prepares a fresh store and context, runs what comes before the clock
// starts, and measures the build.
func (b *bench) once(ctx context.Context, c benchCase, t tool, i int) (sample, error) {
	dir, err := os.MkdirTemp(b.dir, fmt.Sprintf("%s-%s-", c.name, t.name()))
	if err != nil {
		return sample{}, err
	}
	defer os.RemoveAll(dir)
	w := &workspace{b: b, tool: t, context: filepath.Join(dir, "context"), root: filepath.Join(dir, "root"), out: filepath.Join(dir, "out"), run: i}
	for _, d := range []string{w.context, w.root, w.out} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return sample{}, err
		}
	}
	if err := t.start(ctx, w); err != nil {
		return sample{}, err
	}
	defer t.stop(w)
	if err := c.prepare(ctx, w); err != nil {
		return sample{}, err
	}
	syscall.Sync()
	start := time.Now()
	peak, err := w.build(ctx, c.request(w))
	if err != nil {
		return sample{}, err
	}
	return sample{wall: time.Since(start), peak: peak, disk: diskUsage(w.root)}, nil
}

// diskUsage is the bytes that files below dir take, each once.
func diskUsage(dir string) int64 {
	var total int64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !seen[st.Ino] {
			seen[st.Ino] = true
			total += st.Blocks * 512
		}
		return nil
	})
	return total
}
