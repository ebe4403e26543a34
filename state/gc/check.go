package gc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/state"
)

// Problem is something in the store that should not be so.
type Problem struct {
	// Path is where it is, relative to the store.
	Path string `json:"path"`
	// Text says what is wrong.
	Text string `json:"text"`
	// Remedy says what Repair does about it.
	Remedy string `json:"remedy"`
}

func (p Problem) String() string { return p.Path + ": " + p.Text }

// finding is a problem and the way to mend it. fix is called with the exclusive
// gc lock held.
type finding struct {
	Problem
	fix func() error
}

// errInUse: what is to be mended is in use, and stays as it is.
var errInUse = errors.New("in use")

// Check looks for what breaks the rules of docs/store.md. With readData it reads
// all blobs, and the layers that were made here and have been packed, and
// compares them with their digests; without, it only looks at what describes
// them. It changes nothing, but that a layer whose recipe turns out to be damaged
// is dropped, as by everybody who reads it.
func (s *Store) Check(ctx context.Context, readData bool) ([]Problem, error) {
	findings, err := s.inspect(ctx, readData)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", s.Root.Dir(), err)
	}
	problems := make([]Problem, len(findings))
	for i, f := range findings {
		problems[i] = f.Problem
	}
	return problems, nil
}

// Repair looks for what Check finds with readData and removes what is damaged,
// so that the next build or pull makes it again. It returns what it has mended.
// A build that uses what is damaged right now may fail.
func (s *Store) Repair(ctx context.Context) ([]Problem, error) {
	var mended []Problem
	for {
		n := len(mended)
		if err := s.repair(ctx, &mended); err != nil {
			return mended, fmt.Errorf("repair %s: %w", s.Root.Dir(), err)
		}
		// What refers to something that was removed is found the next time.
		if n == len(mended) {
			return mended, nil
		}
	}
}

