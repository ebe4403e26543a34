package main

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/strake-build/strake/bench/content"
)

const goarch = runtime.GOARCH

// benchCase is a workload. prepare fills the context and does what comes before
// the clock starts; the build that request describes is measured.
type benchCase struct {
	name, work string
	goal       string // the most that strake may need, times BuildKit's time if there is no unit
	prepare    func(ctx context.Context, w *workspace) error
	request    func(w *workspace) request
	repeat     int // builds measured in a row; 0 is 1
	slots      int // steps at once; 0 is the tool's default
}

var cases = []benchCase{
	{name: "W1", work: "multi-stage Go app, no cache", goal: "0.9", prepare: func(ctx context.Context, w *workspace) error {
		return w.goApp(false, func() error { return w.again(ctx, request{}) })
	}, request: func(*workspace) request { return request{noCache: true} }},
	{name: "W3", work: "W1, one source file changed", goal: "0.9", prepare: func(ctx context.Context, w *workspace) error {
		return w.goApp(false, func() error { return w.again(ctx, request{}) }, w.changeMain)
	}, request: local},
	{name: "W3m", work: "the same with a cache mount", goal: "0.6", prepare: func(ctx context.Context, w *workspace) error {
		return w.goApp(true, func() error { return w.again(ctx, request{}) }, w.changeMain)
	}, request: local},
	{name: "W2", work: "nothing changed, 10k files, 200 MB", goal: "0.12", prepare: func(ctx context.Context, w *workspace) error {
		if err := w.files(10000, 20000); err != nil {
			return err
		}
		return w.dockerfile("FROM %s\nCOPY . /src/\nRUN ls /src | wc -l\n", w.mustBase("busybox", busybox), func() error { return w.again(ctx, request{}) })
	}, request: local},
	{name: "W4a", work: "RUN writes 1 GiB in 20k files, OCI archive", goal: "0.35", prepare: layerOf(1024, nil), request: output("oci", "")},
	{name: "W4b", work: "the same, pushed", goal: "0.35", prepare: layerOf(1024, nil), request: output("push", "")},
	{name: "W4z", work: "the same, pushed, zstd", goal: "0.7", prepare: layerOf(1024, nil), request: output("push", "zstd")},
	{name: "W4r", work: "W4a after 1 MB of it changed, packing only", goal: "0.08", prepare: layerOf(1024, w4Changed), request: output("oci", "")},
	{name: "W5a", work: "100 small RUNs in a row", goal: "0.12", prepare: runs(100, false), request: local},
	{name: "W5b", work: "16 parallel stages of 2 s, then COPY from all", goal: "0.68", prepare: func(ctx context.Context, w *workspace) error {
		return w.stages(ctx, "sleep 2")
	}, request: local},
	{name: "W6", work: "FROM 1 GiB in 11 layers and one COPY, pushed; nothing local", goal: "0.02", prepare: w6("COPY app /app/\n"), request: output("push", "")},
	{name: "W6l", work: "the same with COPY --link", goal: "0.7", prepare: w6("COPY --link app /app/\n"), request: output("push", "")},
	{name: "W6r", work: "the same with a RUN", goal: "0.7", prepare: w6("COPY app /app/\nRUN echo hi > /hi\n"), request: output("push", "")},
	{name: "W7", work: "COPY of 100k small files, cold", goal: "0.13", prepare: copyFiles(100000, nil), request: output("oci", "")},
	{name: "W7w", work: "again, unchanged", goal: "0.06", prepare: copyFiles(100000, func(ctx context.Context, w *workspace) error {
		return w.again(ctx, request{output: "oci"})
	}), request: output("oci", "")},
	{name: "W7n", work: "again, unchanged, to an archive that is not there yet", prepare: copyFiles(100000, func(ctx context.Context, w *workspace) error {
		if err := w.again(ctx, request{output: "oci"}); err != nil {
			return err
		}
		return os.Remove(w.archive())
	}), request: output("oci", "")},
	{name: "W7c", work: "again, one file changed", goal: "0.1", prepare: copyFiles(100000, func(ctx context.Context, w *workspace) error {
		if err := w.again(ctx, request{output: "oci"}); err != nil {
			return err
		}
		return w.changeFile()
	}), request: output("oci", "")},
	{name: "noop", work: "10 cached steps, small context", goal: "15 ms", prepare: func(ctx context.Context, w *workspace) error {
		if err := os.WriteFile(filepath.Join(w.context, "app"), []byte("app"), 0o644); err != nil {
			return err
		}
		df := "FROM %s\nCOPY app /app\n" + strings.Repeat("RUN echo x >> /x\n", 8)
		return w.dockerfile(df, w.mustBase("busybox", busybox), func() error { return w.again(ctx, request{}) })
	}, request: local, repeat: 20},
}

func local(*workspace) request { return request{} }

func output(kind, compression string) func(*workspace) request {
	return func(w *workspace) request {
		return request{output: kind, compression: compression, name: fmt.Sprintf("out/%s-%d", w.tool.name(), w.run)}
	}
}

