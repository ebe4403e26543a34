package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/builder/source/gitsource"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/parser/ignore"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/state"
)

// inputs are the files of a build: the build file and the contexts.
type inputs struct {
	name       string // of the build file
	dockerfile []byte
	exclude    []string
	ignoreFile string
	// path is the build file's, of the user's directories; empty if it is of
	// none of them.
	path     string
	contexts map[string]parser.Context
	locals   map[string]builder.Local
	layouts  map[string]*image.Layout // by directory
	// changed tells when the main context was changed last; the zero time if
	// that is not known.
	changed func(context.Context) (time.Time, error)
	closers []func() error
	// remote is where the main context was fetched from, a Git or HTTP op,
	// and remoteID the commit or digest; nil if it is a directory.
	remote   plan.Op
	remoteID string
	// dir is the main context's directory, of the user.
	dir string
}

func (in *inputs) close() error {
	var errs []error
	for _, f := range slices.Backward(in.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// maxDockerfile is more than any build file has: the parser says where the
// bound is.
const maxDockerfile = 32 << 20

// checkReferences refuses what can't be read.
func checkReferences(contextArg, file string) error {
	if contextArg == "-" && file == "-" {
		return usagef("stdin can't be both the build file and the context")
	}
	if isURL(file) {
		return usagef("-f %s: a build file is not fetched; download it", file)
	}
	return nil
}

// openInputs reads the build file and opens the contexts. Nothing is walked.
// fetch gets a context that is a URL.
func openInputs(ctx context.Context, o buildOptions, arg string, index *source.Index, s *store, e *env, fetch func(in *inputs, mayBeFile bool) (string, error)) (_ *inputs, err error) {
	in := &inputs{contexts: map[string]parser.Context{}, locals: map[string]builder.Local{}, layouts: map[string]*image.Layout{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	dir := arg
	switch {
	case arg == "-":
		if dir, err = in.fromStdin(ctx, s, e, o.file == ""); err != nil {
			return nil, err
		}
	case isURL(arg):
		if dir, err = fetch(in, o.file == ""); err != nil {
			return nil, err
		}
	default:
		if err := checkContext(arg); err != nil {
			return nil, err
		}
		in.dir = arg
	}
	if in.dockerfile == nil {
		if err := in.readDockerfile(o.file, dir, dir != arg, e.stdin); err != nil {
			return nil, err
		}
	}
	if err := in.addContext("context", dir, index); err != nil {
		return nil, err
	}
	if in.changed == nil {
		in.changed = func(ctx context.Context) (time.Time, error) {
			git := gitsource.Client{Env: e.gitEnv()}
			if at := git.HeadTime(ctx, dir); !at.IsZero() {
				return at, nil
			}
			return in.locals["context"].Dir.Newest()
		}
	}
	for _, c := range o.contexts {
		name, value, err := splitPair("build-context", c)
		if err != nil {
			return nil, err
		}
		if err := in.addNamed(name, value, index); err != nil {
			return nil, err
		}
	}
	return in, nil
}

func checkContext(dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("unable to prepare context: path %q not found", dir)
	case err != nil:
		return fmt.Errorf("unable to prepare context: %w", err)
	case !fi.IsDir():
		return fmt.Errorf("unable to prepare context: path %q is not a directory; a build file is given by -f", dir)
	}
	return nil
}

// readDockerfile reads the build file that -f or the context has, and finds out
// which ignore file goes with it.
func (in *inputs) readDockerfile(file, dir string, archive bool, stdin io.Reader) error {
	in.ignoreFile = filepath.Join(dir, ".dockerignore")
	if file == "-" {
		in.name = "Dockerfile"
		data, err := io.ReadAll(io.LimitReader(stdin, maxDockerfile))
		if err != nil {
			return fmt.Errorf("read the build file from stdin: %w", err)
		}
		in.dockerfile = data
		return in.readIgnore(openFile)
	}
	open, candidates := openFile, []string{file}
	if file == "" {
		candidates = []string{filepath.Join(dir, "Dockerfile"), filepath.Join(dir, "dockerfile")}
	}
	if archive {
		// Its links are others' work: none of them leads out of it.
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		open, in.ignoreFile = root.Open, ".dockerignore"
		candidates = []string{"Dockerfile", "dockerfile"}
		if file != "" {
			candidates = []string{strings.TrimPrefix(path.Clean("/"+file), "/")}
		}
	}
	var f *os.File
	var name string
	var err error
	for _, name = range candidates {
		if f, err = open(name); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && archive:
		return fmt.Errorf("there is no %s in the context; name another build file with -f", candidates[0])
	case errors.Is(err, fs.ErrNotExist) && file == "":
		return fmt.Errorf("there is no Dockerfile: looked for %s; name another with -f", strings.Join(candidates, " and "))
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no build file %s (it is looked for from the current directory, not from the context)", file)
	case err != nil:
		return fmt.Errorf("read the build file: %w", err)
	}
	defer f.Close()
	if in.dockerfile, err = io.ReadAll(io.LimitReader(f, maxDockerfile)); err != nil {
		return fmt.Errorf("read the build file: %w", err)
	}
	in.name = filepath.Base(name)
	if !archive {
		in.path = name
	}
	if file != "" && !archive {
		in.name = file
	}
	own := name + ".dockerignore"
	if g, err := open(own); err == nil {
		g.Close()
		in.ignoreFile = own
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the ignore file: %w", err)
	}
	return in.readIgnore(open)
}

// openFile opens a file that may be a pipe, and doesn't wait for its writer then.
func openFile(name string) (*os.File, error) {
	if st, err := os.Stat(name); err == nil && st.Mode()&fs.ModeNamedPipe != 0 && strings.HasSuffix(name, ".dockerignore") {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	return os.Open(name)
}

func (in *inputs) readIgnore(open func(string) (*os.File, error)) (err error) {
	if in.exclude, err = readIgnore(in.ignoreFile, open); in.exclude == nil {
		in.ignoreFile = ""
	}
	return err
}

// readIgnore reads an ignore file; nil if there is none.
func readIgnore(name string, open func(string) (*os.File, error)) ([]string, error) {
	f, err := open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the ignore file: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("the ignore file %s is not a regular file", name))
	}
	patterns, err := ignore.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return patterns, nil
}

// readAhead returns what begins to read paths of the main context: planning may
// have to wait for registries. What that fails with, the build will, too. stop
// ends it; the context is not closed before.
func (in *inputs) readAhead(ctx context.Context) (read func(paths []string), stop func()) {
	dir := in.locals["context"].Dir
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	read = func(paths []string) {
		reading.Go(func() {
			for i := 0; i < len(paths) && ctx.Err() == nil; i++ {
				_ = dir.Preload(ctx, path.Join(".", path.Join("/", paths[i])))
			}
		})
	}
	return read, func() { cancel(); reading.Wait() }
}

// addContext opens a directory under the name that the plan knows it by.
func (in *inputs) addContext(name, dir string, index *source.Index) error {
	local, close, err := openLocal(dir, in.exclude, in.ignoreFile, index)
	if err != nil {
		return err
	}
	in.locals[name] = local
	in.closers = append(in.closers, close)
	return nil
}

func openLocal(dir string, patterns []string, ignoreFile string, index *source.Index) (builder.Local, func() error, error) {
	o := source.DirOptions{Index: index}
	var why func(string) string
	if len(patterns) > 0 {
		m, err := ignore.New(patterns)
		if err != nil {
			return builder.Local{}, nil, fmt.Errorf("%s: %w", ignoreFile, err)
		}
		o.Ignored = m.Ignored
		why = func(p string) string {
			if rule := m.Rule(strings.TrimPrefix(path.Clean("/"+p), "/")); rule != "" {
				return fmt.Sprintf("excluded by %q in %s", rule, ignoreFile)
			}
			return ""
		}
	}
	d, err := source.OpenDir(dir, o)
	if err != nil {
		return builder.Local{}, nil, err
	}
	return builder.Local{Dir: d, Why: why}, d.Close, nil
}

// fromStdin reads a tar archive into a temporary directory, which it returns;
// or a build file without a context, where that is allowed: an empty directory.
func (in *inputs) fromStdin(ctx context.Context, s *store, e *env, mayBeFile bool) (string, error) {
	if e.isTerminal(e.stdin) {
		return "", usagef("the context - is read from stdin, which is a terminal: pipe a tar archive or a Dockerfile into it")
	}
	dir, err := in.tempDir(s, "context-")
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = e.stdin.Close() }) // ends a read
	defer stop()
	return dir, in.unpack(ctx, e.stdin, dir, "stdin", mayBeFile)
}

