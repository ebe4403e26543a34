package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// match is a source of a Copy: a path that its pattern matched.
type match struct {
	// name is what the source is called in a directory that it is copied to.
	name string
	// entry is what is there, with the path that symlinks led to.
	entry layers.Entry
}

// find returns the sources of a Copy.
func find(ctx context.Context, in Input, c *plan.Copy) ([]match, error) {
	tree := in.tree()
	for _, p := range c.Required {
		_, e, err := resolve(tree, "", clean(p), c.FollowLinks)
		if err != nil {
			return nil, err
		}
		if e.Type == 0 {
			return nil, in.missing(p)
		}
	}
	paths := []string{c.Source}
	if c.Wildcard {
		if prefix, pattern := splitPattern(c.Source); pattern != "" {
			dir, e, err := resolve(tree, "", prefix, c.FollowLinks)
			if err != nil {
				return nil, err
			}
			if e.Type == 0 {
				return nil, in.missing(prefix)
			}
			if paths, err = glob(ctx, tree, dir, pattern); err != nil {
				return nil, err
			}
			if len(paths) == 0 && !c.AllowNoMatch {
				return nil, in.missing(c.Source)
			}
		}
	}
	matches := make([]match, 0, len(paths))
	for _, p := range paths {
		to, e, err := resolve(tree, "", clean(p), c.FollowLinks)
		if err != nil {
			return nil, err
		}
		if e.Type == 0 {
			if to = abs(to); clean(to) != clean(p) {
				return nil, in.missing(to[1:]) // where the link at p leads
			}
			return nil, in.missing(p)
		}
		e.Path = to
		name := path.Base(clean(p))
		if strings.HasSuffix(p, "/.") && !c.Wildcard {
			name = "." // "dir/." is what is in it, as long as it is no pattern
		}
		matches = append(matches, match{name, e})
	}
	return matches, nil
}

// splitPattern splits off the components of a path before the first one that is
// a pattern; pattern is empty if none is.
func splitPattern(p string) (prefix, pattern string) {
	names := split(clean(p))
	i := slices.IndexFunc(names, plan.HasWildcards)
	if i < 0 {
		return p, ""
	}
	return strings.Join(names[:i], "/"), strings.Join(names[i:], "/")
}

// glob returns the paths below dir that pattern matches, in the order of a
// walk. It goes through no symlinks.
func glob(ctx context.Context, tree interface {
	Lookup(string) (layers.Entry, error)
	ReadDir(string) ([]layers.Entry, error)
}, dir, pattern string) ([]string, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("%s: %w", pattern, err)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	pattern, rest, more := strings.Cut(pattern, "/")
	e, err := tree.Lookup(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && e.Type != layers.Dir {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries, err := tree.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if ok, _ := path.Match(pattern, path.Base(e.Path)); !ok {
			continue
		}
		if !more {
			found = append(found, e.Path)
			continue
		}
		if e.Type == layers.Dir {
			below, err := glob(ctx, tree, e.Path, rest)
			if err != nil {
				return nil, err
			}
			found = append(found, below...)
		}
	}
	return found, nil
}

// item is a file that a Copy takes from a match.
type item struct {
	// rel is the path below the match, "." for the match itself.
	rel   string
	entry *layers.Entry
	// parent: the directory is there only for what is below it.
	parent bool
	// link tells which file it is, if it has several names.
	link linkID
}

// linkID tells one file from another; the zero value of a file that has one
// name.
type linkID struct {
	place string // the layer: files of different layers are different
	ino   uint64
}

// walker lists what a Copy takes from a match.
type walker struct {
	ctx              context.Context
	tree             Tree
	include, exclude *patternmatcher.PatternMatcher
	links            bool // look for hard links
	emit             func(*item) error
	// parents are the directories above the current path.
	parents []parent
}

type parent struct {
	item  item
	taken bool
}

// walk calls emit for the files that c takes from a match, in the order of a
// walk. The item is good until emit returns.
func walk(ctx context.Context, in Input, c *plan.Copy, m match, emit func(*item) error) error {
	w := walker{ctx: ctx, tree: in.tree(), links: in.Owned, emit: emit}
	var err error
	if len(c.Include) > 0 {
		if w.include, err = patternmatcher.New(slices.Clone(c.Include)); err != nil {
			return fmt.Errorf("include %q: %w", c.Include, err)
		}
	}
	if len(c.Exclude) > 0 {
		if w.exclude, err = patternmatcher.New(slices.Clone(c.Exclude)); err != nil {
			return fmt.Errorf("exclude %q: %w", c.Exclude, err)
		}
	}
	if m.entry.Type == layers.Dir && w.include == nil {
		defer readAhead(ctx, w.tree, m.entry.Path)()
	}
	return w.visit(&m.entry, ".", patternmatcher.MatchInfo{}, patternmatcher.MatchInfo{})
}

// readAhead begins to read the directories below p, if the tree can do that in
// parallel. What it fails with, a walk does too.
func readAhead(ctx context.Context, tree Tree, p string) (stop func()) {
	t, ok := tree.(interface {
		Preload(context.Context, string) error
	})
	if !ok {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = t.Preload(ctx, p) })
	return func() { cancel(); wg.Wait() }
}

