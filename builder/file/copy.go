package file

import (
	"context"
	"fmt"
	"maps"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// copier is a Copy with what was worked out once for all its sources.
type copier struct {
	*applier
	c    *plan.Copy
	in   Input
	own  *ids // nil: as in the source
	mode chmod
}

func (a *applier) copy(c *plan.Copy) error {
	if c.Input < 1 || c.Input >= len(a.inputs) {
		return fmt.Errorf("copy from input %d of %d", c.Input, len(a.inputs))
	}
	k := &copier{applier: a, c: c, in: a.inputs[c.Input]}
	if c.Owner != nil {
		own, err := resolveOwner(a.ctx, a.base, c.Owner)
		if err != nil {
			return err
		}
		k.own = &own
	}
	var err error
	if k.mode, err = parseMode(c.Mode); err != nil {
		return err
	}
	matches, err := find(a.ctx, k.in, c)
	if err != nil {
		return err
	}
	if !c.CreateParents {
		p, err := a.tree.resolve(c.Dest)
		if err != nil {
			return err
		}
		if dir, err := a.tree.lookup(path.Dir(p)); err != nil || dir == nil {
			if err == nil {
				err = fmt.Errorf("cannot copy to %s: there is no directory %s", c.Dest, abs(path.Dir(p)))
			}
			return err
		}
	}
	for _, m := range matches {
		if c.Unpack {
			if ok, err := k.unpack(m); err != nil {
				return fmt.Errorf("unpack %s: %w", abs(m.entry.Path), err)
			} else if ok {
				continue
			}
		}
		if err := k.one(m); err != nil {
			return err
		}
	}
	return nil
}

// newDirs are the attributes of directories made on the way to the destination.
func (k *copier) newDirs() layers.Entry {
	var own ids
	if k.own != nil {
		own = *k.own
	}
	mode := uint32(0o755)
	if k.mode.octal {
		mode = k.mode.bits & 0o777
	}
	return dirAttr(mode, own)
}

func dirAttr(mode uint32, own ids) layers.Entry {
	return layers.Entry{Type: layers.Dir, Mode: mode, UID: own.uid, GID: own.gid, ModTime: layers.DefaultModTime}
}

// one copies one source. The order in which directories are made and looked at
// is BuildKit's, since it decides what counts as being there already.
func (k *copier) one(m match) error {
	t := k.tree
	before := k.c.Dest
	if !isDirPath(before) {
		before = path.Dir(path.Clean("/" + before))
	}
	dir, err := t.resolve(before)
	if err != nil {
		return err
	}
	if err := t.mkdirAll(dir, k.newDirs(), k.own != nil); err != nil {
		return err
	}
	dst, err := t.resolve(k.c.Dest)
	if err != nil {
		return err
	}
	there, err := t.lookup(dst)
	if err != nil {
		return err
	}
	isDir := m.entry.Type == layers.Dir
	contents := isDir && k.c.ContentsOnly
	switch {
	case there == nil:
	case isDir && !k.c.ContentsOnly, !isDir && there.entry.Type == layers.Dir:
		dst = clean(join(dst, m.name))
	}
	parent := path.Dir(dst)
	if contents && there == nil {
		parent = dst
	}
	if err := t.mkdirAll(parent, k.newDirs(), k.own != nil); err != nil {
		return err
	}
	links := map[linkID]*linked{}
	n := 0
	return walk(k.ctx, k.in, k.c, m, func(it *item) error {
		if n++; n%4096 == 0 && k.ctx.Err() != nil {
			return context.Cause(k.ctx)
		}
		return k.item(it, dst, links)
	})
}

// isDirPath reports whether a destination is a directory as written.
func isDirPath(p string) bool { return strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") }

func (k *copier) item(it *item, dst string, links map[linkID]*linked) error {
	p := dst
	if it.rel != "." {
		p = join(dst, it.rel)
	}
	n, err := k.tree.walk(p)
	if err != nil {
		return err
	}
	there := n
	if n != nil && n.entry.Type == 0 {
		there = nil
	}
	if it.entry.Type == layers.Dir {
		switch {
		case there == nil:
			return n.set(p, k.attributes(*it.entry))
		case there.entry.Type != layers.Dir:
			return fmt.Errorf("cannot copy to non-directory: %s (%s is a directory in the source)", abs(p), abs(it.entry.Path))
		case it.rel == ".":
			// The destination itself stays as it is.
			return k.tree.touch(p)
		case it.parent:
			e := there.entry
			e.Mode = it.entry.Mode
			return n.set(p, e)
		}
		e := k.attributes(*it.entry)
		if len(there.entry.Xattrs) > 0 {
			all := maps.Clone(there.entry.Xattrs)
			maps.Copy(all, e.Xattrs)
			e.Xattrs = all
		}
		return n.set(p, e)
	}
	if there != nil && there.entry.Type == layers.Dir {
		return fmt.Errorf("cannot replace to directory %s with file (%s)", abs(p), abs(it.entry.Path))
	}
	if err := n.set(p, k.attributes(*it.entry)); err != nil {
		return err
	}
	if it.link != (linkID{}) {
		l := links[it.link]
		if l == nil {
			l = &linked{}
			links[it.link] = l
		}
		n.link = l
	}
	return nil
}

// attributes are those that the copy of an entry has.
func (k *copier) attributes(src layers.Entry) layers.Entry {
	e := layers.Entry{
		Type: src.Type, Mode: src.Mode, Link: src.Link, Major: src.Major, Minor: src.Minor,
		Xattrs: src.Xattrs, ModTime: layers.DefaultModTime,
	}
	switch {
	case k.own != nil:
		e.UID, e.GID = k.own.uid, k.own.gid
	case k.in.Owned:
		e.UID, e.GID = src.UID, src.GID
	}
	if e.Type != layers.Symlink {
		e.Mode = k.mode.apply(src.Mode, src.Type == layers.Dir)
	}
	if e.Type != layers.Regular {
		return e
	}
	e.Size = src.Size
	if k.in.Owned {
		e.ModTime = time.Time{}
	}
	switch {
	case src.Inline:
		e.Data, e.Inline, e.Digest = src.Data, true, src.Digest
	case src.Size == 0:
		e.Inline, e.Digest = true, digest.FromBytes(nil)
	default:
		e.Digest = src.Digest
		e.Origin = layers.Origin{Input: k.c.Input, Path: src.Path}
	}
	return e
}

// digests fills in the digests of files that come from inputs, in parallel.
func (a *applier) digests(entries []layers.Entry) error {
	byInput := map[int][]int{}
	for i, e := range entries {
		if e.Type == layers.Regular && e.Digest == "" {
			if e.Inline {
				entries[i].Digest = digest.FromBytes(e.Data)
				continue
			}
			byInput[e.Origin.Input] = append(byInput[e.Origin.Input], i)
		}
	}
	for input, indexes := range byInput {
		tree := a.inputs[input].tree()
		err := digestAll(a.ctx, tree, len(indexes), func(i int) string { return entries[indexes[i]].Origin.Path },
			func(i int, d digest.Digest) { entries[indexes[i]].Digest = d })
		if err != nil {
			return err
		}
	}
	return nil
}

// digestAll calls set with the digest of each of n files.
func digestAll(ctx context.Context, tree Tree, n int, at func(int) string, set func(int, digest.Digest)) error {
	if t, ok := tree.(interface {
		Digests(context.Context, []string) ([]digest.Digest, error)
	}); ok && n > 0 {
		paths := make([]string, n)
		for i := range paths {
			paths[i] = at(i)
		}
		digests, err := t.Digests(ctx, paths)
		for i, d := range digests {
			set(i, d)
		}
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	workers := min(runtime.GOMAXPROCS(0), n)
	for w := range workers {
		g.Go(func() error {
			for i := w; i < n; i += workers {
				d, err := tree.Digest(ctx, at(i))
				if err != nil {
					return err
				}
				set(i, d)
			}
			return nil
		})
	}
	return g.Wait()
}
