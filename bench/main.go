// Command bench measures strake side by side with BuildKit and buildah on the
// workloads of docs/performance.md: generated, deterministic ones, the same for
// all. Runs are interleaved, a tool at a time, and medians and ratios are printed.
// Client, daemon and steps of a tool are in one control group, which counts
// their processor time and memory.
//
//	go run ./bench -strake ./strake -cases W2,W5a -curves= -n 3
//
// BuildKit takes part if buildkitd and buildctl are on PATH (or -peers names
// their directory), buildah if it is. The bases come from a registry that bench
// runs itself (docker-registry); nothing is fetched from outside. It needs root.
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

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/bench/imagetree"
	"github.com/strake-build/strake/internal/distribution"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do := run
	if len(os.Args) > 1 && os.Args[1] == floorCommand {
		do = func(ctx context.Context) error { return runFloor(ctx, os.Args[2:]) }
	}
	if err := do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	strake := flag.String("strake", "strake", "strake's program")
	peers := flag.String("peers", "", "directory of buildkitd and buildctl")
	names := flag.String("cases", "all", "cases to run, by comma; none if empty")
	curveNames := flag.String("curves", "all", "curves of cost against size, by comma; none if empty")
	full := flag.Bool("full", false, "curves up to their largest sizes (100k files, 4 GiB, 1000 steps)")
	tools := flag.String("tools", "strake,buildkit,buildah", "tools to run")
	n := flag.Int("n", 3, "runs of each case and tool")
	enough := flag.Duration("enough", 0, "a tool runs a case no more once its runs have taken this long; 0: n times whatever they take")
	work := flag.String("work", "", "working directory (default: a new one that is removed)")
	doc := flag.String("doc", "", "document whose tables are replaced, and beside which pictures are drawn")
	check := flag.Bool("check", false, "compare the images that the tools made, once a case")
	syncs := flag.Bool("syncs", false, "count what forces data to the disk, in one more run under strace")
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
		abs, err := filepath.Abs(*peers)
		if err != nil {
			return err
		}
		os.Setenv("PATH", abs+":"+os.Getenv("PATH"))
	}
	program, err := filepath.Abs(*strake)
	if err != nil {
		return err
	}
	b := &bench{dir: dir, enough: *enough, verbose: *verbose, check: *check, syncs: *syncs}
	var stop func()
	if b.registry, stop, err = distribution.Start(filepath.Join(dir, "registry")); err != nil {
		return err
	}
	defer stop()
	for _, name := range strings.Split(*tools, ",") {
		if t := newTool(b, name, program); t != nil {
			b.tools = append(b.tools, t)
		} else {
			fmt.Fprintf(os.Stderr, "bench: %s is not here: left out\n", name)
		}
	}

	chosen, err := choose(cases, *names, func(c benchCase) string { return c.name })
	if err != nil {
		return err
	}
	chosenCurves, err := choose(curves, *curveNames, func(c benchCurve) string { return c.name })
	if err != nil {
		return err
	}
	// An interrupt ends the measuring, and what there is is reported.
	var rows []row
	for _, c := range chosen {
		r, err := b.measure(ctx, c, *n)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if len(rows) == 0 {
			fmt.Print(timesHead(b.toolNames()))
		}
		fmt.Print(r.times(b.toolNames()))
		rows = append(rows, r)
	}
	if len(rows) > 0 {
		fmt.Print("\n", resources(rows))
	}
	var graphs []graph
	for _, c := range chosenCurves {
		g, err := b.curve(ctx, c, *full, *n)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Print("\n", g.table())
		graphs = append(graphs, g)
	}
	if b.differ > 0 {
		return fmt.Errorf("in %d cases the images of the tools differ", b.differ)
	}
	if *doc == "" {
		return nil
	}
	return writeReport(*doc, b.toolNames(), rows, graphs)
}

// choose returns what a list by comma names, in its order; all for "all".
func choose[T any](from []T, list string, name func(T) string) ([]T, error) {
	if list == "all" {
		return from, nil
	}
	var chosen []T
	for want := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(from, func(t T) bool { return name(t) == want })
		if i < 0 && want != "" {
			return nil, fmt.Errorf("no case or curve %q", want)
		}
		if i >= 0 {
			chosen = append(chosen, from[i])
		}
	}
	return chosen, nil
}

// bench is one run of this program.
type bench struct {
	dir                   string
	registry              string // host:port
	tools                 []tool
	enough                time.Duration // of one case and tool; 0: no bound
	verbose, check, syncs bool
	groups                int // made so far
	differ                int // cases in which images differ
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
	cpu  time.Duration // of all processes, the daemon's too
	peak int64         // bytes, all processes together
	disk int64         // bytes of the tool's store
	size int64         // bytes of the image's compressed layers, where it was delivered
}

