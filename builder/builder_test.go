package builder_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state"
)

// scripted is a runner whose processes are little scripts that work on the
// root directory itself: no root, no namespaces.
type scripted struct {
	mu  sync.Mutex
	ran []string
	// block holds up steps of this name until the channel is closed.
	block map[string]chan struct{}
}

func (*scripted) Name() string { return "scripted" }

// Run understands "write PATH TEXT", "append PATH TEXT", "need PATH", "fail"
// and "echo TEXT", one after the other, separated by ";".
func (r *scripted) Run(ctx context.Context, p sandbox.Process) (int, error) {
	script := p.Spec.Process.Args[len(p.Spec.Process.Args)-1]
	r.mu.Lock()
	r.ran = append(r.ran, script)
	block := r.block[script]
	r.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	for command := range strings.SplitSeq(script, ";") {
		f := strings.Fields(command)
		if len(f) > 1 && f[0] != "echo" {
			f[1] = filepath.Join(p.Root.Bind, f[1])
		}
		var err error
		switch f[0] {
		case "write":
			err = errors.Join(os.MkdirAll(filepath.Dir(f[1]), 0o755), os.WriteFile(f[1], []byte(f[2]), 0o644))
		case "append":
			var data []byte
			data, err = os.ReadFile(f[1])
			err = errors.Join(err, os.WriteFile(f[1], append(data, f[2]...), 0o644))
		case "need":
			_, err = os.Stat(f[1])
		case "echo":
			fmt.Fprintln(p.Stdout, strings.Join(f[1:], " "))
		case "fail":
			return 3, nil
		default:
			err = fmt.Errorf("unknown command %q", f[0])
		}
		if err != nil {
			fmt.Fprintln(p.Stderr, err)
			return 1, nil
		}
	}
	return 0, nil
}

// take returns the scripts that ran since the last call, sorted.
func (r *scripted) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ran := slices.Sorted(slices.Values(r.ran))
	r.ran = nil
	return ran
}

// fixture is a builder on a store, and a context.
type fixture struct {
	t       testing.TB
	b       *builder.Builder
	runner  *scripted
	context string

	mu     sync.Mutex
	events []progress.Event
}

