package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/bench/content"
)

// work is what a floor consists of.
type work func(ctx context.Context, w *workspace) error

// timed is work that needs no preparation.
func timed(do work) floorFunc {
	return func(ctx context.Context, w *workspace) (time.Duration, error) {
		syscall.Sync()
		begin := time.Now()
		err := do(ctx, w)
		return time.Since(begin), err
	}
}

// contextFiles is work with n files of a size in bytes.
func contextFiles(n, size int, do work) floorFunc {
	return func(ctx context.Context, w *workspace) (time.Duration, error) {
		if err := w.files(n, size); err != nil {
			return 0, err
		}
		return timed(do)(ctx, w)
	}
}

// step is the step of W4, and then work with what it wrote.
func step(do work) floorFunc {
	return func(ctx context.Context, w *workspace) (time.Duration, error) {
		generate, err := w.generate()
		if err != nil {
			return 0, err
		}
		return timed(func(ctx context.Context, w *workspace) error {
			if err := generate(ctx, w); err != nil {
				return err
			}
			return do(ctx, w)
		})(ctx, w)
	}
}

// generated is work with what the step of W4 wrote before.
func generated(do work) floorFunc {
	return func(ctx context.Context, w *workspace) (time.Duration, error) {
		generate, err := w.generate()
		if err != nil {
			return 0, err
		}
		if err := generate(ctx, w); err != nil {
			return 0, err
		}
		return timed(do)(ctx, w)
	}
}

// generate returns what writes the files of W4's step.
func (w *workspace) generate() (work, error) {
	gen, err := w.genProgram()
	return func(ctx context.Context, w *workspace) error {
		return quietly(exec.CommandContext(ctx, gen, filepath.Join(w.context, "data"), "1024", "1", strconv.Itoa(w.run)))
	}, err
}

func quietly(cmd *exec.Cmd) error {
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, msg)
	}
	return nil
}

// compile is what the steps of W3 run; where warm, with the compiler's cache of
// the program before a file was changed.
func compile(warm bool) floorFunc {
	build := func(ctx context.Context, w *workspace) error {
		for _, args := range [][]string{{"vet", "./..."}, {"build", "-o", filepath.Join(w.out, "app"), "."}} {
			cmd := exec.CommandContext(ctx, "go", args...)
			cmd.Dir = w.context
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOTOOLCHAIN=local", "GOCACHE="+filepath.Join(w.b.dir, "cache"))
			if err := quietly(cmd); err != nil {
				return err
			}
		}
		return nil
	}
	return func(ctx context.Context, w *workspace) (time.Duration, error) {
		if err := w.goFiles(); err != nil {
			return 0, err
		}
		if warm {
			if err := errors.Join(build(ctx, w), w.changeMain()); err != nil {
				return 0, err
			}
		}
		return timed(build)(ctx, w)
	}
}

// walk looks at each file of the context.
func walk(_ context.Context, w *workspace) error {
	return filepath.WalkDir(w.context, func(_ string, d os.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		return err
	})
}

// contents has fn called with each file of the context, in order.
func (w *workspace) contents(fn func(data []byte)) error {
	return filepath.WalkDir(w.context, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fn(data)
		return nil
	})
}

// hash makes one digest of all files.
func hash(_ context.Context, w *workspace) error {
	h := sha256.New()
	return w.contents(func(data []byte) { h.Write(data) })
}

type encoder interface {
	io.WriteCloser
	Reset(io.Writer)
}

// The encoders at strake's levels.
func deflate() (encoder, error)   { return flate.NewWriter(nil, 5) }
func zstandard() (encoder, error) { return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1)) }

// pack compresses all files into one, on all processors.
func pack(newEncoder func() (encoder, error)) work {
	const piece = 1 << 20
	return func(_ context.Context, w *workspace) error {
		f, err := os.Create(filepath.Join(w.out, "packed"))
		if err != nil {
			return err
		}
		defer f.Close()
		var writing sync.Mutex
		var group errgroup.Group
		pieces := make(chan []byte, runtime.NumCPU())
		for range runtime.NumCPU() {
			group.Go(func() error {
				z, err := newEncoder()
				if err != nil {
					return err
				}
				var out bytes.Buffer
				for p := range pieces {
					out.Reset()
					z.Reset(&out)
					_, err1 := z.Write(p)
					err2 := z.Close()
					writing.Lock()
					_, err3 := f.Write(out.Bytes())
					writing.Unlock()
					err = errors.Join(err, err1, err2, err3)
				}
				return err
			})
		}
		var buf []byte
		err = w.contents(func(data []byte) {
			if buf = append(buf, data...); len(buf) >= piece {
				pieces <- buf
				buf = make([]byte, 0, 2*piece)
			}
		})
		pieces <- buf
		close(pieces)
		return errors.Join(err, group.Wait())
	}
}

