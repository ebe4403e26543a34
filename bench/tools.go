package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// request is a build, in words that all tools have.
type request struct {
	noCache bool
	// output is "" (the tool's own store), "oci" (an archive) or "push".
	output      string
	compression string // "" is gzip
	name        string // of the image to push, without the registry
}

// attributes is what the request adds to the output flag of strake and BuildKit.
func (r request) attributes() string {
	if r.compression == "" {
		return ""
	}
	return ",compression=" + r.compression
}

// workspace is where one run takes place.
type workspace struct {
	b                  *bench
	tool               tool
	group              *group
	context, root, out string
	trace              string // prefix of the files that strace writes; "" for none
	run                int
	slots              int // steps at once; 0 is the tool's default
	daemon             *exec.Cmd
}

// build builds the workspace's context.
func (w *workspace) build(ctx context.Context, r request) error { return w.tool.build(ctx, w, r) }

// archive is where images are written that go to an archive.
func (w *workspace) archive() string { return filepath.Join(w.out, "image.tar") }

// ref is the name of an image that is pushed.
func (w *workspace) ref(r request) string { return w.b.registry + "/" + r.name }

// tool is a builder to be measured.
type tool interface {
	name() string
	start(ctx context.Context, w *workspace) error
	stop(w *workspace)
	build(ctx context.Context, w *workspace, r request) error
}

// newTool returns the tool of a name, or nil if it isn't here.
func newTool(b *bench, name, strake string) tool {
	switch name {
	case "strake":
		if _, err := os.Stat(strake); err == nil {
			return strakeTool{strake}
		}
	case "buildkit":
		_, err1 := exec.LookPath("buildkitd")
		_, err2 := exec.LookPath("buildctl")
		if err1 == nil && err2 == nil {
			return buildkitTool{}
		}
	case "buildah":
		if _, err := exec.LookPath("buildah"); err == nil {
			return buildahTool{}
		}
	}
	return nil
}

// command runs a program in the workspace's group.
func (w *workspace) command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := w.start(cmd); err != nil {
		return err
	}
	err := cmd.Wait()
	if w.b.verbose {
		fmt.Fprintf(os.Stderr, "$ %s %s\n%s", name, strings.Join(args, " "), out.Bytes())
	}
	if err != nil {
		tail := out.Bytes()
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail[max(0, len(tail)-2000):])
	}
	return nil
}

// start starts a command in the workspace's group, under strace if calls are
// counted. The process is the command's in any case (strace -D).
func (w *workspace) start(cmd *exec.Cmd) error {
	if w.trace != "" {
		strace, err := exec.LookPath("strace")
		if err != nil {
			return err
		}
		traced, err := os.CreateTemp(filepath.Dir(w.trace), filepath.Base(w.trace))
		if err != nil {
			return err
		}
		traced.Close()
		cmd.Args = append([]string{"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=fsync,fdatasync,syncfs,sync,sync_file_range", "-e", "signal=none",
			"-o", traced.Name(), cmd.Path}, cmd.Args[1:]...)
		cmd.Path = strace
	}
	return w.group.start(cmd)
}

// syncCalls is how many calls strace has written down.
func (w *workspace) syncCalls() (int, error) {
	files, err := filepath.Glob(w.trace + "*")
	n := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "sync") && !strings.Contains(line, "resumed>") {
				n++
			}
		}
	}
	return n, err
}

type strakeTool struct{ program string }

func (strakeTool) name() string                            { return "strake" }
func (strakeTool) start(context.Context, *workspace) error { return nil }
func (strakeTool) stop(*workspace)                         {}
func (t strakeTool) build(ctx context.Context, w *workspace, r request) error {
	args := []string{"--root", w.root, "build", "--progress", "plain"}
	if r.noCache {
		args = append(args, "--no-cache")
	}
	if w.slots > 0 {
		args = append(args, "--parallel", fmt.Sprint(w.slots))
	}
	switch r.output {
	case "oci":
		args = append(args, "-o", "type=oci,dest="+w.archive()+r.attributes())
	case "push":
		args = append(args, "-o", "type=registry,name="+w.ref(r)+r.attributes())
	}
	return w.command(ctx, t.program, append(args, w.context)...)
}

type buildkitTool struct{}

func (buildkitTool) name() string { return "buildkit" }

func (buildkitTool) address(w *workspace) string { return "unix://" + w.root + ".sock" }

func (t buildkitTool) start(ctx context.Context, w *workspace) error {
	config := w.root + ".toml"
	text := fmt.Sprintf("[registry.%q]\n  http = true\n[worker.oci]\n  defaultCgroupParent = %q\n", w.b.registry, w.group.steps())
	if w.slots > 0 {
		text += fmt.Sprintf("  max-parallelism = %d\n", w.slots)
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	w.daemon = exec.Command("buildkitd", "--root", w.root, "--addr", t.address(w), "--config", config, "--oci-worker-net", "host", "--containerd-worker=false")
	var log bytes.Buffer
	w.daemon.Stdout, w.daemon.Stderr = &log, &log
	if err := w.start(w.daemon); err != nil {
		return err
	}
	for range 200 {
		if exec.CommandContext(ctx, "buildctl", "--addr", t.address(w), "debug", "workers").Run() == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.stop(w)
	return fmt.Errorf("buildkitd did not start:\n%s", log.Bytes())
}

func (buildkitTool) stop(w *workspace) {
	if w.daemon != nil {
		_ = w.daemon.Process.Signal(syscall.SIGTERM)
		_ = w.daemon.Wait()
	}
}

func (t buildkitTool) build(ctx context.Context, w *workspace, r request) error {
	args := []string{"--addr", t.address(w), "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context=" + w.context, "--local", "dockerfile=" + w.context}
	if r.noCache {
		args = append(args, "--no-cache")
	}
	switch r.output {
	case "oci":
		args = append(args, "--output", "type=oci,dest="+w.archive()+r.attributes())
	case "push":
		args = append(args, "--output", "type=image,push=true,registry.insecure=true,oci-mediatypes=true,name="+w.ref(r)+r.attributes())
	}
	return w.command(ctx, "buildctl", args...)
}

type buildahTool struct{}

func (buildahTool) name() string                            { return "buildah" }
func (buildahTool) start(context.Context, *workspace) error { return nil }

func (buildahTool) flags(w *workspace) []string {
	return []string{"--root", w.root, "--runroot", w.root + ".run", "--storage-driver", "overlay"}
}

func (t buildahTool) stop(w *workspace) {
	_ = exec.Command("buildah", append(t.flags(w), "rm", "-a")...).Run()
	_ = exec.Command("umount", filepath.Join(w.root, "overlay")).Run()
	_ = os.RemoveAll(w.root + ".run")
}

func (t buildahTool) build(ctx context.Context, w *workspace, r request) error {
	args := append(t.flags(w), "bud", "--runtime", "runc", "--layers", "--network", "host", "--cgroup-parent", w.group.steps(), "--tls-verify=false")
	if r.noCache {
		args = append(args, "--no-cache")
	}
	name := "bench"
	if r.output == "push" {
		name = w.ref(r)
	}
	if err := w.command(ctx, "buildah", append(args, "-t", name, w.context)...); err != nil || r.output == "" {
		return err
	}
	push := append(t.flags(w), "push", "--tls-verify=false")
	if r.compression != "" {
		push = append(push, "--compression-format", r.compression)
	}
	dest := "docker://" + name
	if r.output == "oci" {
		dest = "oci-archive:" + w.archive()
	}
	return w.command(ctx, "buildah", append(push, name, dest)...)
}
