package builder

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/builder/sandbox/disorder"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// A DifferenceError tells that a step gave two results.
type DifferenceError struct {
	Step *plan.Step
	Path string // the first file, relative to the root
	What string // what is different about it
}

func (e *DifferenceError) Error() string {
	return fmt.Sprintf("not reproducible: built again, /%s is different: %s", e.Path, e.What)
}

// Verify builds what was built by r once more and compares step by step. Nothing
// of the second build is recorded, and nothing stored is used by it but base
// images, cache mounts and what was downloaded. Its steps run at another time, at
// least a second later, on one processor if there are several, and list directories in
// another order. The error is a *DifferenceError for the first step, in
// the order of the build file, whose results differ.
func (b *Builder) Verify(ctx context.Context, r Request) error {
	begin := time.Now()
	r.CacheTo, r.BuildKitTo, r.Record = nil, nil, nil
	report := r.Progress
	first := r
	first.NoCache, first.stored, first.Progress = false, true, nil
	was, err := b.Build(ctx, first)
	if err != nil {
		return err
	}
	select {
	case <-time.After(time.Until(begin.Add(1100 * time.Millisecond))):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	restore := oneProcessor()
	defer restore()
	r.CacheFrom, r.BuildKitFrom, r.NoCache, r.verify = nil, nil, true, true
	if report != nil {
		r.Progress = func(e progress.Event) {
			if e.Name != "" {
				e.Name = "[verify] " + e.Name
			}
			report(e)
		}
	}
	is, err := b.build(ctx, r)
	if err != nil {
		return err
	}
	seen := map[*plan.Step]bool{}
	for i, t := range r.Build.Targets {
		c := comparison{b: b, was: was[i], is: is[i], seen: seen}
		if err := c.step(ctx, t.Step); err != nil {
			return err
		}
	}
	return nil
}

// oneProcessor makes this process, and those that it starts, run on one
// processor, until restore is called.
func oneProcessor() (restore func()) {
	var all unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil || all.Count() < 2 {
		return func() {}
	}
	var one unix.CPUSet
	for cpu := range len(all) * strconv.IntSize {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	procs := runtime.GOMAXPROCS(1)
	setAffinity(&one)
	return func() {
		setAffinity(&all)
		runtime.GOMAXPROCS(procs)
	}
}

// setAffinity is for all threads. New ones have that of the one that made them.
func setAffinity(set *unix.CPUSet) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.SchedSetaffinity(tid, set) // the thread may have ended
		}
	}
}

// disordered makes the process of a step list directories in another order.
func (e *execution) disordered() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	if !disorder.Static(self) {
		e.bd.event(e.v, progress.Event{Kind: progress.Warning, Text: "directories are listed in their usual order: strake is linked dynamically and can't run in the step (build it with CGO_ENABLED=0)"})
		return nil
	}
	e.config.Args = append([]string{disorder.Path}, e.config.Args...)
	e.config.Mounts = append(e.config.Mounts, bindMount(self, disorder.Path, true))
	return nil
}

type comparison struct {
	b       *Builder
	was, is Result
	seen    map[*plan.Step]bool
}

// step compares a step's inputs, and then its own results: the layers that it
// put on top.
func (c *comparison) step(ctx context.Context, s *plan.Step) error {
	if s == nil || c.seen[s] {
		return nil
	}
	c.seen[s] = true
	for _, in := range s.Inputs {
		if err := c.step(ctx, in.Step); err != nil {
			return err
		}
	}
	switch s.Op.(type) {
	case *plan.Exec, *plan.File, *plan.HTTP, *plan.Git:
	default:
		return nil
	}
	was, is := c.was.Fact(s).Outputs, c.is.Fact(s).Outputs
	if was == nil || is == nil {
		return nil // nobody needed it
	}
	for i := range min(len(was), len(is)) {
		if len(was[i]) == 0 || len(is[i]) == 0 {
			continue
		}
		a, z := was[i][len(was[i])-1], is[i][len(is[i])-1]
		path, what, err := c.layers(ctx, a, z)
		if err != nil {
			return err
		}
		if what != "" {
			return &DifferenceError{Step: s, Path: path, What: what}
		}
	}
	return nil
}

