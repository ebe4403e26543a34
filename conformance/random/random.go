// Package random makes build contexts and Dockerfiles at random, to compare what
// tools make of them. One seed always gives the same input.
//
//	in := random.New(seed)
//	err := in.Write(dir)
//	small := in.Shrink(func(in *random.Input) bool { return stillWrong(in) })
//
// Inputs use all of the language, the odd parts more than people do. Most of
// them can be built; names are few, so that instructions meet what others made.
package random

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Input is what is built.
type Input struct {
	Seed uint64
	// Directives are lines before the first instruction, and Instructions what
	// is below, each with its lines.
	Directives, Instructions []string
	Ignore                   []string // lines of the ignore file
	IgnoreName               string
	Files                    []File // parents first
	Args                     map[string]string
	Labels                   map[string]string
	Target                   string
}

// File is a file of the context.
type File struct {
	Path string
	Type byte // 'd', 'f', 'l', 'h' or 'p': directory, file, symbolic link, hard link, fifo
	Mode uint32
	Data string // content or target
}

// Dockerfile is the text of the build file.
func (in *Input) Dockerfile() string {
	return strings.Join(slices.Concat(in.Directives, in.Instructions), "\n") + "\n"
}

// Write makes the context in the empty directory dir, with the build file in
// it as Dockerfile. Files that can't be made, as others aren't there, are left
// out.
func (in *Input) Write(dir string) error {
	for _, f := range in.Files {
		host := filepath.Join(dir, f.Path)
		var err error
		switch f.Type {
		case 'd':
			err = os.Mkdir(host, 0o755)
		case 'f':
			err = os.WriteFile(host, []byte(f.Data), 0o644)
		case 'l':
			err = os.Symlink(f.Data, host)
		case 'h':
			err = os.Link(filepath.Join(dir, f.Data), host)
		case 'p':
			err = unix.Mkfifo(host, 0o644)
		}
		if err == nil && f.Type != 'l' && f.Type != 'h' {
			err = unix.Chmod(host, f.Mode)
		}
		if err == nil && f.Type == 'f' {
			err = os.Chtimes(host, fileTime, fileTime)
		}
		if err != nil && !os.IsNotExist(err) && !os.IsExist(err) {
			return fmt.Errorf("make a context: %w", err)
		}
	}
	if in.IgnoreName != "" {
		if err := os.WriteFile(filepath.Join(dir, in.IgnoreName), []byte(strings.Join(in.Ignore, "\n")), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(in.Dockerfile()), 0o644)
}

var fileTime = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)

// String shows an input to a person.
func (in *Input) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d target %q args %v labels %v\n-- Dockerfile --\n%s", in.Seed, in.Target, in.Args, in.Labels, in.Dockerfile())
	if in.IgnoreName != "" {
		fmt.Fprintf(&b, "-- %s --\n%s\n", in.IgnoreName, strings.Join(in.Ignore, "\n"))
	}
	b.WriteString("-- context --\n")
	for _, f := range in.Files {
		data := f.Data
		if len(data) > 60 {
			data = fmt.Sprintf("(%d bytes)", len(data))
		}
		fmt.Fprintf(&b, "%c %04o %q %q\n", f.Type, f.Mode, f.Path, data)
	}
	return b.String()
}

// Shrink returns a smaller input for which bad still holds, by leaving out parts
// as long as it does. bad is called some 150 times at most.
func (in *Input) Shrink(bad func(*Input) bool) *Input {
	best, calls := *in, 0
	try := func(change func(*Input)) bool {
		if calls++; calls > 150 {
			return false
		}
		next := best
		change(&next)
		if !bad(&next) {
			return false
		}
		best = next
		return true
	}
	for again := true; again; {
		again = false
		for _, list := range []func(*Input) *[]string{
			func(in *Input) *[]string { return &in.Instructions },
			func(in *Input) *[]string { return &in.Directives },
			func(in *Input) *[]string { return &in.Ignore },
		} {
			for size := len(*list(&best)); size > 0; size /= 2 {
				for i := len(*list(&best)) - size; i >= 0; i -= size {
					if try(func(in *Input) { l := list(in); *l = slices.Delete(slices.Clone(*l), i, min(i+size, len(*l))) }) {
						again = true
					}
				}
			}
		}
		for size := len(best.Files); size > 0; size /= 2 {
			for i := len(best.Files) - size; i >= 0; i -= size {
				if try(func(in *Input) { in.Files = slices.Delete(slices.Clone(in.Files), i, min(i+size, len(in.Files))) }) {
					again = true
				}
			}
		}
		again = again && calls < 150
	}
	if len(best.Ignore) == 0 {
		try(func(in *Input) { in.IgnoreName = "" })
	}
	try(func(in *Input) { in.Target = "" })
	try(func(in *Input) { in.Args = nil })
	try(func(in *Input) { in.Labels = nil })
	return &best
}
