package image

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/internal/shortname"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/state"
)

// ErrNotFound: the store has no such image.
//
//lint:ignore ST1005 these are the words that Docker's users know
var ErrNotFound = errors.New("No such image")

// Store keeps images and names in images/ of the store root, a file each:
// names/<SHA-256 of the name>.json and ids/<hex of the ID>.json. Several
// processes may change it at once; a reader sees each file before or after a
// change, never in between. A file that is damaged counts as not there.
type Store struct {
	root  *state.Root
	blobs *blob.Store
}

// OpenStore opens the images of root.
func OpenStore(root *state.Root, blobs *blob.Store) (*Store, error) {
	s := &Store{root: root, blobs: blobs}
	for _, d := range []string{"names", "ids"} {
		if err := os.MkdirAll(root.Path("images", d), 0o755); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Put stores images, their configurations, under names (none: untagged).
// Names are moved from what they stood for, which stays as an image without a
// name if it had no other. Everything that is referred to is synced before a
// name points to it. What is stored under these names already stays untouched,
// with its times.
func (s *Store) Put(refs []string, images []Image, configs [][]byte, index digest.Digest) error {
	if len(images) == 0 || len(images) != len(configs) {
		return fmt.Errorf("%d images with %d configurations", len(images), len(configs))
	}
	names := make([]string, 0, len(refs))
	for _, r := range refs {
		n, err := normalize(r)
		if err != nil {
			return err
		}
		names = append(names, n)
	}
	for _, img := range images {
		if !sound(img) {
			return fmt.Errorf("image ID %q is not a SHA-256 digest", img.ID)
		}
	}
	if s.has(names, images, configs, index) {
		return s.blobs.Sync() // of nothing, usually
	}
	images = slices.Clone(images)
	now := time.Now().UTC()
	for i, config := range configs {
		if err := s.Keep(images[i].ID, config); err != nil {
			return fmt.Errorf("configuration of image %s: %w", images[i].ID, err)
		}
		if images[i].Stored.IsZero() {
			images[i].Stored = now
		}
	}
	var files []state.File
	add := func(path string, v any) error {
		data, err := encode(v)
		files = append(files, state.File{Path: path, Data: data})
		return err
	}
	for _, img := range images {
		if err := add(s.idFile(img.ID), img.alone()); err != nil {
			return err
		}
	}
	for _, n := range names {
		if err := add(s.nameFile(n), Name{Ref: n, Images: images, Index: index, Tagged: now}); err != nil {
			return err
		}
	}
	unlock := func() {}
	defer func() { unlock() }()
	return s.root.WriteFiles(files, fileMode, func() error {
		if err := s.blobs.Sync(); err != nil {
			return err
		}
		free, err := s.lock()
		if err == nil {
			unlock = free
		}
		return err
	})
}

// has reports whether Put would change nothing but times: a build that found
// everything done need not sync anything either, for what is here was synced
// before it got its name.
func (s *Store) has(names []string, images []Image, configs [][]byte, index digest.Digest) bool {
	for i, img := range images {
		found, err := read[Image](s.idFile(img.ID))
		if err != nil || !sameImage(found, img.alone()) {
			return false
		}
		if digest.SHA256.FromBytes(configs[i]) != img.ID {
			return false // Put tells
		}
		if n, err := s.blobs.Stat(img.ID); err != nil || n != int64(len(configs[i])) {
			return false
		}
	}
	for _, n := range names {
		found, err := s.name(n)
		if err != nil || found.Index != index || !slices.EqualFunc(found.Images, images, sameImage) {
			return false
		}
	}
	return true
}

// sameImage reports whether two images are one but for the time when they were
// stored.
func sameImage(a, b Image) bool {
	a.Stored, b.Stored = time.Time{}, time.Time{}
	x, xerr := json.Marshal(a)
	y, yerr := json.Marshal(b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}

// Find returns what a user's argument stands for: a name with or without tag
// or digest, or an image ID or a unique prefix of one. A name wins over an ID
// that begins with it. For an ID the Name has no Ref. It returns ErrNotFound, or
// an error for an ambiguous prefix.
func (s *Store) Find(arg string) (Name, error) {
	if !isID(arg) {
		if ref, err := normalize(arg); err == nil {
			switch name, err := s.name(ref); {
			case err == nil:
				return name, nil
			case !errors.Is(err, fs.ErrNotExist):
				return Name{}, err
			}
			if name, ok, err := s.byDigest(ref); ok || err != nil {
				return name, err
			}
		}
	}
	return s.byID(arg)
}

// byDigest finds name@digest where the name was stored with a tag: the digest
// may be that of its index, of a manifest or of a configuration.
func (s *Store) byDigest(ref string) (Name, bool, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return Name{}, false, nil
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return Name{}, false, nil
	}
	names, err := s.names()
	if err != nil {
		return Name{}, false, err
	}
	for _, n := range names {
		if repository(n.Ref) != named.Name() {
			continue
		}
		if n.Index == digested.Digest() {
			return n, true, nil
		}
		for _, img := range n.Images {
			if img.ID == digested.Digest() || img.Manifest == digested.Digest() {
				return Name{Ref: n.Ref, Images: []Image{img.alone()}, Tagged: n.Tagged}, true, nil
			}
		}
	}
	return Name{}, false, nil
}

// byID finds an image by its ID or a prefix of it.
func (s *Store) byID(arg string) (Name, error) {
	prefix := strings.TrimPrefix(arg, "sha256:")
	if !isHex(prefix) {
		return Name{}, notFound(arg)
	}
	files, err := os.ReadDir(s.root.Path("images", "ids"))
	if err != nil {
		return Name{}, err
	}
	var found []Image
	for _, f := range files {
		if strings.HasPrefix(f.Name(), prefix) {
			if img, err := read[Image](s.root.Path("images", "ids", f.Name())); err == nil && sound(img) {
				found = append(found, img)
			}
		}
	}
	switch len(found) {
	case 0:
		return Name{}, notFound(arg)
	case 1:
		return Name{Images: found, Tagged: found[0].Stored}, nil
	}
	return Name{}, fmt.Errorf("image ID %q is ambiguous: it begins those of %d images", arg, len(found))
}

// isHex reports whether s may begin the hex digits of a SHA-256 digest.
func isHex(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// isID reports whether arg can only be an ID: a name can't be 64 hex digits, nor
// begin with "sha256:".
func isID(arg string) bool {
	if rest, ok := strings.CutPrefix(arg, "sha256:"); ok {
		return isHex(rest) && len(rest) > 6 // else it may be a tag of a repository "sha256"
	}
	return len(arg) == 64 && isHex(arg)
}

func notFound(arg string) error { return fmt.Errorf("%w: %s", ErrNotFound, arg) }

// List returns all names, and images without names, the newest first.
func (s *Store) List() ([]Name, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	named := map[digest.Digest]bool{}
	for _, n := range names {
		for _, img := range n.Images {
			named[img.ID] = true
		}
	}
	images, err := readAll[Image](s.root.Path("images", "ids"))
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if sound(img) && !named[img.ID] {
			names = append(names, Name{Images: []Image{img}, Tagged: img.Stored})
		}
	}
	newest := func(n Name) time.Time {
		var t time.Time
		for _, img := range n.Images {
			if img.Stored.After(t) {
				t = img.Stored
			}
		}
		return t
	}
	slices.SortFunc(names, func(a, b Name) int {
		return cmp.Or(newest(b).Compare(newest(a)), cmp.Compare(a.Ref, b.Ref), cmp.Compare(a.Images[0].ID, b.Images[0].ID))
	})
	return names, nil
}

// Tag gives an image another name.
func (s *Store) Tag(arg, ref string) error {
	ref, err := normalize(ref)
	if err != nil {
		return err
	}
	if strings.Contains(ref, "@") {
		return fmt.Errorf("%s: refusing to create a tag with a digest reference", shortname.Of(ref))
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	found, err := s.Find(arg)
	if err != nil {
		return err
	}
	return s.write(s.nameFile(ref), Name{Ref: ref, Images: found.Images, Index: found.Index, Tagged: time.Now().UTC()})
}

// Remove removes a name, or an image with all its names if arg is an ID (force
// is needed for several). An image goes with its last name. It returns what was
// untagged and deleted, as `docker rmi` prints it: short names, and IDs.
func (s *Store) Remove(arg string, force bool) (untagged, deleted []string, err error) {
	unlock, err := s.lock()
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	found, err := s.Find(arg)
	if err != nil {
		return nil, nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, nil, err
	}
	var drop []Name
	if found.Ref != "" {
		drop = []Name{found}
	} else {
		id := found.Images[0].ID
		for _, n := range names {
			if slices.ContainsFunc(n.Images, func(i Image) bool { return i.ID == id }) {
				drop = append(drop, n)
			}
		}
		if len(drop) > 1 && !force {
			return nil, nil, fmt.Errorf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", id.Encoded()[:12])
		}
	}
	// Images lose the names in drop, and are deleted if they have no other.
	gone := map[string]bool{}
	candidates := found.Images
	for _, n := range drop {
		if err := remove(s.nameFile(n.Ref)); err != nil {
			return untagged, deleted, err
		}
		gone[n.Ref] = true
		untagged = append(untagged, shortname.Of(n.Ref))
		candidates = append(candidates[:len(candidates):len(candidates)], n.Images...)
	}
	kept := map[digest.Digest]bool{}
	for _, n := range names {
		if !gone[n.Ref] {
			for _, img := range n.Images {
				kept[img.ID] = true
			}
		}
	}
	for _, img := range candidates {
		if kept[img.ID] {
			continue
		}
		kept[img.ID] = true
		if err := remove(s.idFile(img.ID)); err != nil {
			return untagged, deleted, err
		}
		deleted = append(deleted, img.ID.String())
	}
	return untagged, deleted, nil
}

// RemoveUnnamed removes the images that have no name, and returns their IDs. One
// that gets a name meanwhile stays.
func (s *Store) RemoveUnnamed() ([]digest.Digest, error) {
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var deleted []digest.Digest
	for _, n := range list {
		if n.Ref != "" {
			continue
		}
		for _, img := range n.Images {
			if err := remove(s.idFile(img.ID)); err != nil {
				return deleted, err
			}
			deleted = append(deleted, img.ID)
		}
	}
	return deleted, nil
}

// Lease keeps a blob that is here, or will be, from being collected before Put
// has it in an image.
func (s *Store) Lease(d digest.Digest) error {
	return s.root.Keep(state.KindBlob, d.String())
}

// Keep stores a document, which has the digest d, as a blob that is not collected
// before Put has it in an image. An equal blob that is there may have been garbage
// for long: it is leased first.
func (s *Store) Keep(d digest.Digest, raw []byte) error {
	if err := s.Lease(d); err != nil {
		return err
	}
	_, _, err := s.blobs.Put(bytes.NewReader(raw), d, int64(len(raw)))
	return err
}

// Config returns the configuration of an image.
func (s *Store) Config(id digest.Digest) ([]byte, error) {
	config, err := s.blobs.Bytes(id)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, notFound(id.String())
	}
	return config, err
}

func (s *Store) lock() (unlock func(), err error) {
	return s.root.Lock(context.Background(), "images", true)
}

func (s *Store) name(ref string) (Name, error) {
	n, err := read[Name](s.nameFile(ref))
	if err == nil && (n.Ref != ref || !whole(n)) {
		return Name{}, fs.ErrNotExist
	}
	return n, err
}

func (s *Store) names() ([]Name, error) {
	names, err := readAll[Name](s.root.Path("images", "names"))
	return slices.DeleteFunc(names, func(n Name) bool { return !whole(n) }), err
}

func whole(n Name) bool {
	return n.Ref != "" && len(n.Images) > 0 && !slices.ContainsFunc(n.Images, func(i Image) bool { return !sound(i) })
}

func sound(i Image) bool { return i.ID.Validate() == nil && i.ID.Algorithm() == digest.SHA256 }

func (s *Store) nameFile(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return s.root.Path("images", "names", hex.EncodeToString(sum[:])+".json")
}

func (s *Store) idFile(id digest.Digest) string {
	return s.root.Path("images", "ids", id.Encoded()+".json")
}

const fileMode = 0o644

// encode makes v the content of a file of the store.
func encode(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "\t")
	return state.Seal(data), err
}

func (s *Store) write(path string, v any) error {
	data, err := encode(v)
	if err != nil {
		return err
	}
	return s.root.WriteFile(path, data, fileMode, true)
}

// read reads a file of the store; a damaged one is told as missing.
func read[T any](path string) (T, error) {
	var v T
	data, err := os.ReadFile(path)
	if errors.Is(err, syscall.EISDIR) {
		return v, fs.ErrNotExist
	}
	if err != nil {
		return v, err
	}
	data, sound := state.Unseal(data)
	if !sound || json.Unmarshal(data, &v) != nil {
		return v, fs.ErrNotExist
	}
	return v, nil
}

// readAll reads the files of a directory that are not damaged.
func readAll[T any](dir string) ([]T, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []T
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".json" {
			continue
		}
		v, err := read[T](filepath.Join(dir, f.Name()))
		if errors.Is(err, fs.ErrNotExist) { // damaged, or just removed
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// normalize returns the full form of a name: with a registry, and with the tag
// "latest" if it has neither tag nor digest.
func normalize(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", ref, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

func repository(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return named.Name()
}
