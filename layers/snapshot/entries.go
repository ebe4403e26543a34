package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"weak"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
	"github.com/strake-build/strake/state"
)

// AddRecipe makes a layer of entries without reading their contents. Entries
// are sorted by path, and have digests.
func (s *Store) AddRecipe(entries []layers.Entry) (layers.ID, error) {
	entries, err := sorted(entries)
	if err != nil {
		return "", err
	}
	if entries, err = completeLinks(entries); err != nil {
		return "", fmt.Errorf("recipe: %w", err)
	}
	for _, e := range entries {
		if e.Type == layers.Regular && !e.Inline && e.Digest == "" {
			return "", fmt.Errorf("recipe: %s has no digest", e.Path)
		}
		if e.Origin.Staged != "" {
			return "", fmt.Errorf("recipe: %s is a temporary file", e.Path)
		}
	}
	dir, err := s.root.TempDir("layer")
	if err != nil {
		return "", err
	}
	defer state.RemoveAll(dir)
	if err := saveRecipe(dir, entries); err != nil {
		return "", fmt.Errorf("recipe: %w", err)
	}
	l := Layer{ID: newID(), Recipe: true, Size: sizeOf(entries), Created: time.Now().UTC()}
	return l.ID, s.publish(dir, l)
}

func saveRecipe(dir string, entries []layers.Entry) error {
	f, err := os.OpenFile(filepath.Join(dir, recipeFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(writeRecipe(f, entries), f.Close())
}

// AddEntries makes a layer directory of entries now. hostPath returns the file
// of the host that holds the content of an entry: a file with the entry's own
// owner, mode, time and attributes in another layer is linked, others are
// copied; entry.Origin.Staged files are moved. Inline entries are written.
//
// An entry whose time is zero wants no time of its own: a file that is linked
// keeps the one it has, others get layers.DefaultModTime. hostPath is called
// from several goroutines.
func (s *Store) AddEntries(ctx context.Context, entries []layers.Entry, hostPath func(layers.Entry) (string, error)) (layers.ID, error) {
	entries, err := sorted(entries)
	if err != nil {
		return "", err
	}
	dir, err := s.root.TempDir("layer")
	if err != nil {
		return "", err
	}
	defer state.RemoveAll(dir)
	ln := linker{s: s, hostPath: hostPath, linked: map[inode]bool{}}
	if err := s.maker(filepath.Join(dir, fsDir), ln.file).Make(ctx, entries); err != nil {
		return "", err
	}
	var digests bytes.Buffer
	for _, e := range entries {
		if e.Type == layers.Regular && e.Digest != "" {
			digests.WriteString(digestLine(e.Path, e.Digest))
		}
	}
	if digests.Len() > 0 {
		if err := os.WriteFile(filepath.Join(dir, digestsFile), digests.Bytes(), 0o600); err != nil {
			return "", err
		}
	}
	l := Layer{ID: newID(), Dir: true, Size: sizeOf(entries), Created: time.Now().UTC()}
	if s.options.RecordOwners && slices.ContainsFunc(entries, ownedLink) {
		if l.Recipe, err = true, saveListing(dir, entries); err != nil {
			return "", err
		}
	}
	return l.ID, s.publish(dir, l)
}

// ownedLink reports whether an entry is a symbolic link that belongs to
// somebody. Where owners are recorded in extended attributes there is no place
// for that: links have none.
func ownedLink(e layers.Entry) bool {
	return e.Type == layers.Symlink && (e.UID != 0 || e.GID != 0)
}

// saveListing writes entries as a recipe beside the directory that was made of
// them, for what the directory can't hold.
func saveListing(dir string, entries []layers.Entry) error {
	entries, err := completeLinks(entries)
	if err != nil {
		return err
	}
	entries = slices.Clone(entries)
	for i := range entries {
		entries[i].Origin = layers.Origin{}
	}
	return saveRecipe(dir, entries)
}

func (s *Store) maker(dir string, file func(context.Context, layers.Entry, string) (bool, error)) *layerdir.Maker {
	return &layerdir.Maker{Dir: dir, Options: s.options, Slots: s.files, File: file}
}

// sorted returns entries in the order of layers.Walk. Two for the same path are
// an error.
func sorted(entries []layers.Entry) ([]layers.Entry, error) {
	compare := func(a, b layers.Entry) int { return layers.ComparePaths(a.Path, b.Path) }
	if !slices.IsSortedFunc(entries, compare) {
		entries = slices.Clone(entries)
		slices.SortStableFunc(entries, compare)
	}
	for i, e := range entries {
		if e.Path != "." && !layerdir.ValidPath(e.Path) {
			return nil, fmt.Errorf("%q: not a path in a layer", e.Path)
		}
		if i > 0 && entries[i-1].Path == e.Path {
			return nil, fmt.Errorf("%s: twice in a layer", e.Path)
		}
	}
	return entries, nil
}

// completeLinks gives hard links the attributes of the files they link to, as
// layers.Walk does.
func completeLinks(entries []layers.Entry) ([]layers.Entry, error) {
	isLink := func(e layers.Entry) bool { return e.Type == layers.Hardlink }
	if !slices.ContainsFunc(entries, isLink) {
		return entries, nil
	}
	entries = slices.Clone(entries)
	r := recipe{entries: entries}
	for i, e := range entries {
		if !isLink(e) {
			continue
		}
		j, ok := r.find(e.Link)
		if !ok || j >= i || isLink(entries[j]) || entries[j].Type == layers.Dir {
			return nil, fmt.Errorf("%s: linked to %s, which is no file before it", e.Path, e.Link)
		}
		t := entries[j]
		t.Path, t.Type, t.Link, t.Size = e.Path, layers.Hardlink, e.Link, 0
		t.Digest, t.Data, t.Inline, t.Origin = "", nil, false, layers.Origin{}
		entries[i] = t
	}
	return entries, nil
}

func sizeOf(entries []layers.Entry) int64 {
	var n int64
	for _, e := range entries {
		if e.Type == layers.Regular {
			n += e.Size
		}
	}
	return n
}

// Entries yields the entries of one layer, from its directory or recipe, or
// unpacks it first. They are the same, and in the same order, from either.
func (s *Store) Entries(ctx context.Context, id layers.ID, src Sources) iter.Seq2[layers.Entry, error] {
	return func(yield func(layers.Entry, error) bool) {
		k, err := s.recall(id)
		if err == nil && !k.recipe && !k.dir {
			_, err = s.Ensure(ctx, layers.Tree{id}, src)
		}
		if err != nil {
			yield(layers.Entry{}, err)
			return
		}
		entries := layers.Walk(s.path(id, fsDir))
		if k.recipe && !k.dir {
			entries = s.recipeEntries(id)
		} else if k.recipe {
			// It knows more than the directory does, but must not be damaged.
			if r, err := s.recipe(id); err == nil {
				entries = r.all
			}
		}
		for e, err := range entries {
			if err != nil {
				err = fmt.Errorf("layer %s: %w", id, err)
			} else if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// recipeEntries yields the entries of a recipe as layers.Walk would yield them
// from its directory.
func (s *Store) recipeEntries(id layers.ID) iter.Seq2[layers.Entry, error] {
	return func(yield func(layers.Entry, error) bool) {
		for e, err := range readRecipe(s.path(id, recipeFile)) {
			if err != nil {
				yield(e, s.recipeError(id, err))
				return
			}
			if e.Path != "." && !yield(layerdir.WithTime(e), nil) {
				return
			}
		}
	}
}

// all yields the entries likewise.
func (r *recipe) all(yield func(layers.Entry, error) bool) {
	for _, e := range r.entries {
		if e.Path != "." && !yield(layerdir.WithTime(e), nil) {
			return
		}
	}
}

// recipe returns a layer's recipe. Those in use are shared.
func (s *Store) recipe(id layers.ID) (*recipe, error) {
	s.mu.Lock()
	r := s.recipes[id].Value()
	s.mu.Unlock()
	if r != nil {
		return r, nil
	}
	r, err := loadRecipe(s.path(id, recipeFile))
	if err != nil {
		return nil, s.recipeError(id, err)
	}
	s.mu.Lock()
	s.recipes[id] = weak.Make(r)
	s.mu.Unlock()
	return r, nil
}

// recipeError tells of a recipe that can't be read. The layer of one that is
// damaged is gone, unless its directory is there, so that the next build makes
// it again.
func (s *Store) recipeError(id layers.ID, err error) error {
	if !errors.Is(err, errDamaged) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EISDIR) {
		return err
	}
	if l, lerr := s.load(id); lerr == nil && !l.Dir && len(l.Blobs) == 0 {
		if rerr := s.moveAway(id); rerr != nil {
			return errors.Join(err, rerr)
		}
	}
	return fmt.Errorf("%w: %w", err, ErrNotFound)
}

// OpenEntry opens the content of an entry that Entries yielded.
func (s *Store) OpenEntry(ctx context.Context, id layers.ID, e layers.Entry, src Sources) (io.ReadCloser, error) {
	if e.Inline {
		return io.NopCloser(bytes.NewReader(e.Data)), nil
	}
	k, err := s.recall(id)
	if err != nil {
		return nil, err
	}
	if k.dir {
		return openIn(s.path(id, fsDir), e.Path)
	}
	if k.recipe {
		return s.openRecipeFile(ctx, id, e, src)
	}
	return s.openUnpacked(ctx, id, e, src)
}

// openUnpacked opens the content of an entry in the layer's directory, which it
// makes if needed.
func (s *Store) openUnpacked(ctx context.Context, id layers.ID, e layers.Entry, src Sources) (io.ReadCloser, error) {
	dirs, err := s.Ensure(ctx, layers.Tree{id}, src)
	if err != nil {
		return nil, err
	}
	return openIn(dirs[0], e.Path)
}

// openIn opens a regular file of a layer directory. Symlinks are not followed.
func openIn(dir, path string) (*os.File, error) {
	for parent := range parentsOf(path) {
		if !isDir(filepath.Join(dir, parent)) {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
	}
	return layerdir.OpenFile(filepath.Join(dir, path))
}

// parentsOf yields the directories that lead to path, the highest first.
func parentsOf(path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range len(path) {
			if path[i] == '/' && !yield(path[:i]) {
				return
			}
		}
	}
}

// openRecipeFile opens the content of an entry of a recipe. If nobody has the
// file any more, there may be a blob that the layer was packed into.
func (s *Store) openRecipeFile(ctx context.Context, id layers.ID, e layers.Entry, src Sources) (io.ReadCloser, error) {
	r, err := sourceFile(ctx, id, e, src)
	if err == nil || ctx.Err() != nil {
		return r, err
	}
	if l, lerr := s.load(id); lerr != nil || len(l.Blobs) == 0 {
		return nil, err
	}
	r, uerr := s.openUnpacked(ctx, id, e, src)
	if uerr != nil {
		return nil, errors.Join(err, uerr)
	}
	return r, nil
}

func sourceFile(ctx context.Context, id layers.ID, e layers.Entry, src Sources) (io.ReadCloser, error) {
	if e.Size == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if src.File == nil {
		return nil, fmt.Errorf("nobody has the content of %s", e.Path)
	}
	return src.File(ctx, id, e)
}