func (w *walker) visit(e *layers.Entry, rel string, inInfo, exInfo patternmatcher.MatchInfo) error {
	take, excluded := true, false
	if rel != "." {
		var err error
		if w.include != nil {
			if take, inInfo, err = w.include.MatchesUsingParentResults(rel, inInfo); err != nil {
				return err
			}
		}
		if w.exclude != nil {
			if excluded, exInfo, err = w.exclude.MatchesUsingParentResults(rel, exInfo); err != nil {
				return err
			}
		}
		take = take && !excluded
	}
	it := item{rel: rel, entry: e}
	if take {
		for i := range w.parents {
			if p := &w.parents[i]; !p.taken {
				p.item.parent, p.taken = true, true
				if err := w.emit(&p.item); err != nil {
					return err
				}
			}
		}
		if w.links && e.Type == layers.Regular {
			it.link = identify(w.tree, e.Path)
		}
		if err := w.emit(&it); err != nil {
			return err
		}
	}
	if e.Type != layers.Dir {
		return nil
	}
	if excluded && !w.exclude.Exclusions() {
		return nil // nothing below is taken back
	}
	if !take && !excluded && !couldMatch(w.include, rel) {
		return nil
	}
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	entries, err := w.tree.ReadDir(e.Path)
	if err != nil {
		return err
	}
	w.parents = append(w.parents, parent{it, take})
	for i := range entries {
		c := &entries[i]
		if err := w.visit(c, below(rel, c.Path), inInfo, exInfo); err != nil {
			return err
		}
	}
	w.parents = w.parents[:len(w.parents)-1]
	return nil
}

// below is the name of path, a file in the directory rel, with rel before it. It
// is part of path where that can be: names are many.
func below(rel, path string) string {
	name := strings.LastIndexByte(path, '/') + 1
	if rel == "." {
		return path[name:]
	}
	if start := name - 1 - len(rel); start >= 0 && path[start:name-1] == rel {
		return path[start:]
	}
	return rel + "/" + path[name:]
}

// couldMatch reports whether a pattern can match something below the directory
// dir, which itself is not matched.
func couldMatch(pm *patternmatcher.PatternMatcher, dir string) bool {
	names := strings.Split(dir, "/")
patterns:
	for _, p := range pm.Patterns() {
		if p.Exclusion() {
			continue
		}
		parts := strings.Split(p.String(), "/")
		for i, name := range names {
			if i >= len(parts) {
				continue patterns
			}
			if strings.Contains(parts[i], "**") {
				return true
			}
			if ok, err := path.Match(parts[i], name); err == nil && !ok {
				continue patterns
			}
		}
		return true
	}
	return false
}