// tempDir makes a directory that is gone when the inputs are closed.
func (in *inputs) tempDir(s *store, prefix string) (string, error) {
	dir, err := s.TempDir(prefix)
	if err == nil {
		in.closers = append(in.closers, func() error { return state.RemoveAll(dir) })
	}
	return dir, err
}

// unpack reads a tar archive, compressed or not, into dir; or the build file
// alone, where that is allowed.
func (in *inputs) unpack(ctx context.Context, from io.Reader, dir, name string, mayBeFile bool) error {
	plain, err := compress.NewReader(from)
	if err != nil {
		return fmt.Errorf("read the context from %s: %w", name, err)
	}
	defer plain.Close()
	r := bufio.NewReaderSize(plain, 64<<10)
	head, err := r.Peek(512)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read the context from %s: %w", name, err)
	}
	if isTar(head) {
		newest, err := untar(ctx, dir, r)
		if err != nil {
			return fmt.Errorf("read the context from %s: %w", name, err)
		}
		if in.changed == nil {
			in.changed = func(context.Context) (time.Time, error) { return newest, nil }
		}
		return nil
	}
	if !mayBeFile {
		return fmt.Errorf("read the context from %s: not a tar archive", name)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxDockerfile))
	if err != nil {
		return fmt.Errorf("read the build file from %s: %w", name, err)
	}
	in.name, in.dockerfile = "Dockerfile", data
	return nil
}

