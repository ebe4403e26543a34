package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
	"weak"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
	"github.com/strake-build/strake/state"
)

// The names in layers/<id>.
const (
	layerFile   = "layer.json"
	recipeFile  = "recipe"
	digestsFile = "digests"
	fsDir       = "fs"
)

// maxLayerFile bounds layer.json.
const maxLayerFile = 16 << 20

// Store is the layers of a store root. Any number of goroutines and processes
// may use it at once.
type Store struct {
	root         *state.Root
	dir          string
	driver       Driver
	applyOptions layers.ApplyOptions
	options      layerdir.Options

	layers chan struct{} // a slot for each layer that may be unpacked at once
	files  chan struct{} // likewise for files of recipes

	mu      sync.Mutex // guards what follows
	known   map[layers.ID]known
	making  map[layers.ID]chan struct{} // closed when the making ends
	room    *merge.Room
	dirs    map[layers.ID]*merge.Dir
	recipes map[layers.ID]weak.Pointer[recipe]
	memos   map[layers.ID]weak.Pointer[memo]
}

// known is what stays true of a layer while this process leases it.
type known struct {
	dir    bool // the directory is there
	recipe bool
}

// Open opens the layers of root.
func Open(root *state.Root, o Options) (*Store, error) {
	if o.Driver == nil {
		return nil, errors.New("open layers: no driver")
	}
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	return &Store{
		root:         root,
		dir:          root.Path("layers"),
		driver:       o.Driver,
		applyOptions: layers.ApplyOptions{UserXattr: o.UserXattr, RecordOwners: o.RecordOwners},
		options:      layerdir.Options{UserXattr: o.UserXattr, RecordOwners: o.RecordOwners},
		layers:       make(chan struct{}, workers),
		files:        make(chan struct{}, workers),
		known:        map[layers.ID]known{},
		making:       map[layers.ID]chan struct{}{},
		dirs:         map[layers.ID]*merge.Dir{},
		recipes:      map[layers.ID]weak.Pointer[recipe]{},
		memos:        map[layers.ID]weak.Pointer[memo]{},
	}, nil
}

// Layer returns what is known of a layer, leases it, and fails with ErrNotFound
// if it is not there or damaged.
func (s *Store) Layer(id layers.ID) (Layer, error) {
	if !isID(id) {
		return Layer{}, fmt.Errorf("layer %q: %w", id, ErrNotFound)
	}
	if err := s.root.Keep(state.KindLayer, string(id)); err != nil {
		return Layer{}, err
	}
	l, err := s.load(id)
	if err != nil {
		return Layer{}, err
	}
	s.remember(l)
	return l, nil
}

// Lease leases every layer of the tree and reports whether all exist.
func (s *Store) Lease(t layers.Tree) (bool, error) {
	missing := s.unknown(t)
	if len(missing) == 0 {
		return true, nil
	}
	ids := make([]string, len(missing))
	for i, id := range missing {
		if !isID(id) {
			return false, nil
		}
		ids[i] = string(id)
	}
	if err := s.root.Keep(state.KindLayer, ids...); err != nil {
		return false, err
	}
	for _, id := range missing {
		l, err := s.load(id)
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		s.remember(l)
	}
	return true, nil
}

// unknown returns the layers that this process has not leased and seen.
func (s *Store) unknown(t layers.Tree) layers.Tree {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list layers.Tree
	for _, id := range t {
		if _, ok := s.known[id]; !ok {
			list = append(list, id)
		}
	}
	return list
}

// remember notes what is known of a leased layer.
func (s *Store) remember(l Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[l.ID] = known{dir: l.Dir, recipe: l.Recipe}
}

// recall returns what is known of a layer, which it leases if it is new.
func (s *Store) recall(id layers.ID) (known, error) {
	s.mu.Lock()
	k, ok := s.known[id]
	s.mu.Unlock()
	if ok {
		return k, nil
	}
	l, err := s.Layer(id)
	return known{dir: l.Dir, recipe: l.Recipe}, err
}

// HasDir reports whether the directory of a layer is there. It leases the layer,
// and costs nothing if this process has leased it already. The error is
// ErrNotFound if there is no such layer.
func (s *Store) HasDir(id layers.ID) (bool, error) {
	k, err := s.recall(id)
	return k.dir, err
}

// forget drops what is known of a layer that is gone.
func (s *Store) forget(id layers.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
	delete(s.dirs, id)
	delete(s.recipes, id)
	delete(s.memos, id)
}