func newFixture(t testing.TB, files map[string]string) *fixture {
	t.Helper()
	root, err := state.Open(filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	f := &fixture{t: t, runner: &scripted{block: map[string]chan struct{}{}}, context: t.TempDir()}
	f.b = openBuilder(t, root, f.runner)
	f.write(files)
	return f
}

func openBuilder(t testing.TB, root *state.Root, runner sandbox.Runner) *builder.Builder {
	t.Helper()
	snapshots, err := snapshot.Open(root, snapshot.Options{Driver: &copydir.Driver{}, RecordOwners: true, UserXattr: true})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := blob.Open(root.Path("blobs"), root.TempFile)
	if err != nil {
		t.Fatal(err)
	}
	results, err := cache.Open(root, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { results.Close() })
	index, err := source.OpenIndex(root.Path("index"))
	if err != nil {
		t.Fatal(err)
	}
	return &builder.Builder{Root: root, Layers: snapshots, Blobs: blobs, Cache: results, Index: index, Runner: runner}
}

func (f *fixture) write(files map[string]string) {
	f.t.Helper()
	for name, text := range files {
		p := filepath.Join(f.context, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fixture) plan(dockerfile string, o parser.Options) *plan.Build {
	f.t.Helper()
	file, err := parser.Parse("Dockerfile", []byte(dockerfile))
	if err != nil {
		f.t.Fatal(err)
	}
	o.BuildPlatform = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	o.Network = plan.NetworkNone
	build, err := file.Plan(f.t.Context(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return build
}

func (f *fixture) build(ctx context.Context, p *plan.Build) ([]builder.Result, error) {
	f.t.Helper()
	dir, err := source.OpenDir(f.context, source.DirOptions{Index: f.b.Index})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { dir.Close() })
	return f.b.Build(ctx, builder.Request{Build: p, Locals: map[string]builder.Local{"context": {Dir: dir}}, Progress: func(e progress.Event) {
		f.mu.Lock()
		f.events = append(f.events, e)
		f.mu.Unlock()
	}})
}

// mustBuild builds a Dockerfile and returns its files and the scripts that ran.
func (f *fixture) mustBuild(dockerfile string, o parser.Options) (files map[string]string, ran []string) {
	f.t.Helper()
	results, err := f.build(f.t.Context(), f.plan(dockerfile, o))
	if err != nil {
		f.t.Fatal(err)
	}
	return f.files(results[0]), f.runner.take()
}

func (f *fixture) files(r builder.Result) map[string]string {
	f.t.Helper()
	files := map[string]string{}
	view, err := f.b.Layers.View(f.t.Context(), r.Tree, r.Sources)
	if err != nil {
		f.t.Fatal(err)
	}
	var walk func(string)
	walk = func(dir string) {
		entries, err := view.ReadDir(dir)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, e := range entries {
			switch e.Type {
			case layers.Dir:
				walk(e.Path)
			case layers.Regular:
				rc, err := view.Open(f.t.Context(), e.Path)
				if err != nil {
					f.t.Fatal(err)
				}
				data := make([]byte, e.Size)
				_, _ = rc.Read(data)
				rc.Close()
				files[e.Path] = string(data)
			}
		}
	}
	walk(".")
	return files
}

const chain = `FROM scratch AS one
COPY a /a
RUN ["write out/x 1"]
FROM scratch AS two
COPY --from=one /out /
RUN ["need x; append x 2"]
`

func TestBuildAndBuildAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, map[string]string{"a": "a", "unused": "u"})
	files, ran := f.mustBuild(chain, parser.Options{})
	if diff := cmp.Diff(map[string]string{"x": "12"}, files); diff != "" {
		t.Error(diff)
	}
	if len(ran) != 2 {
		t.Errorf("ran %q", ran)
	}
	if _, ran := f.mustBuild(chain, parser.Options{}); len(ran) != 0 {
		t.Errorf("the second build ran %q", ran)
	}
}

func TestOnlyWhatChangedRuns(t *testing.T) {
	t.Parallel()
	f := newFixture(t, map[string]string{"a": "a", "unused": "u"})
	f.mustBuild(chain, parser.Options{})

	f.write(map[string]string{"unused": "other"})
	if _, ran := f.mustBuild(chain, parser.Options{}); len(ran) != 0 {
		t.Errorf("a change of a file that no step uses ran %q", ran)
	}
	// The first stage runs again; what the second takes from it is the same.
	f.write(map[string]string{"a": "changed"})
	if _, ran := f.mustBuild(chain, parser.Options{}); len(ran) != 1 || !strings.HasPrefix(ran[0], "write") {
		t.Errorf("early cut-off: ran %q", ran)
	}
	files, ran := f.mustBuild(strings.Replace(chain, "x 1", "x 7", 1), parser.Options{})
	if len(ran) != 2 || files["x"] != "72" {
		t.Errorf("ran %q, made %q", ran, files)
	}
}

func TestNoCache(t *testing.T) {
	t.Parallel()
	f := newFixture(t, map[string]string{"a": "a"})
	f.mustBuild(chain, parser.Options{})
	if _, ran := f.mustBuild(chain, parser.Options{NoCache: true}); len(ran) != 2 {
		t.Errorf("--no-cache ran %q", ran)
	}
	if _, ran := f.mustBuild(chain, parser.Options{NoCacheStages: []string{"one"}}); len(ran) != 1 {
		t.Errorf("--no-cache-filter one ran %q", ran)
	}
	if _, ran := f.mustBuild(chain, parser.Options{}); len(ran) != 0 {
		t.Errorf("what was built without the cache is not cached: %q", ran)
	}
}

func TestEqualStepsRunOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	_, ran := f.mustBuild(`FROM scratch AS a
RUN ["write f 1"]
FROM scratch AS b
RUN ["write f 1"]
FROM scratch
COPY --from=a /f /a
COPY --from=b /f /b
`, parser.Options{})
	if len(ran) != 1 {
		t.Errorf("ran %q", ran)
	}
}

// A result made of COPY layers is looked up while the key of a later COPY, which
// takes from it, is being worked out.
func TestOnlyCopies(t *testing.T) {
	t.Parallel()
	f := newFixture(t, map[string]string{"a": "a", "b": "b"})
	df := "FROM scratch AS one\nCOPY a /x/a\nCOPY b /x/b\nFROM scratch\nCOPY b /b\nCOPY --from=one /x /y\n"
	want := map[string]string{"b": "b", "y/a": "a", "y/b": "b"}
	for range 3 {
		files, _ := f.mustBuild(df, parser.Options{})
		if diff := cmp.Diff(want, files); diff != "" {
			t.Error(diff)
		}
	}
}

// A step like one further up in its own chain must not wait for itself.
func TestEqualKeysInOneChain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	files, _ := f.mustBuild(`FROM scratch AS a
RUN ["write f 1"]
FROM scratch AS b
COPY --from=a /f /f
FROM scratch AS c
COPY --from=b /f /f
FROM scratch
COPY --from=c /f /f
`, parser.Options{})
	if files["f"] != "1" {
		t.Errorf("files %q", files)
	}
}

func TestStagesRunAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	var df strings.Builder
	gate := make(chan struct{})
	for i := range 8 {
		script := fmt.Sprintf("write out%d x", i)
		f.runner.block[script] = gate
		fmt.Fprintf(&df, "FROM scratch AS s%d\nRUN [%q]\n", i, script)
	}
	df.WriteString("FROM scratch\n")
	for i := range 8 {
		fmt.Fprintf(&df, "COPY --from=s%d /out%d /\n", i, i)
	}
	done := make(chan error, 1)
	p := f.plan(df.String(), parser.Options{})
	go func() { _, err := f.build(t.Context(), p); done <- err }()
	deadline := time.After(20 * time.Second)
	for {
		f.runner.mu.Lock()
		n := len(f.runner.ran)
		f.runner.mu.Unlock()
		if n == 8 {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("ended early: %v", err)
		case <-deadline:
			t.Fatalf("only %d of 8 stages run at once", n)
		case <-time.After(time.Millisecond):
		}
	}
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	p := f.plan("FROM scratch\nRUN [\"echo hello; fail\"]\n", parser.Options{})
	_, err := f.build(t.Context(), p)
	var se *builder.StepError
	if !errors.As(err, &se) {
		t.Fatalf("got %v, want a StepError", err)
	}
	if se.Exit != 3 || string(se.Log) != "hello\n" || se.Step.Source == nil || se.Step.Source.Ranges[0].StartLine != 2 {
		t.Errorf("got exit %d, log %q, source %+v", se.Exit, se.Log, se.Step.Source)
	}
	f.runner.take()
	if _, err := f.build(t.Context(), p); err == nil || len(f.runner.take()) != 1 {
		t.Error("a failure was cached")
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	f.runner.block["write f 1"] = make(chan struct{})
	p := f.plan("FROM scratch\nRUN [\"write f 1\"]\n", parser.Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user has left")
	done := make(chan error, 1)
	go func() { _, err := f.build(ctx, p); done <- err }()
	for {
		f.runner.mu.Lock()
		n := len(f.runner.ran)
		f.runner.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("got %v, want the cause", err)
	}
	left, err := filepath.Glob(filepath.Join(f.b.Root.Dir(), "tmp", "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files left: %v %v", left, err)
	}
}

// A COPY's files are read when they are needed, out of the context of the build
// that needs them.
func TestRecipeOfAnotherContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t, map[string]string{"a": "same"})
	df := "FROM scratch\nCOPY a /a\n"
	f.mustBuild(df, parser.Options{})
	if err := os.RemoveAll(f.context); err != nil {
		t.Fatal(err)
	}
	f.context = t.TempDir()
	f.write(map[string]string{"a": "same"})
	files, _ := f.mustBuild(df+"RUN [\"append a +\"]\n", parser.Options{})
	if files["a"] != "same+" {
		t.Errorf("files %q", files)
	}
}
