// Package pair builds Dockerfiles with strake and with BuildKit and compares the
// images: their configurations and file trees, times aside.
//
//	p, err := pair.Start(pair.Options{Strake: "./strake", Mirror: "127.0.0.1:5000"})
//	defer p.Stop()
//	r := p.Compare(pair.Build{Context: dir, Dockerfile: dir + "/Dockerfile"})
package pair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/bench/imagetree"
)

// Options say what builds.
type Options struct {
	Strake string // strake's program; buildkitd and buildctl are in $PATH
	Mirror string // host:port of a registry with the base images
	// Hosts are the registries that the mirror stands for.
	Hosts []string
}

// Pair is a BuildKit daemon and a strake, each with a store of its own, which
// builds share.
type Pair struct {
	o       Options
	dir     string
	address string
	daemon  *exec.Cmd
}

// Start starts BuildKit's daemon.
func Start(o Options) (*Pair, error) {
	dir, err := os.MkdirTemp("", "strake-pair-")
	if err != nil {
		return nil, err
	}
	p := &Pair{o: o, dir: dir, address: "unix://" + dir + "/buildkitd.sock"}
	if err := p.start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, nil
}

func (p *Pair) start() error {
	var config bytes.Buffer
	for _, h := range p.o.Hosts {
		fmt.Fprintf(&config, "[registry.%q]\n  mirrors = [%q]\n", h, p.o.Mirror)
	}
	fmt.Fprintf(&config, "[registry.%q]\n  http = true\n", p.o.Mirror)
	if err := os.WriteFile(filepath.Join(p.dir, "config.toml"), config.Bytes(), 0o644); err != nil {
		return err
	}
	p.daemon = exec.Command("buildkitd", "--root", filepath.Join(p.dir, "buildkit"), "--addr", p.address, "--config", filepath.Join(p.dir, "config.toml"), "--oci-worker-net", "host", "--containerd-worker=false")
	if err := p.daemon.Start(); err != nil {
		return err
	}
	for range 100 {
		if exec.Command("buildctl", "--addr", p.address, "debug", "workers").Run() == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.end()
	return errors.New("buildkitd did not start")
}

func (p *Pair) end() {
	_ = p.daemon.Process.Signal(syscall.SIGTERM)
	_ = p.daemon.Wait()
}

// Stop ends the daemon and removes both stores.
func (p *Pair) Stop() error {
	p.end()
	return os.RemoveAll(p.dir)
}

// Build is what both build.
type Build struct {
	Context, Dockerfile string
	Target              string
	Args, Labels        map[string]string
}

// Result is how two builds compare.
type Result struct {
	// Diff is how the images differ, or who alone refused and why; empty if
	// they are the same or both refused.
	Diff    string
	Refused error // what BuildKit said if both did
	// Theirs and Ours are the images, if both built.
	Theirs, Ours *imagetree.Image
}

// Compare builds with both.
func (p *Pair) Compare(b Build) Result {
	dir, name := filepath.Split(b.Dockerfile)
	theirs := []string{"--addr", p.address, "build", "--frontend", "dockerfile.v0", "--local", "context=" + b.Context, "--local", "dockerfile=" + dir, "--opt", "filename=" + name}
	ours := []string{"--root", filepath.Join(p.dir, "strake"), "build", "--progress", "plain", "-f", b.Dockerfile}
	for _, h := range p.o.Hosts {
		ours = append(ours, "--registry-mirror", h+"="+p.o.Mirror)
	}
	if b.Target != "" {
		theirs, ours = append(theirs, "--opt", "target="+b.Target), append(ours, "--target", b.Target)
	}
	for _, k := range slices.Sorted(maps.Keys(b.Args)) {
		theirs, ours = append(theirs, "--opt", "build-arg:"+k+"="+b.Args[k]), append(ours, "--build-arg", k+"="+b.Args[k])
	}
	for _, k := range slices.Sorted(maps.Keys(b.Labels)) {
		theirs, ours = append(theirs, "--opt", "label:"+k+"="+b.Labels[k]), append(ours, "--label", k+"="+b.Labels[k])
	}
	their, theirErr := p.build("buildkit", "buildctl", append(theirs, "--output")...)
	our, ourErr := p.build("strake", p.o.Strake, append(ours, b.Context, "-o")...)
	switch {
	case theirErr != nil && ourErr != nil:
		return Result{Refused: theirErr}
	case theirErr != nil:
		return Result{Diff: "buildkit refused: " + theirErr.Error()}
	case ourErr != nil:
		return Result{Diff: "strake refused: " + ourErr.Error()}
	}
	return Result{Diff: cmp.Diff(their, our), Theirs: their, Ours: our}
}

// build runs a program with an output to an archive added, and reads it.
func (p *Pair) build(tool, program string, args ...string) (*imagetree.Image, error) {
	dest := filepath.Join(p.dir, tool+"-out")
	defer os.RemoveAll(dest)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(args, "type=oci,tar=false,dest="+dest)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out[max(0, len(out)-3000):])
	}
	return imagetree.ReadLayout(dest)
}
