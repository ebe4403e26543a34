package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The versions of what is tested with.
const (
	buildkit     = "github.com/moby/buildkit@v0.34.2"
	imagebuilder = "github.com/openshift/imagebuilder@v1.2.22"
)

// need reports which of the programs is missing.
func need(programs ...string) error {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return missingError{"the program " + p + " is not installed"}
		}
	}
	return nil
}

// download fetches a module and returns its directory in the module cache.
func download(ctx context.Context, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = os.TempDir() // in no module
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var found struct{ Dir, Error string }
	if jerr := json.Unmarshal(out, &found); jerr != nil || found.Dir == "" {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", missingError{fmt.Sprintf("%s can't be had: %v %s%s", module, err, found.Error, stderr.Bytes())}
	}
	return found.Dir, nil
}

// compile builds a program of a module, or with "test" the tests of a package,
// once for all runs, and returns the file.
func compile(ctx context.Context, module, dir, command, pkg, name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	_, version, _ := bytes.Cut([]byte(module), []byte("@"))
	file := filepath.Join(cache, "strake-conformance", string(version), name)
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	fmt.Println("compiling", name, "of", module)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	temp := fmt.Sprintf("%s.%d", file, os.Getpid())
	args := []string{command, "-mod=readonly", "-trimpath", "-o", temp}
	if command == "test" {
		args = append(args, "-c")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.Remove(temp)
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if bytes.Contains(out, []byte("dial tcp")) || bytes.Contains(out, []byte("no such host")) {
			return "", missingError{fmt.Sprintf("modules of %s can't be had: %s", module, bytes.TrimSpace(out))}
		}
		return "", fmt.Errorf("compile %s: %w\n%s", name, err, out)
	}
	return file, os.Rename(temp, file)
}
