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
)

const goarch = runtime.GOARCH

// benchCase is a workload. prepare fills the context and does what comes before
// the clock starts; the build that request describes is measured.
type benchCase struct {
	name, work string
	prepare    func(ctx context.Context, w *workspace) error
	request    func(w *workspace) request
}

var cases = []benchCase{
	{"W1", "multi-stage Go app, no cache", func(ctx context.Context, w *workspace) error {
		return w.goApp(false, func() error { return w.again(ctx, request{}) })
	}, func(*workspace) request { return request{noCache: true} }},
	{"W3", "W1, one source file changed", func(ctx context.Context, w *workspace) error {
		return w.goApp(false, func() error { return w.again(ctx, request{}) }, w.changeMain)
	}, local},
	{"W3m", "the same with a cache mount", func(ctx context.Context, w *workspace) error {
		return w.goApp(true, func() error { return w.again(ctx, request{}) }, w.changeMain)
	}, local},
	{"W2", "nothing changed, 10k files, 200 MB", func(ctx context.Context, w *workspace) error {
		if err := w.files(10000, 20000); err != nil {
			return err
		}
		return w.dockerfile("FROM %s\nCOPY . /src/\nRUN ls /src | wc -l\n", w.mustBase("busybox", busybox), func() error { return w.again(ctx, request{}) })
	}, local},
	{"W4a", "RUN writes 1 GiB in 20k files, OCI archive", w4(nil), output("oci", "")},
	{"W4b", "the same, pushed", w4(nil), output("push", "")},
	{"W4z", "the same, pushed, zstd", w4(nil), output("push", "zstd")},
	{"W4r", "W4a after 1 MB of it changed", w4(func(ctx context.Context, w *workspace) error {
		if err := w.again(ctx, request{output: "oci"}); err != nil {
			return err
		}
		if err := w.dockerfile("FROM %s\nRUN gen /data 2\n", w.mustBase("gen", busybox, w.generator)); err != nil {
			return err
		}
		return w.again(ctx, request{}) // the step itself is not measured
	}), output("oci", "")},
	{"W5a", "100 small RUNs in a row", func(ctx context.Context, w *workspace) error {
		var df strings.Builder
		df.WriteString("FROM %s\n")
		for i := range 100 {
			fmt.Fprintf(&df, "RUN echo %d > /f%d\n", i, i)
		}
		return w.dockerfile(df.String(), w.mustBase("busybox", busybox), w.warmBase(ctx))
	}, local},
	{"W5b", "16 parallel stages of 2 s, then COPY from all", func(ctx context.Context, w *workspace) error {
		base := w.mustBase("busybox", busybox)
		var df strings.Builder
		for i := range 16 {
			fmt.Fprintf(&df, "FROM %s AS s%d\nRUN sleep 2; echo %d > /out%d\n", base, i, i, i)
		}
		fmt.Fprintf(&df, "FROM %s\n", base)
		for i := range 16 {
			fmt.Fprintf(&df, "COPY --from=s%d /out%d /\n", i, i)
		}
		return w.dockerfile("%s", df.String(), w.warmBase(ctx))
	}, local},
	{"W6", "FROM 1 GiB in 11 layers and one COPY, pushed; nothing local", w6("COPY app /app/\n"), output("push", "")},
	{"W6l", "the same with COPY --link", w6("COPY --link app /app/\n"), output("push", "")},
	{"W6r", "the same with a RUN", w6("COPY app /app/\nRUN echo hi > /hi\n"), output("push", "")},
	{"W7", "COPY of 100k small files, cold", w7(nil), output("oci", "")},
	{"W7w", "again, unchanged", w7(func(ctx context.Context, w *workspace) error {
		return w.again(ctx, request{output: "oci"})
	}), output("oci", "")},
	{"W7c", "again, one file changed", w7(func(ctx context.Context, w *workspace) error {
		if err := w.again(ctx, request{output: "oci"}); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(w.context, "d0", "f0"), []byte(fmt.Sprint("changed ", w.run)), 0o644)
	}), output("oci", "")},
	{"noop", "10 cached steps, small context", func(ctx context.Context, w *workspace) error {
		if err := os.WriteFile(filepath.Join(w.context, "app"), []byte("app"), 0o644); err != nil {
			return err
		}
		df := "FROM %s\nCOPY app /app\n" + strings.Repeat("RUN echo x >> /x\n", 8)
		return w.dockerfile(df, w.mustBase("busybox", busybox), func() error { return w.again(ctx, request{}) })
	}, local},
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
		if err := os.WriteFile(filepath.Join(w.context, "app"), content(1<<20, uint64(w.run)), 0o755); err != nil {
			return err
		}
		return w.dockerfile("FROM %s\n"+instructions, w.mustBase("big", layers...))
	}
}

const w4Dockerfile = "FROM %s\nRUN gen /data 1\n"

func w4(then func(context.Context, *workspace) error) func(context.Context, *workspace) error {
	return func(ctx context.Context, w *workspace) error {
		if err := w.dockerfile(w4Dockerfile, w.mustBase("gen", busybox, w.generator)); err != nil {
			return err
		}
		if then != nil {
			return then(ctx, w)
		}
		return w.warmBase(ctx)()
	}
}

func w7(then func(context.Context, *workspace) error) func(context.Context, *workspace) error {
	return func(ctx context.Context, w *workspace) error {
		if err := w.files(100000, 4000); err != nil {
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
	_, err := w.build(ctx, r)
	return err
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
	out := filepath.Join(w.b.dir, "gen")
	cmd := exec.Command("go", "build", "-o", out, "./bench/gen")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./bench/gen: %w\n%s", err, msg)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	return writeFile(tw, "bin/gen", 0o755, data)
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
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), content(size, uint64(i)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// goApp writes a Go program of several packages that uses much of the standard
// library.
func (w *workspace) goApp(cacheMount bool, then ...func() error) error {
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