// hundredSteps starts a hundred programs in namespaces of their own, each in an
// overlay of what those before it left.
func hundredSteps(ctx context.Context, w *workspace) (time.Duration, error) {
	const steps = 100
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	if err := errors.Join(busybox(tw), tw.Close()); err != nil {
		return 0, err
	}
	base := filepath.Join(w.out, "base")
	if err := unpackTar(&archive, base); err != nil {
		return 0, err
	}
	return timed(func(ctx context.Context, w *workspace) error {
		lower := base
		for i := range steps {
			dir := filepath.Join(w.out, strconv.Itoa(i))
			for _, sub := range []string{"", "upper", "work", "root"} {
				if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
					return err
				}
			}
			// Relative names, as a mount's options have an end.
			script := fmt.Sprintf("mount -t overlay -o lowerdir=%s,upperdir=%d/upper,workdir=%d/work overlay %d/root && mount -t proc proc %d/root/proc && exec chroot %d/root sh -c 'echo %d > /f%d'",
				lower, i, i, i, i, i, i, i)
			cmd := exec.CommandContext(ctx, "busybox", "sh", "-c", script)
			cmd.Dir = w.out
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
			if err := quietly(cmd); err != nil {
				return err
			}
			lower = fmt.Sprintf("%d/upper:%s", i, lower)
		}
		return nil
	})(ctx, w)
}

// big is the base of W6.
func (w *workspace) big() (v1.Image, error) {
	ref, err := name.ParseReference(w.b.registry+"/big:latest", name.Insecure)
	if err != nil {
		return nil, err
	}
	return remote.Image(ref)
}

// appendLayer pushes the base of W6 with one more layer.
func appendLayer(ctx context.Context, w *workspace) (time.Duration, error) {
	app := content.Bytes(1<<20, 0xf1004, uint64(w.run))
	return timed(func(_ context.Context, w *workspace) error {
		var archive bytes.Buffer
		tw := tar.NewWriter(&archive)
		if err := errors.Join(writeFile(tw, "app/app", 0o755, app), tw.Close()); err != nil {
			return err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
		if err != nil {
			return err
		}
		img, err := w.big()
		if err != nil {
			return err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return err
		}
		ref, err := name.ParseReference(fmt.Sprintf("%s/floor:%d", w.b.registry, os.Getpid()), name.Insecure)
		if err != nil {
			return err
		}
		return remote.Write(ref, img)
	})(ctx, w)
}

// unpack writes the files of W6's base, layers at once.
func unpack(_ context.Context, w *workspace) error {
	img, err := w.big()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, l := range layers {
		group.Go(func() error {
			packed, err := l.Compressed()
			if err != nil {
				return err
			}
			defer packed.Close()
			z, err := gzip.NewReader(packed)
			if err != nil {
				return err
			}
			return unpackTar(z, filepath.Join(w.out, strconv.Itoa(i)))
		})
	}
	return group.Wait()
}

// unpackTar writes the directories, files and links of an archive.
func unpackTar(r io.Reader, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(filepath.Clean(h.Name), 0o755)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, h.Name)
		case tar.TypeReg:
			var f *os.File
			if f, err = root.OpenFile(h.Name, os.O_CREATE|os.O_WRONLY, h.FileInfo().Mode()); err == nil {
				_, err = io.Copy(f, tr)
				err = errors.Join(err, f.Close())
			}
		}
		if err != nil {
			return err
		}
	}
}

// start starts the smallest Go program there is.
func start(ctx context.Context, w *workspace) (time.Duration, error) {
	path := filepath.Join(w.out, "main.go")
	if err := os.WriteFile(path, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		return 0, err
	}
	program := filepath.Join(w.out, "main")
	if err := quietly(exec.CommandContext(ctx, "go", "build", "-o", program, path)); err != nil {
		return 0, err
	}
	return timed(func(ctx context.Context, _ *workspace) error { return quietly(exec.CommandContext(ctx, program)) })(ctx, w)
}