func w6(instructions string) func(context.Context, *workspace) error {
	return func(_ context.Context, w *workspace) error {
		layers := []func(*tar.Writer) error{busybox}
		for i := range 10 {
			layers = append(layers, filler(fmt.Sprintf("data%d", i), 1600, 64<<10, uint64(i)<<32))
		}
		if err := os.WriteFile(filepath.Join(w.context, "app"), content.Bytes(1<<20, uint64(w.run), 1), 0o755); err != nil {
			return err
		}
		return w.dockerfile("FROM %s\n"+instructions, w.mustBase("big", layers...))
	}
}

// w4Changed builds a layer, and then runs the step of another one of which 1 MB
// differs: only packing it is left to be measured.
func w4Changed(changed string) func(context.Context, *workspace) error {
	return func(ctx context.Context, w *workspace) error {
		if err := w.again(ctx, request{output: "oci"}); err != nil {
			return err
		}
		if err := w.dockerfile(changed, w.mustBase("gen", busybox, w.generator)); err != nil {
			return err
		}
		return w.again(ctx, request{})
	}
}

// mustBase is bench.base; an error is put where the build will show it.
func (w *workspace) mustBase(repo string, layers ...func(*tar.Writer) error) string {
	ref, err := w.b.base(repo, layers...)
	if err != nil {
		return "base:" + err.Error()
	}
	return ref
}

// dockerfile writes the Dockerfile with the base filled in, and then runs then.
func (w *workspace) dockerfile(text, base string, then ...func() error) error {
	if strings.HasPrefix(base, "base:") {
		return fmt.Errorf("base image: %s", base)
	}
	if err := os.WriteFile(filepath.Join(w.context, "Dockerfile"), []byte(strings.ReplaceAll(text, "%s", base)), 0o644); err != nil {
		return err
	}
	for _, f := range then {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// again builds without being measured.
func (w *workspace) again(ctx context.Context, r request) error {
	r.name = "warm/" + w.tool.name()
	return w.build(ctx, r)
}

// warmBase unpacks the base image, as the measured build is not about that.
func (w *workspace) warmBase(ctx context.Context) func() error {
	return func() error {
		path := filepath.Join(w.context, "Dockerfile")
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		base, _, _ := strings.Cut(strings.TrimPrefix(string(text), "FROM "), "\n")
		base, _, _ = strings.Cut(base, " ")
		if err := w.dockerfile("FROM %s\nRUN true\n", base, func() error { return w.again(ctx, request{}) }); err != nil {
			return err
		}
		return os.WriteFile(path, text, 0o644)
	}
}

// generator adds command gen to a base image.
func (w *workspace) generator(tw *tar.Writer) error {
	path, err := w.genProgram()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return writeFile(tw, "bin/gen", 0o755, data)
}

// genProgram builds command gen.
func (w *workspace) genProgram() (string, error) {
	path := filepath.Join(w.b.dir, "gen")
	cmd := exec.Command("go", "build", "-o", path, "./bench/gen")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return path, quietly(cmd)
}

// files fills the context with n files of the size given.
func (w *workspace) files(n, size int) error {
	for i := range n {
		dir := filepath.Join(w.context, fmt.Sprintf("d%d", i/500))
		if i%500 == 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), content.Bytes(size, uint64(i), 1), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// goFiles writes a Go program of several packages that uses much of the standard
// library.
func (w *workspace) goFiles() error {
	files := map[string]string{
		"go.mod":  "module example.com/app\n\ngo 1.24\n",
		"main.go": goMain(0),
	}
	for i := range 20 {
		files[fmt.Sprintf("p%d/p.go", i)] = fmt.Sprintf("package p%d\n\nimport \"encoding/json\"\n\nfunc F(v any) string { b, _ := json.Marshal(v); return string(b) + \"%d\" }\n", i, i)
	}
	for name, text := range files {
		path := filepath.Join(w.context, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// goApp has a Go program compiled in a first stage.
func (w *workspace) goApp(cacheMount bool, then ...func() error) error {
	if err := w.goFiles(); err != nil {
		return err
	}
	mount := ""
	if cacheMount {
		mount = "--mount=type=cache,target=/root/.cache/go-build "
	}
	base := w.mustBase("golang", busybox, goToolchain)
	return w.dockerfile("FROM %s AS build\nENV CGO_ENABLED=0 GOFLAGS=-mod=mod GOTOOLCHAIN=local\nWORKDIR /src\nCOPY go.mod .\nRUN go mod verify\nCOPY . .\nRUN "+mount+"go vet ./... && go build -o /app .\nFROM scratch\nCOPY --from=build /app /app\nENTRYPOINT [\"/app\"]\n", base, then...)
}

func goMain(n int) string {
	var b strings.Builder
	b.WriteString("package main\n\nimport (\n\t\"fmt\"\n\t\"net/http\"\n")
	for i := range 20 {
		fmt.Fprintf(&b, "\t\"example.com/app/p%d\"\n", i)
	}
	fmt.Fprintf(&b, ")\n\nfunc main() {\n\tfmt.Println(http.StatusText(200), %d)\n", n)
	for i := range 20 {
		fmt.Fprintf(&b, "\tfmt.Println(p%d.F(%d))\n", i, i)
	}
	b.WriteString("}\n")
	return b.String()
}

func (w *workspace) changeMain() error {
	return os.WriteFile(filepath.Join(w.context, "main.go"), []byte(goMain(w.run+1)), 0o644)
}
