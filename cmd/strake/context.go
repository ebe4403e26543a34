package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/parser/ignore"
	"github.com/strake-build/strake/progress"
)

func newContext(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context COMMAND",
		Short: "Look at what a build context holds",
		Args:  nArgs(0, 0, ""),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	ls := newContextLs(e)
	ls.DisableFlagsInUseLine = true
	cmd.AddCommand(ls)
	return cmd
}

type contextOptions struct {
	file, why, format string
}

func newContextLs(e *env) *cobra.Command {
	var o contextOptions
	cmd := &cobra.Command{
		Use:   "ls [OPTIONS] [CONTEXT]",
		Short: "List the files of a build context, or tell why one is in it or not",
		Long: `List the files that a build context (default the current directory) holds: what the
ignore file leaves of the directory. That is Dockerfile.dockerignore beside the build
file, or else .dockerignore in the context.`,
		Example: "  strake context ls\n  strake context ls --why src/main.o .\n  strake context ls -f docker/Dockerfile --format json .",
		Args:    nArgs(0, 1, "one directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			return runContextLs(cmd.Context(), o, dir, e)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "the build file whose ignore file counts (default CONTEXT/Dockerfile)")
	f.StringVar(&o.why, "why", "", "tell which rule keeps or drops a `PATH`, and list nothing")
	f.StringVar(&o.format, "format", "text", "text or json")
	return cmd
}

// contextEntry is a file of a context.
type contextEntry struct {
	Path string `json:"path"`
	Type string `json:"type"`
	Mode string `json:"mode"`
	Size int64  `json:"size"`
	Link string `json:"link,omitempty"`
}

func runContextLs(ctx context.Context, o contextOptions, dir string, e *env) (err error) {
	if o.format != "text" && o.format != "json" {
		return usagef("--format %s: it is text or json", o.format)
	}
	if err := checkContext(dir); err != nil {
		return err
	}
	in, err := ignoreOf(dir, o.file)
	if err != nil {
		return err
	}
	local, closeDir, err := openLocal(dir, in.exclude, in.ignoreFile, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeDir()) }()
	if o.why != "" {
		return whyInContext(in, local.Dir, dir, o.why, e)
	}
	w := bufio.NewWriter(e.stdout)
	files, bytes := 0, int64(0)
	if err := local.Dir.Preload(ctx, "."); err != nil {
		return err
	}
	err = walkContext(ctx, local.Dir, ".", func(en layers.Entry) error {
		if en.Type == layers.Regular {
			files++
			bytes += en.Size
		}
		c := contextEntry{Path: en.Path, Type: typeOf(en.Type), Mode: fmt.Sprintf("%04o", en.Mode), Size: en.Size, Link: en.Link}
		if o.format == "json" {
			return json.NewEncoder(w).Encode(c)
		}
		name := progress.Clean(c.Path)
		switch {
		case c.Link != "":
			name += " -> " + progress.Clean(c.Link)
		case en.Type == layers.Dir:
			name += "/"
		}
		_, err := fmt.Fprintf(w, "%s %8s  %s\n", c.Mode, progress.Bytes(c.Size), name)
		return err
	})
	if err != nil {
		return err
	}
	if o.format == "text" {
		fmt.Fprintf(w, "%s, %s\n", plural(files, "file"), progress.Bytes(bytes))
	}
	return w.Flush()
}

func typeOf(t layers.Type) string {
	switch t {
	case layers.Regular:
		return "file"
	case layers.Dir:
		return "directory"
	case layers.Symlink:
		return "symlink"
	}
	return "other"
}

func walkContext(ctx context.Context, d *source.Dir, dir string, fn func(layers.Entry) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	entries, err := d.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, en := range entries {
		if err := fn(en); err != nil {
			return err
		}
		if en.Type == layers.Dir {
			if err := walkContext(ctx, d, en.Path, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// ignoreOf reads the ignore file that goes with a build file. A context has one
// whether or not it has a build file.
func ignoreOf(dir, file string) (*inputs, error) {
	in := &inputs{}
	if file == "" {
		for _, name := range []string{"Dockerfile", "dockerfile"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				return in, in.readDockerfile("", dir, false, strings.NewReader(""))
			}
		}
		in.ignoreFile = filepath.Join(dir, ".dockerignore")
		return in, in.readIgnore(openFile)
	}
	return in, in.readDockerfile(file, dir, false, strings.NewReader(""))
}

// whyInContext tells which rule decided about a path.
func whyInContext(in *inputs, d *source.Dir, dir, name string, e *env) error {
	clean := strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(name)), "/")
	_, err := d.Lookup(clean)
	held := err == nil
	rule, keep := "", false
	if len(in.exclude) > 0 {
		m, err := ignore.New(in.exclude)
		if err != nil {
			return fmt.Errorf("%s: %w", in.ignoreFile, err)
		}
		rule, keep = m.Decided(clean)
	}
	_, lerr := os.Lstat(filepath.Join(dir, filepath.FromSlash(clean)))
	there := ""
	if errors.Is(lerr, fs.ErrNotExist) {
		there = "; there is no such file now"
	}
	name = cleaned(name)
	switch {
	case held && rule != "" && !keep:
		return e.printf("%s: kept, though %q in %s drops it: something below it is kept\n", name, rule, in.ignoreFile)
	case rule != "" && keep:
		return e.printf("%s: kept by %q in %s%s\n", name, rule, in.ignoreFile, there)
	case rule != "":
		return e.printf("%s: dropped by %q in %s%s\n", name, rule, in.ignoreFile, there)
	case in.ignoreFile == "":
		return e.printf("%s: kept, there is no ignore file%s\n", name, there)
	}
	return e.printf("%s: kept, no rule in %s matches it%s\n", name, in.ignoreFile, there)
}