// measure runs a case n times with each tool in turn.
func (b *bench) measure(ctx context.Context, c benchCase, n int) (r row, err error) {
	r = row{benchCase: c, samples: map[string][]sample{}, syncs: map[string]int{}}
	images := map[string]*imagetree.Image{}
	for i := range n {
		for _, t := range b.tools {
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
			if b.enough > 0 && total(r.samples[t.name()]) > b.enough {
				continue
			}
			s, img, err := b.once(ctx, c, t, i, b.check && i == 0)
			if err != nil {
				fmt.Fprintf(os.Stderr, "bench: %s: %s: %v\n", c.name, t.name(), err)
				continue
			}
			r.samples[t.name()] = append(r.samples[t.name()], s...)
			if img != nil {
				images[t.name()] = img
			}
		}
	}
	if r.floor, err = b.measureFloor(ctx, c, n); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s: floor: %v\n", c.name, err)
	}
	if ours, theirs := images["strake"], images["buildkit"]; ours != nil && theirs != nil {
		if diff := gocmp.Diff(theirs, ours); diff != "" {
			b.differ++
			fmt.Fprintf(os.Stderr, "bench: %s: the images differ (-buildkit +strake)\n%.3000s\n", c.name, diff)
		}
	}
	for _, t := range b.tools {
		if !b.syncs || ctx.Err() != nil {
			break
		}
		n, err := b.countSyncs(ctx, c, t)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %s under strace: %v\n", c.name, t.name(), err)
			continue
		}
		r.syncs[t.name()] = n
	}
	return r, nil
}

// total is how long runs have taken together.
func total(s []sample) (sum time.Duration) {
	for _, one := range s {
		sum += one.wall
	}
	return sum
}

func median(s []sample) sample {
	if len(s) == 0 {
		return sample{}
	}
	s = slices.SortedFunc(slices.Values(s), func(a, b sample) int { return cmp.Compare(a.wall, b.wall) })
	return s[len(s)/2]
}

// newGroup makes a control group of a name of its own.
func (b *bench) newGroup() (*group, error) {
	b.groups++
	return newGroup(fmt.Sprintf("strakebench-%d-%d", os.Getpid(), b.groups))
}

// workspace makes a fresh store and context, and what comes before the clock
// starts. The function returned takes all away.
func (b *bench) workspace(ctx context.Context, c benchCase, t tool, i int, trace bool) (_ *workspace, _ func(), err error) {
	dir, err := os.MkdirTemp(b.dir, fmt.Sprintf("%s-%s-", c.name, t.name()))
	if err != nil {
		return nil, nil, err
	}
	undo := []func(){func() { os.RemoveAll(dir) }}
	clean := func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	defer func() {
		if err != nil {
			clean()
		}
	}()
	w := &workspace{b: b, tool: t, context: filepath.Join(dir, "context"), root: filepath.Join(dir, "root"), out: filepath.Join(dir, "out"), run: i, slots: c.slots}
	if trace {
		w.trace = filepath.Join(dir, "trace")
	}
	for _, d := range []string{w.context, w.root, w.out} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, nil, err
		}
	}
	if w.group, err = b.newGroup(); err != nil {
		return nil, nil, fmt.Errorf("control group: %w", err)
	}
	undo = append(undo, func() {
		if err := w.group.close(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	})
	if err := t.start(ctx, w); err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() { t.stop(w) })
	if err := c.prepare(ctx, w); err != nil {
		return nil, nil, err
	}
	syscall.Sync()
	return w, clean, nil
}

// once measures a build in a workspace of its own, c.repeat times if that is
// set; it reads the image, too, if it is to be compared.
func (b *bench) once(ctx context.Context, c benchCase, t tool, i int, compare bool) ([]sample, *imagetree.Image, error) {
	w, clean, err := b.workspace(ctx, c, t, i, false)
	if err != nil {
		return nil, nil, err
	}
	defer clean()
	r := c.request(w)
	var samples []sample
	for range max(1, c.repeat) {
		cpu, peak := w.group.cpuTime(), w.group.watch()
		start := time.Now()
		err := w.build(ctx, r)
		s := sample{wall: time.Since(start), peak: peak(), cpu: w.group.cpuTime() - cpu}
		if err != nil {
			return nil, nil, err
		}
		samples = append(samples, s)
	}
	disk, size := diskUsage(w.root), w.size(r)
	for i := range samples {
		samples[i].disk, samples[i].size = disk, size
	}
	if !compare {
		return samples, nil, nil
	}
	img, err := w.image(ctx, r)
	return samples, img, err
}

// countSyncs counts the calls that force data to the disk in the measured build.
func (b *bench) countSyncs(ctx context.Context, c benchCase, t tool) (int, error) {
	w, clean, err := b.workspace(ctx, c, t, 0, true)
	if err != nil {
		return 0, err
	}
	defer clean()
	before, err := w.syncCalls()
	if err != nil {
		return 0, err
	}
	if err := w.build(ctx, c.request(w)); err != nil {
		return 0, err
	}
	after, err := w.syncCalls()
	return after - before, err
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