// isTar reports whether head begins a tar archive. A block of zeros is the end
// of an empty one.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(append(bytes.Clone(head[:512]), make([]byte, 1024)...))).Next()
	return err == nil || errors.Is(err, io.EOF) && len(bytes.Trim(head, "\x00")) == 0
}

// maxContextFiles bounds the files of a context from stdin.
const maxContextFiles = 10_000_000

// untar unpacks an archive of a context: files, directories and links, nothing
// of which leaves dir. Owners and times mean nothing in a context, but for the
// time of the newest file, which it returns.
func untar(ctx context.Context, dir string, r io.Reader) (newest time.Time, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return newest, err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	buf := make([]byte, 256<<10)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return newest, context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			return newest, nil
		}
		if err != nil {
			return newest, err
		}
		if n == maxContextFiles {
			return newest, fmt.Errorf("more than %d files", n)
		}
		if h.Typeflag == tar.TypeReg && h.ModTime.After(newest) {
			newest = h.ModTime.UTC()
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if err := untarEntry(root, name, h, tr, buf); err != nil {
			return newest, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func untarEntry(root *os.Root, name string, h *tar.Header, r io.Reader, buf []byte) error {
	if d := path.Dir(name); d != "." {
		if err := root.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode).Perm()
	if h.Typeflag == tar.TypeDir {
		err := root.Mkdir(name, 0o755)
		if errors.Is(err, fs.ErrExist) {
			if fi, serr := root.Lstat(name); serr == nil && fi.IsDir() {
				err = nil
			}
		}
		if err != nil {
			return err
		}
		return root.Chmod(name, mode|0o700)
	}
	if fi, err := root.Lstat(name); err == nil && !fi.IsDir() {
		if err := root.Remove(name); err != nil { // the last one of a name counts
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, buf)
		return errors.Join(err, f.Chmod(mode|0o400), f.Close())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("devices and pipes can't be in a context (type %q)", h.Typeflag)
}

func isIP(s string) bool { return net.ParseIP(s) != nil || s == "host-gateway" }
