package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// runCorpus has strake and BuildKit build imagebuilder's files, the examples in
// the reference of the Dockerfile language, and files as projects have them, and
// compares the images.
func runCorpus(ctx context.Context, strake, out string, args []string) error {
	flags := flag.NewFlagSet("corpus", flag.ContinueOnError)
	only := flags.String("run", "", "regular expression of the build files' paths")
	if err := flags.Parse(args); err != nil {
		return err
	}
	files, err := download(ctx, imagebuilder)
	if err != nil {
		return err
	}
	addr, stop, err := startReference(ctx, out)
	if err != nil {
		return err
	}
	defer stop()
	src, err := download(ctx, buildkit)
	if err != nil {
		return err
	}
	examples := filepath.Join(out, "examples")
	if err := writeExamples(filepath.Join(src, "frontend", "dockerfile", "docs", "reference.md"), examples); err != nil {
		return err
	}
	fmt.Println("building the files of", imagebuilder, "and those in BuildKit's documentation and in conformance/testdata/layouts")
	cmd := exec.CommandContext(ctx, "go", "run", "./bench/compare", "-strake", strake, "-mirror", addr, "-run", *only,
		filepath.Join(files, "dockerclient", "testdata"), examples, "conformance/testdata/layouts")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// startReference makes BuildKit's programs the first in $PATH and starts a
// registry with the base images.
func startReference(ctx context.Context, out string) (mirror string, stop func(), err error) {
	if os.Getuid() != 0 {
		return "", nil, missingError{"BuildKit's daemon wants to be root here"}
	}
	if err := need("busybox", "docker-registry", "runc", "go"); err != nil {
		return "", nil, err
	}
	src, err := download(ctx, buildkit)
	if err != nil {
		return "", nil, err
	}
	for _, program := range []string{"buildkitd", "buildctl"} {
		file, err := compile(ctx, buildkit, src, "build", "./cmd/"+program, program)
		if err != nil {
			return "", nil, err
		}
		if err := os.Setenv("PATH", filepath.Dir(file)+":"+os.Getenv("PATH")); err != nil {
			return "", nil, err
		}
	}
	m, err := newMirror(filepath.Join(out, "mirror"))
	if err != nil {
		return "", nil, err
	}
	return m.serve()
}
