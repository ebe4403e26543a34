// Command compare builds Dockerfiles with strake and with BuildKit and compares
// the images: their configurations and file trees, times aside.
//
//	go run ./bench/compare -strake ./strake -mirror 127.0.0.1:5000 DIR...
//
// Every Dockerfile and Dockerfile.* found below a DIR is a case; its context is
// the directory it is in. Images are looked for in the mirror, whichever
// registry they name. A case that BuildKit refuses must be refused.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/strake-build/strake/bench/imagetree"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// comparer builds with both.
type comparer struct {
	strake, mirror, dir, address string
	hosts                        []string
}

func run() error {
	strake := flag.String("strake", "strake", "strake's program")
	mirror := flag.String("mirror", "", "host:port of a registry with the base images")
	hosts := flag.String("hosts", "docker.io,mirror.gcr.io,public.ecr.aws,registry.fedoraproject.org", "registries that the mirror stands for")
	only := flag.String("run", "", "regular expression of cases to run")
	flag.Parse()
	filter, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "strake-compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := &comparer{strake: *strake, mirror: *mirror, dir: dir, address: "unix://" + dir + "/buildkitd.sock", hosts: strings.Split(*hosts, ",")}
	stop, err := c.startBuildKit()
	if err != nil {
		return err
	}
	defer stop()

	passed, failed := 0, 0
	for _, root := range flag.Args() {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), "Dockerfile") || !filter.MatchString(p) {
				return err
			}
			verdict := c.compare(p)
			if verdict == "" {
				passed++
				fmt.Println("same", p)
			} else {
				failed++
				fmt.Println("DIFF", p)
				fmt.Println(verdict)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		return errors.New("images differ")
	}
	return nil
}

func (c *comparer) startBuildKit() (func(), error) {
	var config bytes.Buffer
	for _, h := range c.hosts {
		fmt.Fprintf(&config, "[registry.%q]\n  mirrors = [%q]\n", h, c.mirror)
	}
	fmt.Fprintf(&config, "[registry.%q]\n  http = true\n", c.mirror)
	if err := os.WriteFile(filepath.Join(c.dir, "config.toml"), config.Bytes(), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("buildkitd", "--root", filepath.Join(c.dir, "buildkit"), "--addr", c.address, "--config", filepath.Join(c.dir, "config.toml"), "--oci-worker-net", "host", "--containerd-worker=false")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() }
	for range 100 {
		if exec.Command("buildctl", "--addr", c.address, "debug", "workers").Run() == nil {
			return stop, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	return nil, errors.New("buildkitd did not start")
}

// compare returns how the images of a Dockerfile differ, or "".
func (c *comparer) compare(dockerfile string) string {
	context, name := filepath.Split(dockerfile)
	theirs, theirErr := c.build("buildkit", "buildctl", "--addr", c.address, "build", "--frontend", "dockerfile.v0",
		"--local", "context="+context, "--local", "dockerfile="+context, "--opt", "filename="+name, "--output")
	args := []string{"--root", filepath.Join(c.dir, "strake"), "build", "--progress", "plain", "-f", dockerfile}
	for _, h := range c.hosts {
		args = append(args, "--registry-mirror", h+"="+c.mirror)
	}
	ours, ourErr := c.build("strake", c.strake, append(args, context, "-o")...)
	switch {
	case theirErr != nil && ourErr != nil:
		return ""
	case theirErr != nil:
		return "buildkit refused: " + theirErr.Error()
	case ourErr != nil:
		return "strake refused: " + ourErr.Error()
	}
	return cmp.Diff(theirs, ours)
}

// build runs a program with an output to an archive added, and reads it.
func (c *comparer) build(tool, program string, args ...string) (*imagetree.Image, error) {
	dest := filepath.Join(c.dir, tool+"-out")
	defer os.RemoveAll(dest)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(args, "type=oci,tar=false,dest="+dest)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out[max(0, len(out)-3000):])
	}
	index, err := layout.ImageIndexFromPath(dest)
	if err != nil {
		return nil, err
	}
	img, err := imagetree.First(index)
	if err != nil {
		return nil, err
	}
	return imagetree.Read(img)
}
