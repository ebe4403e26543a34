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
	context, root, out string
	run                int
	daemon             *exec.Cmd
}

// build builds the workspace's context and returns the peak memory of the
// largest process.
func (w *workspace) build(ctx context.Context, r request) (int64, error) {
	return w.tool.build(ctx, w, r)
}

// tool is a builder to be measured.
type tool interface {
	name() string
	start(ctx context.Context, w *workspace) error
	stop(w *workspace)
	build(ctx context.Context, w *workspace, r request) (int64, error)
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

// command runs a program and returns its peak memory.
func (w *workspace) command(ctx context.Context, name string, args ...string) (int64, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// The resource usage of a finished process counts this program's own
	// memory too, which it had before it was another program. So it is asked
	// while it runs.
	done := make(chan struct{})
	peak := make(chan int64)
	go func() {
		var last int64
		for {
			last = max(last, peakOf(cmd.Process.Pid))
			select {
			case <-done:
				peak <- last
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	used := <-peak
	if w.b.verbose {
		fmt.Fprintf(os.Stderr, "$ %s %s\n%s", name, strings.Join(args, " "), out.Bytes())
	}
	if err != nil {
		tail := out.Bytes()
		return 0, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail[max(0, len(tail)-2000):])
	}
	return used, nil
}

type strakeTool struct{ program string }

func (strakeTool) name() string                            { return "strake" }
func (strakeTool) start(context.Context, *workspace) error { return nil }
func (strakeTool) stop(*workspace)                         {}
func (t strakeTool) build(ctx context.Context, w *workspace, r request) (int64, error) {
	args := []string{"--root", w.root, "build", "--progress", "plain"}
	if r.noCache {
		args = append(args, "--no-cache")
	}
	switch r.output {
	case "oci":
		args = append(args, "-o", "type=oci,dest="+filepath.Join(w.out, "image.tar")+r.attributes())
	case "push":
		args = append(args, "-o", "type=registry,name="+w.b.registry+"/"+r.name+r.attributes())
	}
	return w.command(ctx, t.program, append(args, w.context)...)
}

type buildkitTool struct{}

func (buildkitTool) name() string { return "buildkit" }

func (buildkitTool) address(w *workspace) string { return "unix://" + w.root + ".sock" }

func (t buildkitTool) start(ctx context.Context, w *workspace) error {
	config := w.root + ".toml"
	if err := os.WriteFile(config, fmt.Appendf(nil, "[registry.%q]\n  http = true\n", w.b.registry), 0o644); err != nil {
		return err
	}
	w.daemon = exec.Command("buildkitd", "--root", w.root, "--addr", t.address(w), "--config", config, "--oci-worker-net", "host", "--containerd-worker=false")
	var log bytes.Buffer
	w.daemon.Stdout, w.daemon.Stderr = &log, &log
	if err := w.daemon.Start(); err != nil {
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

func (t buildkitTool) build(ctx context.Context, w *workspace, r request) (int64, error) {
	args := []string{"--addr", t.address(w), "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--local", "context=" + w.context, "--local", "dockerfile=" + w.context}
	if r.noCache {
		args = append(args, "--no-cache")
	}
	switch r.output {
	case "oci":
		args = append(args, "--output", "type=oci,dest="+filepath.Join(w.out, "image.tar")+r.attributes())
	case "push":
		args = append(args, "--output", "type=image,push=true,registry.insecure=true,oci-mediatypes=true,name="+w.b.registry+"/"+r.name+r.attributes())
	}
	if _, err := w.command(ctx, "buildctl", args...); err != nil {
		return 0, err
	}
	return peakOf(w.daemon.Process.Pid), nil
}

// peakOf is the peak memory of a running process.
func peakOf(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kb int64
			_, _ = fmt.Sscan(v, &kb)
			return kb << 10
		}
	}
	return 0
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

func (t buildahTool) build(ctx context.Context, w *workspace, r request) (int64, error) {
	args := append(t.flags(w), "bud", "--runtime", "runc", "--layers", "--network", "host", "--tls-verify=false")
	if r.noCache {
		args = append(args, "--no-cache")
	}
	name := "bench"
	if r.output == "push" {
		name = w.b.registry + "/" + r.name
	}
	peak, err := w.command(ctx, "buildah", append(args, "-t", name, w.context)...)
	if err != nil || r.output == "" {
		return peak, err
	}
	push := append(t.flags(w), "push", "--tls-verify=false")
	if r.compression != "" {
		push = append(push, "--compression-format", r.compression)
	}
	dest := "docker://" + name
	if r.output == "oci" {
		dest = "oci-archive:" + filepath.Join(w.out, "image.tar")
	}
	p, err := w.command(ctx, "buildah", append(push, name, dest)...)
	return max(p, peak), err
}
