// Package lock keeps what the names in a build file stood for, in a file that
// people review and check in.
//
// A lock file has a line for each image, git repository and URL that the build
// file names without saying what it must be: its identifier, as source policies
// have it, and a digest or commit. Lines are sorted, so that a change is a small
// difference.
//
//	f, err := lock.Parse(data)
//	d, err := f.Find("docker-image://docker.io/library/alpine:3.20")
package lock

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
)

// Limit bounds a lock file, in bytes.
const Limit = 8 << 20

// header is the first line; it names the version of the format.
const header = "# strake lock file 1. Written by strake lock; strake build --locked keeps to it."

const magic = "# strake lock file "

// File is a lock file.
type File struct{ pins map[string]string }

// New returns an empty file.
func New() *File { return &File{pins: map[string]string{}} }

// MissingError tells that a lock file has no line for a source.
type MissingError struct{ Identifier string }

// Error names the source.
func (e *MissingError) Error() string { return fmt.Sprintf("%s is not in the lock file", e.Identifier) }

// Parse reads a lock file.
func Parse(data []byte) (*File, error) {
	first, _, _ := strings.Cut(string(data), "\n")
	version, ok := strings.CutPrefix(first, magic)
	if !ok {
		return nil, errors.New("line 1: not a lock file; strake lock writes one")
	}
	if version, _, _ = strings.Cut(version, "."); version != "1" {
		return nil, fmt.Errorf("line 1: version %q is not supported; this strake knows version 1", version)
	}
	f := New()
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.Contains(fields[0], "://") {
			return nil, fmt.Errorf("line %d: it is not of the form SOURCE DIGEST: %.80q", n, line)
		}
		if err := f.Add(fields[0], fields[1]); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return f, nil
}

// Add pins a source. Two digests for one source are an error.
func (f *File) Add(identifier, pin string) error {
	if strings.HasPrefix(identifier, policy.SchemeGit) {
		if !plan.IsCommit(pin) {
			return fmt.Errorf("%s: %q is not a commit", identifier, pin)
		}
	} else if err := digest.Digest(pin).Validate(); err != nil {
		return fmt.Errorf("%s: %q: %w", identifier, pin, err)
	}
	if old, ok := f.pins[identifier]; ok && old != pin {
		return fmt.Errorf("%s is both %s and %s", identifier, old, pin)
	}
	f.pins[identifier] = pin
	return nil
}

// Find returns the pin of a source, or a *MissingError.
func (f *File) Find(identifier string) (string, error) {
	if pin, ok := f.pins[identifier]; ok {
		return pin, nil
	}
	return "", &MissingError{identifier}
}

// Bytes is the file.
func (f *File) Bytes() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, header)
	for _, id := range slices.Sorted(maps.Keys(f.pins)) {
		fmt.Fprintln(&b, id, f.pins[id])
	}
	return b.Bytes()
}

// Diff tells in lines how g differs from f, for people; nil if it doesn't.
func (f *File) Diff(g *File) []string {
	var out []string
	all := maps.Clone(f.pins)
	maps.Copy(all, g.pins)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		was, had := f.pins[id]
		is, has := g.pins[id]
		if had && (!has || was != is) {
			out = append(out, "- "+id+" "+was)
		}
		if has && (!had || was != is) {
			out = append(out, "+ "+id+" "+is)
		}
	}
	return out
}

// Identifier names a Git or HTTP op in lock files, without user, password and the
// directory in a repository; empty for an op that needs no pin: others, and
// those that say themselves what they must be.
func Identifier(op plan.Op) string {
	switch op := op.(type) {
	case *plan.Git:
		if plan.IsCommit(op.Ref) {
			return ""
		}
		whole := *op
		whole.Subdir = ""
		return policy.GitIdentifier(&whole)
	case *plan.HTTP:
		if op.Checksum != "" {
			return ""
		}
		u, err := url.Parse(op.URL)
		if err != nil {
			return op.URL
		}
		u.User = nil
		return u.String()
	}
	return ""
}

// Image names an image in lock files; empty for a reference with a digest.
func Image(ref string) string {
	if strings.Contains(ref, "@") {
		return ""
	}
	return policy.SchemeImage + ref
}

// Pin has the Git and HTTP steps of a plan, which nobody has run, be what the
// file says. The error of a step that it does not name has the step's place.
func (f *File) Pin(b *plan.Build) error {
	return Each(b, func(s *plan.Step) error {
		id := Identifier(s.Op)
		if id == "" {
			return nil
		}
		pin, err := f.Find(id)
		if err == nil {
			s.Op, err = pinned(s.Op, pin)
		}
		if err != nil && s.Source != nil {
			return &plan.Error{Source: s.Source, Err: err}
		}
		return err
	})
}

func pinned(op plan.Op, pin string) (plan.Op, error) {
	switch op := op.(type) {
	case *plan.Git:
		if !strings.HasPrefix(pin, op.Checksum) {
			return nil, fmt.Errorf("the build file wants the commit %s, the lock file has %s", op.Checksum, pin)
		}
		p := *op
		p.Pin = pin
		return &p, nil
	case *plan.HTTP:
		p := *op
		p.Pin = digest.Digest(pin)
		return &p, nil
	}
	return op, nil
}

// Each calls fn for each step that the targets of a plan need.
func Each(b *plan.Build, fn func(*plan.Step) error) error {
	var steps []*plan.Step
	for _, t := range b.Targets {
		steps = append(steps, t.Step)
	}
	return plan.Walk(fn, steps...)
}
