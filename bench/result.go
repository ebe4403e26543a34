package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/strake-build/strake/bench/imagetree"
)

// size is the bytes of the image that a request delivered, 0 if it delivered
// none.
func (w *workspace) size(r request) int64 {
	switch r.output {
	case "oci":
		if fi, err := os.Stat(w.archive()); err == nil {
			return fi.Size()
		}
	case "push":
		img, err := w.pushed(r)
		if err != nil {
			return 0
		}
		m, err := img.Manifest()
		if err != nil {
			return 0
		}
		total := m.Config.Size
		for _, l := range m.Layers {
			total += l.Size
		}
		return total
	}
	return 0
}

func (w *workspace) pushed(r request) (v1.Image, error) {
	ref, err := name.ParseReference(w.ref(r), name.Insecure)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: goarch}))
}

// image reads the image that a request made. If it was not delivered it is now,
// into an archive.
func (w *workspace) image(ctx context.Context, r request) (*imagetree.Image, error) {
	if r.output == "push" {
		img, err := w.pushed(r)
		if err != nil {
			return nil, err
		}
		return imagetree.Read(img)
	}
	if r.output == "" {
		if err := w.build(ctx, request{output: "oci", name: "check"}); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(w.out, "layout")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "tar", "-xf", w.archive(), "-C", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("tar -xf %s: %w\n%s", w.archive(), err, out)
	}
	return imagetree.ReadLayout(dir)
}
