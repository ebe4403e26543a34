package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/strake-build/strake/bench/content"
)

// base pushes a base image once and returns its name.
func (b *bench) base(repo string, layers ...func(*tar.Writer) error) (string, error) {
	ref, err := name.ParseReference(b.registry+"/"+repo+":latest", name.Insecure)
	if err != nil {
		return "", err
	}
	if _, err := remote.Head(ref); err == nil {
		return ref.String(), nil
	}
	img := empty.Image
	for _, write := range layers {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		if err := errors.Join(write(tw), tw.Close()); err != nil {
			return "", err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
		if err != nil {
			return "", err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return "", err
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", goarch
	cfg.Config = v1.Config{Env: []string{"PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: []string{"sh"}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, img)
}

// busybox writes a small root file system.
func busybox(tw *tar.Writer) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("base image: %w (Debian: busybox-static)", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "etc", "root", "tmp", "usr", "usr/local", "proc", "sys", "dev"} {
		if err := tw.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := writeFile(tw, "bin/busybox", 0o755, data); err != nil {
		return err
	}
	if err := writeFile(tw, "etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")); err != nil {
		return err
	}
	out, err := exec.Command(path, "--list").Output()
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet == "busybox" {
			continue
		}
		if err := tw.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(tw *tar.Writer, name string, mode int64, data []byte) error {
	if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}

// goToolchain writes the Go toolchain of this machine.
func goToolchain(tw *tar.Writer) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return err
	}
	root := strings.TrimSpace(string(out))
	return filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == "test" || rel == "api" || rel == "doc" || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return tw.WriteHeader(&tar.Header{Name: filepath.Join("usr/local/go", rel) + "/", Typeflag: tar.TypeDir, Mode: 0o755})
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return writeFile(tw, filepath.Join("usr/local/go", rel), int64(info.Mode().Perm()), data)
	})
}

// filler writes files like those of images.
func filler(dir string, files, size int, seed uint64) func(*tar.Writer) error {
	return func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
		for i := range files {
			if err := writeFile(tw, fmt.Sprintf("%s/f%05d", dir, i), 0o644, content.Bytes(size, seed+uint64(i), 1)); err != nil {
				return err
			}
		}
		return nil
	}
}
