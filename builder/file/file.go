// Package file works out what a File op makes: the entries of a new layer, on
// top of a tree and from other trees. It follows Docker's COPY and ADD rules
// and resolves every path inside the trees it is given.
//
// Nothing is copied here. The result is a list of entries whose contents stay
// where they are (see layers.Origin); only what comes out of archives is
// written, to a directory the caller gives.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// Tree is a read-only file system: a *snapshot.View or a *source.Dir, whose
// methods say more.
//
// A tree may also have these methods, which make big copies faster or more
// exact: Preload(ctx, path) error reads the directories below path ahead;
// Digests(ctx, paths) ([]digest.Digest, error) hashes many files in parallel;
// HostPath(path) (string, error) lets hard links be recognised.
type Tree interface {
	Lookup(path string) (layers.Entry, error)
	ReadDir(path string) ([]layers.Entry, error)
	Open(ctx context.Context, path string) (io.ReadCloser, error)
	Digest(ctx context.Context, path string) (digest.Digest, error)
}

// Input is a source of Copy actions.
type Input struct {
	Tree Tree // nil: empty
	// Owned: owners in this tree mean something (it is the tree of an image
	// or stage, not a directory of the user).
	Owned bool
	// Why explains to the user why a path is missing, such as by naming the
	// ignore rule that dropped it; nil is allowed. The path is as Copy.Source
	// or what a symlink there leads to, without a leading slash.
	Why func(path string) string
}

func (in Input) tree() Tree {
	if in.Tree == nil {
		return empty{}
	}
	return in.Tree
}

// missing is the error for a source that is not there.
func (in Input) missing(p string) error {
	err := fmt.Errorf("%q: %w", "/"+strings.TrimPrefix(p, "/"), ErrNotFound)
	if in.Why != nil {
		if why := in.Why(clean(p)); why != "" {
			err = fmt.Errorf("%w (%s)", err, why)
		}
	}
	return err
}

// ErrNotFound: a source of a Copy, or the path of a Remove, is not there.
var ErrNotFound = errors.New("not found")

// Apply returns the entries of the layer that op makes, in the order of
// layers.ComparePaths, with the directories that lead to them. base is the tree
// it starts from, nil if it is empty or not needed (NeedsBase). inputs are
// indexed like the step's; [0] is not used. stage returns an empty directory
// for contents that come out of archives. All Regular entries have digests.
//
// Entries have layers.DefaultModTime, but files from an Owned input have no
// time, so that they can be linked out of the layer they are in.
func Apply(ctx context.Context, op *plan.File, base Tree, inputs []Input, stage func() (string, error)) ([]layers.Entry, error) {
	a := &applier{ctx: ctx, tree: newOverlay(base), base: base, inputs: inputs, stage: stager{dir: stage}}
	for _, action := range op.Actions {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := a.apply(action); err != nil {
			return nil, err
		}
	}
	entries := a.tree.entries()
	if err := a.digests(entries); err != nil {
		return nil, err
	}
	return entries, nil
}

// applier is a run of Apply.
type applier struct {
	ctx    context.Context
	tree   *overlay
	base   Tree
	inputs []Input
	stage  stager
}

func (a *applier) apply(action plan.Action) error {
	switch action := action.(type) {
	case *plan.Copy:
		return a.copy(action)
	case *plan.Mkdir:
		return a.mkdir(action)
	case *plan.Mkfile:
		return a.mkfile(action)
	case *plan.Symlink:
		return a.symlink(action)
	case *plan.Remove:
		return a.remove(action)
	}
	return fmt.Errorf("unknown file action %T", action)
}

func (a *applier) mkdir(m *plan.Mkdir) error {
	own, err := resolveOwner(a.ctx, a.base, m.Owner)
	if err != nil {
		return err
	}
	p, err := a.tree.resolve(m.Path)
	if err != nil {
		return err
	}
	attr := dirAttr(m.Mode&0o777, own)
	if m.Parents {
		return a.tree.mkdirAll(p, attr, m.Owner != nil)
	}
	n, err := a.tree.lookup(p)
	if err != nil || n != nil {
		return err // one that is there is left alone, as BuildKit does
	}
	return a.create(p, attr, m.Owner != nil)
}

func (a *applier) mkfile(m *plan.Mkfile) error {
	own, err := resolveOwner(a.ctx, a.base, m.Owner)
	if err != nil {
		return err
	}
	p, err := a.tree.resolve(m.Path)
	if err != nil {
		return err
	}
	n, err := a.tree.lookup(p)
	if err != nil {
		return err
	}
	if n != nil && n.entry.Type == layers.Dir {
		return fmt.Errorf("cannot make the file %s: it is a directory", abs(p))
	}
	return a.create(p, layers.Entry{
		Type: layers.Regular, Mode: m.Mode & 0o777, UID: own.uid, GID: own.gid, Size: int64(len(m.Data)),
		Data: m.Data, Inline: true, Digest: digest.FromBytes(m.Data), ModTime: layers.DefaultModTime,
	}, m.Owner != nil)
}

func (a *applier) symlink(s *plan.Symlink) error {
	own, err := resolveOwner(a.ctx, a.base, s.Owner)
	if err != nil {
		return err
	}
	p, err := a.tree.resolve(s.Path)
	if err != nil {
		return err
	}
	n, err := a.tree.lookup(p)
	if err != nil {
		return err
	}
	if n != nil {
		return fmt.Errorf("cannot make the symlink %s: it exists", abs(p))
	}
	return a.create(p, layers.Entry{Type: layers.Symlink, Mode: 0o777, UID: own.uid, GID: own.gid, Link: s.Target, ModTime: layers.DefaultModTime}, s.Owner != nil)
}

// create puts an entry into a directory that must exist; owned: its owner is
// given.
func (a *applier) create(p string, e layers.Entry, owned bool) error {
	dir, err := a.tree.lookup(path.Dir(p))
	if err != nil {
		return err
	}
	if dir == nil {
		return fmt.Errorf("%s: there is no directory %s", abs(p), abs(path.Dir(p)))
	}
	return a.tree.set(p, inherit(dir.entry, e, owned))
}

func (a *applier) remove(r *plan.Remove) error {
	paths := []string{clean(r.Path)}
	if r.Wildcard {
		prefix, pattern := splitPattern(r.Path)
		if pattern != "" {
			dir, _, err := resolve(a.tree, "", prefix, true)
			if err != nil {
				return err
			}
			if paths, err = glob(a.ctx, a.tree, dir, pattern); err != nil {
				return err
			}
		}
	}
	for _, p := range paths {
		if p == "." {
			return errors.New("cannot remove the root directory")
		}
		dir, err := a.tree.resolve(path.Dir(p))
		if err != nil {
			return err
		}
		p = join(dir, path.Base(p))
		n, err := a.tree.lookup(p)
		if err != nil {
			return err
		}
		if n == nil {
			if !r.AllowMissing {
				return fmt.Errorf("%q: %w", abs(p), ErrNotFound)
			}
			continue
		}
		a.tree.remove(p)
	}
	return nil
}

// abs is a path as people write it.
func abs(p string) string {
	if p == "." {
		return "/"
	}
	return "/" + p
}

// clean is a path as trees want it: relative to the root and without "..".
func clean(p string) string {
	p = path.Clean("/" + p)[1:]
	if p == "" {
		return "."
	}
	return p
}

func join(dir, name string) string {
	if dir == "." || dir == "" {
		return name
	}
	return dir + "/" + name
}