// load reads a layer's file. What it says is there, is.
func (s *Store) load(id layers.ID) (Layer, error) {
	data, err := readFile(s.path(id, layerFile), maxLayerFile)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return Layer{}, fmt.Errorf("layer %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return Layer{}, err
	}
	data, sound := state.Unseal(data)
	var l Layer
	if err := json.Unmarshal(data, &l); err != nil || !sound || l.ID != id {
		return Layer{}, fmt.Errorf("layer %s: damaged %s: %w", id, layerFile, ErrNotFound)
	}
	if l.Spoiled {
		return Layer{}, fmt.Errorf("layer %s: a secret was found in it: %w", id, ErrNotFound)
	}
	l.Dir = l.Dir && isDir(s.path(id, fsDir))
	if l.Recipe && !l.Dir {
		_, err := os.Lstat(s.path(id, recipeFile))
		l.Recipe = err == nil
	}
	if !l.Dir && !l.Recipe && len(l.Blobs) == 0 {
		return Layer{}, fmt.Errorf("layer %s: its contents are gone: %w", id, ErrNotFound)
	}
	return l, nil
}

// AddBlob makes a layer of a blob that is in the blob store or a registry,
// without reading it. If the layer is there, the blob and origins are added to
// what is known of it.
func (s *Store) AddBlob(diffID digest.Digest, desc ocispec.Descriptor, origins ...string) (layers.ID, error) {
	return s.addBlob(diffID, desc, origins, false)
}

// AddCached is AddBlob for a layer that a step made somewhere else. What a cache
// says of a layer that an image has is not kept: blobs are claimed to have a
// diffID until somebody unpacks them, and other builds use that layer, too.
func (s *Store) AddCached(diffID digest.Digest, desc ocispec.Descriptor, origins ...string) (layers.ID, error) {
	return s.addBlob(diffID, desc, origins, true)
}

func (s *Store) addBlob(diffID digest.Digest, desc ocispec.Descriptor, origins []string, cached bool) (layers.ID, error) {
	if err := diffID.Validate(); err != nil || diffID.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("diffID %q: not a sha256 digest", diffID)
	}
	id := layers.ID(diffID.Encoded())
	for {
		l, err := s.Layer(id)
		if errors.Is(err, ErrNotFound) {
			l = Layer{ID: id, DiffID: diffID, Blobs: []ocispec.Descriptor{desc}, Origins: origins, Cached: cached, Created: time.Now().UTC()}
			err = s.addEmpty(l)
			if errors.Is(err, fs.ErrExist) {
				continue // another process was faster
			}
			return id, err
		}
		if err != nil {
			return "", err
		}
		if !l.addBlob(diffID, desc, origins, cached) {
			return id, nil
		}
		return id, s.Update(id, func(l *Layer) { l.addBlob(diffID, desc, origins, cached) })
	}
}

// addBlob reports whether it changed anything.
func (l *Layer) addBlob(diffID digest.Digest, desc ocispec.Descriptor, origins []string, cached bool) bool {
	changed := false
	switch {
	case cached && !l.Cached && l.DiffID != "" && len(l.Blobs) > 0:
		return false
	case l.Cached && !cached: // it is an image's, too
		l.Cached, l.Blobs, l.Origins, changed = false, nil, nil, true
	}
	if l.DiffID == "" {
		l.DiffID, changed = diffID, true
	}
	if !slices.ContainsFunc(l.Blobs, func(d ocispec.Descriptor) bool {
		return d.Digest == desc.Digest && d.MediaType == desc.MediaType && d.Size == desc.Size
	}) {
		l.Blobs, changed = append(l.Blobs, desc), true
	}
	for _, o := range origins {
		if !slices.Contains(l.Origins, o) {
			l.Origins, changed = append(l.Origins, o), true
		}
	}
	return changed
}

// addEmpty adds a layer that is in a blob only. A damaged one in its place is
// removed.
func (s *Store) addEmpty(l Layer) error {
	dir, err := s.root.TempDir("layer")
	if err != nil {
		return err
	}
	defer state.RemoveAll(dir)
	err = s.publish(dir, l)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	unlock, err := s.lock(l.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.load(l.ID); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = fs.ErrExist
		}
		return err
	}
	if err := s.moveAway(l.ID); err != nil {
		return err
	}
	return s.publish(dir, l)
}

// publish writes layer.json to the temporary directory dir, which has what the
// layer is made of, and makes it the layer. The error is fs.ErrExist if there
// is one.
func (s *Store) publish(dir string, l Layer) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, layerFile), state.Seal(data), 0o600); err != nil {
		return err
	}
	if err := s.root.Keep(state.KindLayer, string(l.ID)); err != nil {
		return err
	}
	err = os.Rename(dir, s.path(l.ID))
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return err
		}
		err = os.Rename(dir, s.path(l.ID))
	}
	if errors.Is(err, syscall.ENOTEMPTY) {
		err = fs.ErrExist
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.ID, err)
	}
	s.remember(l)
	return nil
}

