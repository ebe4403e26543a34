package buildkit

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// filtered is the digest of what a pattern, and the patterns that include and
// exclude, leave of what is at p.
func (h *hasher) filtered(p string, s selector) (digest.Digest, error) {
	if strings.Contains(p, `\`) {
		return "", errUnhashable
	}
	f := &filter{h: h, pattern: strings.TrimSuffix(p, "/"), s: s}
	var err error
	if f.include, err = matcher(s.include); err != nil {
		return "", err
	}
	if f.exclude, err = matcher(s.exclude); err != nil {
		return "", err
	}
	// What comes before the first wildcard is a path.
	f.prefix = f.pattern
	if s.wildcard {
		f.prefix = ""
		for part := range strings.SplitSeq(strings.TrimPrefix(f.pattern, "/"), "/") {
			if plan.HasWildcards(part) {
				break
			}
			f.prefix += "/" + part
		}
	}
	at, e, err := h.resolve("/"+strings.TrimPrefix(f.prefix, "/"), s.wildcard)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", err
	default:
		if err := f.walk(at, f.prefix, e, nil); err != nil {
			return "", err
		}
	}
	for _, want := range s.required {
		if !slices.ContainsFunc(f.taken, func(t *taken) bool { return strings.HasPrefix(t.path, want) }) {
			return "", fs.ErrNotExist
		}
	}
	for _, t := range f.taken {
		if t.link && s.follow {
			if t.digest, err = h.path(t.path, true); err != nil {
				return "", err
			}
		}
	}
	if len(f.taken) == 1 && path.Base(p) == path.Base(f.taken[0].path) {
		return f.taken[0].digest, nil
	}
	sum := sha256.New()
	for _, t := range f.taken {
		k := key(strings.TrimPrefix(t.path, f.prefix))
		if k == "" {
			k = "\x00"
		}
		io.WriteString(sum, k+t.digest.String())
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

func matcher(patterns []string) (*patternmatcher.PatternMatcher, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	return patternmatcher.New(patterns)
}

// filter is a walk of filtered.
type filter struct {
	h                *hasher
	s                selector
	pattern, prefix  string
	include, exclude *patternmatcher.PatternMatcher
	matched          string // the last path that the pattern fits
	taken            []*taken
}

// taken is a path that is, or may come to be, selected. Directories are headers.
type taken struct {
	path             string
	digest           digest.Digest
	link, in         bool
	above            *taken
	include, exclude patternmatcher.MatchInfo
}

// walk looks at what is at a path of the tree, which has another name if
// symlinks lead to it.
func (f *filter) walk(at, name string, e layers.Entry, above *taken) error {
	if f.h.ctx.Err() != nil {
		return context.Cause(f.h.ctx)
	}
	if path.Base(name)[0] == 0xff {
		return errUnhashable
	}
	t := &taken{path: name, above: above, link: above == nil && e.Type == layers.Symlink}
	wanted, seen, err := f.wanted(t)
	if err != nil {
		return err
	}
	// The root of what is copied has no header.
	if name == "" && f.pattern == "" {
		seen = false
	}
	if seen && (wanted || e.Type == layers.Dir) {
		if t.digest, err = f.h.entry(at, e); err != nil {
			return err
		}
		if wanted {
			f.take(t)
		}
	}
	if e.Type != layers.Dir {
		return nil
	}
	if !seen {
		t = above
	}
	list, err := f.h.t.Files.ReadDir(at)
	for i := 0; i < len(list) && err == nil; i++ {
		err = f.walk(list[i].Path, name+"/"+path.Base(list[i].Path), list[i], t)
	}
	return err
}

// take adds a path after the directories that lead to it.
func (f *filter) take(t *taken) {
	if t == nil || t.in {
		return
	}
	f.take(t.above)
	t.in = true
	f.taken = append(f.taken, t)
}

// wanted reports whether a path is selected. It is not seen if the pattern does
// not even fit.
func (f *filter) wanted(t *taken) (wanted, seen bool, err error) {
	below := f.pattern
	if f.s.wildcard {
		if f.matched == "" || !strings.HasPrefix(t.path, f.matched+"/") {
			ok, err := path.Match(f.pattern, t.path)
			if err != nil || !ok {
				return false, false, err
			}
			f.matched = t.path
		}
		below = f.matched
	}
	rel := strings.TrimSuffix(strings.TrimPrefix(t.path+"/", below+"/"), "/")
	var up taken
	if t.above != nil {
		up = *t.above
	}
	if f.include != nil {
		if wanted, t.include, err = f.include.MatchesUsingParentResults(rel, up.include); err != nil || !wanted {
			return false, true, err
		}
	}
	if f.exclude != nil {
		if wanted, t.exclude, err = f.exclude.MatchesUsingParentResults(rel, up.exclude); err != nil || wanted {
			return false, true, err
		}
	}
	return true, true, nil
}