// layers returns the first path where two layers differ, and in what.
func (c *comparison) layers(ctx context.Context, a, b layers.ID) (path, what string, err error) {
	if a == b {
		return "", "", nil
	}
	nextA, stopA := iter.Pull2(c.b.Layers.Entries(ctx, a, c.was.Sources))
	defer stopA()
	nextB, stopB := iter.Pull2(c.b.Layers.Entries(ctx, b, c.is.Sources))
	defer stopB()
	for {
		x, errA, okA := nextA()
		y, errB, okB := nextB()
		switch {
		case errA != nil:
			return "", "", errA
		case errB != nil:
			return "", "", errB
		case !okA && !okB:
			return "", "", nil
		case !okB || okA && layers.ComparePaths(x.Path, y.Path) < 0:
			return x.Path, "it is not there the second time", nil
		case !okA || x.Path != y.Path:
			return y.Path, "it was not there the first time", nil
		}
		if what, err = c.entries(ctx, a, x, b, y); what != "" || err != nil {
			return x.Path, what, err
		}
	}
}

func (c *comparison) entries(ctx context.Context, a layers.ID, x layers.Entry, b layers.ID, y layers.Entry) (string, error) {
	pair := func(what string, x, y any) string { return fmt.Sprintf("its %s is %v and %v", what, x, y) }
	switch {
	case x.Type != y.Type || x.Opaque != y.Opaque:
		return pair("type", string(x.Type), string(y.Type)), nil
	case x.Mode != y.Mode:
		return pair("mode", fmt.Sprintf("%04o", x.Mode), fmt.Sprintf("%04o", y.Mode)), nil
	case x.UID != y.UID || x.GID != y.GID:
		return pair("owner", fmt.Sprintf("%d:%d", x.UID, x.GID), fmt.Sprintf("%d:%d", y.UID, y.GID)), nil
	case x.Link != y.Link:
		return pair("target", x.Link, y.Link), nil
	case x.Major != y.Major || x.Minor != y.Minor:
		return pair("device", fmt.Sprint(x.Major, ":", x.Minor), fmt.Sprint(y.Major, ":", y.Minor)), nil
	case fmt.Sprint(x.Xattrs) != fmt.Sprint(y.Xattrs):
		return "its extended attributes", nil
	case x.Type != layers.Regular || x.Digest != "" && x.Digest == y.Digest:
		return "", nil
	}
	r, err := c.b.Layers.OpenEntry(ctx, a, x, c.was.Sources)
	if err != nil {
		return "", err
	}
	defer r.Close()
	s, err := c.b.Layers.OpenEntry(ctx, b, y, c.is.Sources)
	if err != nil {
		return "", err
	}
	defer s.Close()
	return contents(r, s)
}

// contents tells where two streams differ; "" if they don't.
func contents(a, b io.Reader) (string, error) {
	x, y := bufio.NewReaderSize(a, 64<<10), bufio.NewReaderSize(b, 64<<10)
	offset, line := 0, 1
	for {
		p, errP := x.ReadSlice('\n')
		q, errQ := y.ReadSlice('\n')
		for _, err := range []error{errP, errQ} {
			if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
				return "", err
			}
		}
		if !bytes.Equal(p, q) {
			n := 0
			for n < min(len(p), len(q)) && p[n] == q[n] {
				n++
			}
			if printable(p) && printable(q) {
				return fmt.Sprintf("line %d is %q and %q", line, shown(p, n), shown(q, n)), nil
			}
			return fmt.Sprintf("its contents, from byte %d", offset+n+1), nil
		}
		offset += len(p)
		if len(p) == 0 {
			return "", nil
		}
		if errP == nil {
			line++
		}
	}
}

func printable(b []byte) bool {
	return !strings.ContainsFunc(string(b), func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) && !unicode.IsSpace(r) })
}

// shown is the part of a line around n.
func shown(line []byte, n int) string {
	const width = 60
	s := strings.ToValidUTF8(string(bytes.TrimRight(line, "\n")[min(max(0, n-width/2), len(bytes.TrimRight(line, "\n"))):]), "")
	if len(s) > width {
		s = strings.ToValidUTF8(s[:width], "") + "…"
	}
	return s
}