// Update records the diffID or blobs of a layer that was packed.
func (s *Store) Update(id layers.ID, change func(*Layer)) error {
	unlock, err := s.lock(id)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := s.load(id)
	if err != nil {
		return err
	}
	change(&l)
	l.ID = id
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return s.root.WriteFile(s.path(id, layerFile), state.Seal(data), 0o600, false)
}

// Lose forgets the blobs of a layer, which turned out to be missing or damaged
// wherever they should be. A layer that has neither a directory nor a recipe is
// removed: nobody has it mounted.
func (s *Store) Lose(id layers.ID) error {
	err := s.Update(id, func(l *Layer) { l.Blobs, l.Origins, l.Variants = nil, nil, nil })
	s.forget(id)
	if err == nil {
		err = s.removeLost(id)
	}
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return err
}

// removeLost removes a layer of which nothing is left.
func (s *Store) removeLost(id layers.ID) error {
	unlock, err := s.lock(id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.load(id); !errors.Is(err, ErrNotFound) {
		return err
	}
	return s.moveAway(id)
}

// Unpack makes files of a tar stream in a directory, as those of layers are made.
func (s *Store) Unpack(ctx context.Context, dir string, tar io.Reader) error {
	return layers.Apply(ctx, dir, tar, s.applyOptions)
}

// Spoil makes a layer one that nobody finds any more. It stays on the disk until
// the next garbage collection; somebody may have it mounted.
func (s *Store) Spoil(id layers.ID) error {
	err := s.Update(id, func(l *Layer) { l.Spoiled = true })
	s.forget(id)
	return err
}

// lock takes the lock under which layer.json is changed, which is never for
// long.
func (s *Store) lock(id layers.ID) (unlock func(), err error) {
	return s.root.Lock(context.Background(), "layer-"+string(id), true)
}

// Remove removes a layer. The caller holds the exclusive "gc" lock and knows
// that nobody refers to it.
func (s *Store) Remove(id layers.ID) error {
	if !isID(id) {
		return fmt.Errorf("layer %q: %w", id, ErrNotFound)
	}
	return s.moveAway(id)
}

// moveAway takes a layer out of the store in one step, and then removes it. A
// layer that is not there is no error.
func (s *Store) moveAway(id layers.ID) error {
	s.forget(id)
	tmp, err := s.root.TempDir("remove")
	if err != nil {
		return err
	}
	err = os.Rename(s.path(id), filepath.Join(tmp, string(id)))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, state.RemoveAll(tmp))
}

// List returns all layers that are not damaged.
func (s *Store) List() ([]Layer, error) {
	list, _, err := s.list()
	return list, err
}

// Damaged returns what stands in the place of layers and is none, for garbage
// collection to remove.
func (s *Store) Damaged() ([]layers.ID, error) {
	_, damaged, err := s.list()
	return damaged, err
}

func (s *Store) list() (list []Layer, damaged []layers.ID, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	for _, e := range entries {
		id := layers.ID(e.Name())
		if !isID(id) {
			continue
		}
		l, err := s.load(id)
		switch {
		case err == nil:
			list = append(list, l)
		case errors.Is(err, ErrNotFound):
			damaged = append(damaged, id)
		default:
			return nil, nil, err
		}
	}
	return list, damaged, nil
}

// maxRemembered bounds the entries and names of layer directories that are
// remembered: to some 30 MB.
const maxRemembered = 100_000

// stack returns the layers of a tree, whose directories are there.
func (s *Store) stack(t layers.Tree) *merge.Stack {
	list := make([]merge.Layer, len(t))
	for i, id := range t {
		list[i] = s.layerDir(id)
	}
	return merge.New(list)
}

// layerDir returns the directory of a layer, with what is remembered of it.
// When there is too much of that, all is forgotten.
func (s *Store) layerDir(id layers.ID) *merge.Dir {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room.Full() {
		s.room = merge.NewRoom(maxRemembered)
		clear(s.dirs)
	}
	d := s.dirs[id]
	if d == nil {
		d = merge.NewDir(s.path(id, fsDir), s.room)
		s.dirs[id] = d
	}
	return d
}

// path is a path in the directory of a layer.
func (s *Store) path(id layers.ID, elem ...string) string {
	return filepath.Join(append([]string{s.dir, string(id)}, elem...)...)
}

func newID() layers.ID {
	var b [32]byte
	rand.Read(b[:])
	return layers.ID(hex.EncodeToString(b[:]))
}

func isID(id layers.ID) bool {
	_, err := hex.DecodeString(string(id))
	return err == nil && len(id) == 64
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", path, limit)
	}
	return data, err
}
