package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
)

// View is the merged, read-only sight of a tree. It mounts nothing: paths are
// looked up in the layer directories and recipes themselves. Paths are like
// layers.Entry.Path. Any number of goroutines may use it.
type View struct {
	store  *Store
	src    Sources
	stack  *merge.Stack
	layers []viewLayer
}

// viewLayer is a layer as a View reads it: a directory, or a recipe if dir is
// nil.
type viewLayer struct {
	id    layers.ID
	known known
	dir   *merge.Dir
}

// View opens a view of a tree. Layers that are only blobs are unpacked.
func (s *Store) View(ctx context.Context, t layers.Tree, src Sources) (*View, error) {
	if _, err := s.Lease(t); err != nil {
		return nil, err
	}
	v := &View{store: s, src: src, layers: make([]viewLayer, len(t))}
	list := make([]merge.Layer, len(t))
	var blobs layers.Tree
	for i, id := range t {
		k, err := s.recall(id)
		if err != nil {
			return nil, err
		}
		v.layers[i] = viewLayer{id: id, known: k}
		if k.recipe && !k.dir {
			if list[i], err = s.recipe(id); err != nil {
				return nil, err
			}
			continue
		}
		if !k.dir {
			blobs = append(blobs, id)
		}
		v.layers[i].dir = s.layerDir(id)
		list[i] = v.layers[i].dir
	}
	if err := s.ensureAll(ctx, blobs, src); err != nil {
		return nil, err
	}
	v.stack = merge.New(list)
	return v, nil
}

// Lookup returns the entry at path, not following a symlink there; symlinks in
// its parents are not followed either (the error is fs.ErrNotExist then, or if
// there is nothing). Hard links are given as Regular.
func (v *View) Lookup(path string) (layers.Entry, error) {
	f, err := v.stack.Lookup(path)
	return shown(f), err
}

// ReadDir returns the entries of a directory, sorted by name.
func (v *View) ReadDir(path string) ([]layers.Entry, error) {
	list, err := v.stack.ReadDir(path)
	if err != nil {
		return nil, err
	}
	entries := make([]layers.Entry, len(list))
	for i, f := range list {
		entries[i] = shown(f)
	}
	return entries, nil
}

// shown is an entry as part of a tree: marks about lower layers are none of it.
func shown(f merge.Found) layers.Entry {
	f.Opaque = false
	return f.Entry
}

// regular looks up a regular file.
func (v *View) regular(op, path string) (merge.Found, error) {
	f, err := v.stack.Lookup(path)
	if err == nil && f.Type != layers.Regular {
		err = &fs.PathError{Op: op, Path: path, Err: errors.New("not a regular file")}
	}
	return f, err
}

// Open opens the regular file at path.
func (v *View) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	f, err := v.regular("open", path)
	if err != nil {
		return nil, err
	}
	if f.Inline {
		return io.NopCloser(bytes.NewReader(f.Data)), nil
	}
	l := v.layers[f.Layer]
	if l.dir == nil {
		return v.store.openRecipeFile(ctx, l.id, f.Entry, v.src)
	}
	return layerdir.OpenFile(l.dir.Path(path))
}

// Digest is the digest of the regular file at path. It is remembered with the
// layer.
func (v *View) Digest(ctx context.Context, path string) (digest.Digest, error) {
	f, err := v.regular("digest", path)
	if err != nil {
		return "", err
	}
	if f.Digest != "" {
		return f.Digest, nil
	}
	if f.Inline {
		return digest.SHA256.FromBytes(f.Data), nil
	}
	l := v.layers[f.Layer]
	if l.dir == nil {
		content, err := v.store.openRecipeFile(ctx, l.id, f.Entry, v.src)
		if err != nil {
			return "", err
		}
		d, err := digest.SHA256.FromReader(reader{ctx, content})
		return d, errors.Join(err, content.Close())
	}
	memo := v.store.memo(l.id, l.known)
	if d, ok := memo.get(path); ok {
		return d, nil
	}
	d, err := hashFile(ctx, l.dir.Path(path))
	if err != nil {
		return "", err
	}
	// A digest that can't be kept is computed again.
	_ = memo.put(path, d)
	return d, nil
}

// HostPath is the file of the host that holds the regular file at path; empty
// if there is none (a recipe).
func (v *View) HostPath(path string) (string, error) {
	f, err := v.regular("find", path)
	if err != nil {
		return "", err
	}
	if l := v.layers[f.Layer]; l.dir != nil {
		return l.dir.Path(path), nil
	}
	return "", nil
}