func (s *Store) repair(ctx context.Context, mended *[]Problem) error {
	findings, err := s.inspect(ctx, true)
	if err != nil || len(findings) == 0 {
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	for _, f := range findings {
		if slices.Contains(*mended, f.Problem) {
			continue // it is back already: not now
		}
		if err := f.fix(); errors.Is(err, errInUse) {
			continue
		} else if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		*mended = append(*mended, f.Problem)
	}
	return nil
}

// inspect finds problems. It holds no lock while it reads contents: what goes
// meanwhile is none.
func (s *Store) inspect(ctx context.Context, readData bool) ([]finding, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	r, err := s.read()
	unlock()
	if err != nil {
		return nil, err
	}
	var all []finding
	for _, look := range []func(context.Context, *references, bool) ([]finding, error){
		s.inspectLayers, s.inspectBlobs, s.inspectImages, s.inspectRecords, s.inspectMounts, s.inspectLeftovers,
	} {
		found, err := look(ctx, r, readData)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	slices.SortStableFunc(all, func(a, b finding) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

func (s *Store) inspectLayers(ctx context.Context, r *references, readData bool) ([]finding, error) {
	var found []finding
	bad := func(id layers.ID, text string) {
		found = append(found, finding{
			Problem: Problem{"layers/" + string(id), text, "removed; the next build or pull makes it again"},
			fix:     func() error { return s.Layers.Remove(id) },
		})
	}
	for _, id := range r.damaged {
		bad(id, "has no layer.json that can be read, or not what it tells of")
	}
	entries, err := os.ReadDir(s.Root.Path("layers"))
	if err := ignoreMissing(err); err != nil {
		return nil, err
	}
	for _, e := range entries {
		id := layers.ID(e.Name())
		if _, ok := r.layers[id]; !ok && !slices.Contains(r.damaged, id) && !isHexID(e.Name()) {
			found = append(found, s.stranger("layers/"+e.Name(), "is no layer"))
		}
	}
	if !readData {
		return found, nil
	}
	for id, l := range r.layers {
		text, err := s.readLayer(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("read layer %s: %w", id, err)
		}
		if text != "" {
			bad(id, text)
		}
	}
	return found, nil
}

// readLayer reads a layer's contents and returns what is wrong with them.
func (s *Store) readLayer(ctx context.Context, l snapshot.Layer) (string, error) {
	switch {
	case l.Dir && l.DiffID != "" && string(l.ID) != l.DiffID.Encoded():
		// It was made here, so its tar is ours.
		got, err := s.diffID(ctx, l)
		switch {
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case gone(s.Root.Path("layers", string(l.ID))):
			return "", nil
		case err != nil:
			return fmt.Sprintf("can't be read: %v", err), nil
		case got != l.DiffID:
			return fmt.Sprintf("has other contents than when it was packed: diffID %s, not %s", got, l.DiffID), nil
		}
	case l.Recipe && !l.Dir:
		for _, err := range s.Layers.Entries(ctx, l.ID, snapshot.Sources{}) {
			if errors.Is(err, snapshot.ErrNotFound) {
				return "its recipe is damaged", nil
			}
			if err != nil {
				return "", err
			}
		}
	}
	return "", nil
}

// diffID computes the diffID of a layer directory.
func (s *Store) diffID(ctx context.Context, l snapshot.Layer) (digest.Digest, error) {
	dir := s.Root.Path("layers", string(l.ID), "fs")
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	open := func(e layers.Entry) (io.ReadCloser, error) {
		return root.OpenFile(e.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	entries := layers.Walk(dir)
	if l.Recipe {
		// It knows more than the directory does.
		entries = s.Layers.Entries(ctx, l.ID, snapshot.Sources{})
	}
	h := sha256.New()
	err = layers.WriteTar(ctx, h, entries, open, layers.TarOptions{ModTime: layers.DefaultModTime})
	return digest.NewDigest(digest.SHA256, h), err
}

func (s *Store) inspectBlobs(ctx context.Context, r *references, readData bool) ([]finding, error) {
	sizes := map[digest.Digest]int64{}
	for _, l := range r.layers {
		for _, b := range l.Blobs {
			sizes[b.Digest] = b.Size
		}
	}
	var found []finding
	bad := func(d digest.Digest, text string) {
		path, _ := filepath.Rel(s.Root.Dir(), s.Blobs.Path(d))
		found = append(found, finding{
			Problem: Problem{path, text, "removed; it is made or fetched again when it is needed"},
			fix:     func() error { return s.Blobs.Remove(d) },
		})
	}
	for d, fi := range r.blobs {
		if size, ok := sizes[d]; ok && size > 0 && size != fi.Size() {
			bad(d, fmt.Sprintf("has %d bytes instead of %d", fi.Size(), size))
			continue
		}
		if !readData {
			continue
		}
		ok, err := s.readBlob(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("read blob %s: %w", d, err)
		}
		if !ok {
			bad(d, "has other content than its name says")
		}
	}
	return found, nil
}

// readBlob reports whether a blob is what its name says. Not by the store's
// Reader, which would remove it.
func (s *Store) readBlob(ctx context.Context, d digest.Digest) (bool, error) {
	f, err := os.Open(s.Blobs.Path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return digest.NewDigest(digest.SHA256, h) == d, nil
		}
		if errors.Is(err, unix.EIO) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, context.Cause(ctx)
}

// inspectImages reads the files of images and names, of which those that are
// damaged count as missing for everybody else.
func (s *Store) inspectImages(_ context.Context, r *references, _ bool) ([]finding, error) {
	var found []finding
	for _, dir := range []string{"names", "ids"} {
		files, err := os.ReadDir(s.Root.Path("images", dir))
		if err := ignoreMissing(err); err != nil {
			return nil, err
		}
		for _, f := range files {
			path := filepath.Join("images", dir, f.Name())
			if strings.HasPrefix(f.Name(), ".") {
				continue // see inspectLeftovers
			}
			data, err := os.ReadFile(s.Root.Path(path))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if errors.Is(err, unix.EISDIR) {
				found = append(found, s.stranger(path, "is a directory"))
				continue
			}
			if err != nil {
				return nil, err
			}
			if text := s.imageFile(r, f.Name(), dir, data); text != "" {
				found = append(found, s.fileProblem(path, data, text))
			}
		}
	}
	return found, nil
}

// imageFile returns what is wrong with a file of an image or a name.
func (s *Store) imageFile(r *references, name, dir string, data []byte) string {
	data, sound := state.Unseal(data)
	if !sound {
		return "can't be read: its checksum is another"
	}
	var images []image.Image
	switch dir {
	case "names":
		var n image.Name
		if err := json.Unmarshal(data, &n); err != nil {
			return fmt.Sprintf("can't be read: %v", err)
		}
		if n.Ref == "" || len(n.Images) == 0 || digest.FromString(n.Ref).Encoded()+".json" != name {
			return "is not the file of an image name"
		}
		images = n.Images
	default:
		var img image.Image
		if err := json.Unmarshal(data, &img); err != nil {
			return fmt.Sprintf("can't be read: %v", err)
		}
		if img.ID.Validate() != nil || img.ID.Encoded()+".json" != name {
			return "is not the file of an image"
		}
		images = []image.Image{img}
	}
	for _, img := range images {
		if img.ID.Validate() != nil {
			return "names an image that has no digest"
		}
		// Not what was read under the lock: a pull may have just added it.
		if _, err := s.Blobs.Stat(img.ID); errors.Is(err, blob.ErrNotFound) {
			return fmt.Sprintf("the configuration of image %s is missing", img.ID)
		}
		for _, id := range img.Tree {
			if _, ok := r.layers[id]; !ok && !isFile(s.Root.Path("layers", string(id), "layer.json")) {
				return fmt.Sprintf("layer %s of image %s is missing", short(id), img.ID)
			}
		}
	}
	return ""
}

// fileProblem is a file to be removed, unless it has changed meanwhile.
func (s *Store) fileProblem(path string, data []byte, text string) finding {
	return finding{
		Problem: Problem{path, text, "removed; build or pull the image again"},
		fix: func() error {
			now, err := os.ReadFile(s.Root.Path(path))
			if err != nil || !bytes.Equal(now, data) {
				return ignoreMissing(err)
			}
			return os.Remove(s.Root.Path(path))
		},
	}
}

// inspectRecords finds results whose layers are gone. That is nothing bad, they
// are misses; but a repaired store has none.
func (s *Store) inspectRecords(_ context.Context, r *references, readData bool) ([]finding, error) {
	if !readData {
		return nil, nil
	}
	var found []finding
	for _, rec := range r.records {
		for id := range layersOf(rec) {
			if _, ok := r.layers[id]; ok || isFile(s.Root.Path("layers", string(id), "layer.json")) {
				continue
			}
			found = append(found, finding{
				Problem: Problem{"cache", fmt.Sprintf("layer %s of the result of %q is missing", short(id), oneLine(rec.Why.Name)), "forgotten; the step runs again"},
				fix:     func() error { return s.Cache.Delete(rec.Key) },
			})
			break
		}
	}
	return found, nil
}

func (s *Store) inspectMounts(context.Context, *references, bool) ([]finding, error) {
	mounts, strange, err := s.cacheMounts()
	if err != nil {
		return nil, err
	}
	var found []finding
	for _, name := range strange {
		if !strings.HasPrefix(name, ".") {
			found = append(found, s.stranger("cachemounts/"+name, "is no cache mount"))
		}
	}
	for _, m := range mounts {
		if m.id != "" {
			continue
		}
		f := s.stranger("cachemounts/"+m.name, "has no meta.json that can be read")
		remove := f.fix
		f.fix = func() error {
			unlock, ok := s.tryMount(m.name)
			if !ok {
				return errInUse
			}
			defer unlock()
			return remove()
		}
		found = append(found, f)
	}
	return found, nil
}

// leftoverAge is how old a hidden file beside others must be to be left over
// by a killed process, and not one that is being written.
const leftoverAge = time.Hour

// inspectLeftovers finds what killed processes had not finished, outside of the
// temporary directories that Open of the store sweeps.
func (s *Store) inspectLeftovers(context.Context, *references, bool) ([]finding, error) {
	var found []finding
	for _, dir := range []string{".", "images/names", "images/ids", "cachemounts"} {
		entries, err := os.ReadDir(s.Root.Path(dir))
		if err := ignoreMissing(err); err != nil {
			return nil, err
		}
		for _, e := range entries {
			fi, err := e.Info()
			if err != nil || !strings.HasPrefix(e.Name(), ".") || time.Since(fi.ModTime()) < leftoverAge {
				continue
			}
			found = append(found, s.stranger(filepath.Join(dir, e.Name()), "was left by a process that was killed"))
		}
	}
	return found, nil
}

// stranger is something that doesn't belong where it is.
func (s *Store) stranger(path, text string) finding {
	return finding{
		Problem: Problem{path, text, "removed"},
		fix:     func() error { return state.RemoveAll(s.Root.Path(path)) },
	}
}

func isHexID(name string) bool {
	return digest.NewDigestFromEncoded(digest.SHA256, name).Validate() == nil
}

func isFile(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.Mode().IsRegular()
}

func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}
