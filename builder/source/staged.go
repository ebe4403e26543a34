package source

import (
	"context"

	"github.com/strake-build/strake/layers"
)

// Staged returns the entries of the tree in a directory of ours, for
// snapshot.Store.AddEntries, which moves the files out of it. They are in the
// order of a walk.
func Staged(ctx context.Context, dir string) (_ []layers.Entry, err error) {
	d, err := OpenDir(dir, DirOptions{})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.Preload(ctx, "."); err != nil {
		return nil, err
	}
	var all []layers.Entry
	var paths []string
	var visit func(p string) error
	visit = func(p string) error {
		entries, err := d.ReadDir(p)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Type == layers.Regular {
				if e.Origin.Staged, err = d.HostPath(e.Path); err != nil {
					return err
				}
				paths = append(paths, e.Path)
			}
			all = append(all, e)
			if e.Type == layers.Dir {
				if err := visit(e.Path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := visit("."); err != nil {
		return nil, err
	}
	digests, err := d.Digests(ctx, paths)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if e := &all[i]; e.Type == layers.Regular {
			e.Digest, digests = digests[0], digests[1:]
		}
	}
	return all, nil
}
