package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/strake-build/strake/layers"
)

// CopyOut copies the directory sub of a tree ("." for all of it), with owners,
// into the empty directory dir. Names of one file become files of their own.
// After an error dir has any part of it.
func (s *Store) CopyOut(ctx context.Context, t layers.Tree, src Sources, sub, dir string) error {
	v, err := s.View(ctx, t, src)
	if err != nil {
		return err
	}
	sub = path.Clean("/" + sub)[1:]
	if sub == "" {
		sub = "."
	} else if e, err := v.Lookup(sub); err != nil {
		return err
	} else if e.Type != layers.Dir {
		return fmt.Errorf("%s: not a directory", sub)
	}
	entries := func(yield func(layers.Entry, error) bool) {
		if sub != "." {
			top, err := v.Lookup(sub)
			top.Path = "."
			if !yield(top, err) {
				return
			}
		}
		v.below(sub, func(e layers.Entry, err error) bool {
			if err == nil && e.Type == layers.Hardlink {
				e, err = v.Lookup(e.Path)
			}
			e.Origin = layers.Origin{Path: e.Path}
			e.Path = strings.TrimPrefix(strings.TrimPrefix(e.Path, sub), "/")
			return yield(e, err)
		})
	}
	open := func(e layers.Entry) (io.ReadCloser, error) { return v.Open(ctx, e.Origin.Path) }
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := layers.WriteTar(ctx, w, entries, open, layers.TarOptions{NoWhiteouts: true})
		w.CloseWithError(err)
		done <- err
	}()
	err = layers.Apply(ctx, dir, r, s.applyOptions)
	r.CloseWithError(errors.New("not wanted any more")) // ends the writer
	if werr := <-done; err == nil {
		err = werr
	}
	return err
}

// below calls yield for the entries below a directory, parents first, until it
// returns false.
func (v *View) below(dir string, yield func(layers.Entry, error) bool) bool {
	entries, err := v.ReadDir(dir)
	if err != nil {
		return yield(layers.Entry{}, err) && false
	}
	for _, e := range entries {
		if !yield(e, nil) || e.Type == layers.Dir && !v.below(e.Path, yield) {
			return false
		}
	}
	return true
}
