// Package gc tells what a store's contents are for and how large they are,
// removes what nobody needs, and finds and mends damage.
//
// References point down: names → images → layers and blobs; cache records →
// layers; layers → blobs; and living processes hold leases on layers and blobs.
// What is not reached from a name, a record or a lease is garbage. Prune drops
// records first, which is what build cache is, and then what has become garbage
// by it. It reads the references while it holds the store's "gc" lock, takes what
// is to go out of the store by renaming it, frees the lock and only then removes
// it, so that builds don't wait for the disk. It needs no space to begin with.
//
// A process that has put a blob may not have told anybody yet. So blobs that are
// younger than the oldest living process stay.
package gc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/state"
)

// Store is a store root and all that is kept in it.
type Store struct {
	Root   *state.Root
	Layers *snapshot.Store
	Blobs  *blob.Store
	Images *image.Store
	Cache  *cache.Store
}

// Type is the type of an entry.
type Type string

// The types of entries.
const (
	TypeLayer      Type = "layer"
	TypeBlob       Type = "blob"       // a packed layer, a configuration or manifest
	TypeCacheMount Type = "cachemount" // the contents of RUN --mount=type=cache
	TypeContext    Type = "context"    // a copy of a directory of a client of the daemon
	TypeSegments   Type = "segments"   // lists of the compressed pieces in blobs; one entry for all
	TypeOther      Type = "other"      // records, indexes, temporary files: a directory of the store
)

// Entry is something in the store.
type Entry struct {
	// ID is the layer's ID, the blob's digest, the hash of the cache mount's
	// id, the name of the context's lock, or the name of a directory of the store.
	ID   string `json:"id"`
	Type Type   `json:"type"`
	// Size is what it takes on the disk, in bytes. Files that layers share
	// are counted with the first of them.
	Size    int64     `json:"size"`
	Created time.Time `json:"created,omitzero"`
	Used    time.Time `json:"used,omitzero"` // to the hour; zero if not known
	// InUse: a living process has a lease on it.
	InUse bool `json:"inUse,omitempty"`
	// Image: an image of the store needs it.
	Image bool `json:"image,omitempty"`
	// Cache: a result of a step needs it.
	Cache bool `json:"cache,omitempty"`
	// Description says what it is: a step's text, a cache mount's id.
	Description string `json:"description,omitempty"`
}

// Reclaimable reports whether Prune may remove the entry.
func (e Entry) Reclaimable() bool {
	return e.Type != TypeOther && !e.InUse && !e.Image
}

const gcLock = "gc"

// references is what refers to what, at a time.
type references struct {
	names   []image.Name
	records []cache.Record
	leased  map[state.Kind]map[string]bool

	layers  map[layers.ID]snapshot.Layer
	damaged []layers.ID
	blobs   map[digest.Digest]fs.FileInfo

	imageLayers map[layers.ID]string     // → a name or ID of an image
	imageBlobs  map[digest.Digest]string // → what it is
	// used is when a layer was last used by a cached step, or by one that
	// was built on it.
	used map[layers.ID]time.Time
	// cacheLayers are those of results of steps.
	cacheLayers map[layers.ID]bool
	// oldest is when the oldest living process began.
	oldest time.Time
}

// read reads all references. The caller holds the exclusive gc lock.
func (s *Store) read() (*references, error) {
	r := &references{
		layers:      map[layers.ID]snapshot.Layer{},
		blobs:       map[digest.Digest]fs.FileInfo{},
		imageLayers: map[layers.ID]string{},
		imageBlobs:  map[digest.Digest]string{},
		used:        map[layers.ID]time.Time{},
	}
	var err error
	// Names before records before layers: what a process adds meanwhile, it
	// has leased.
	if r.names, err = s.Images.List(); err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	if r.records, err = s.Cache.All(); err != nil {
		return nil, fmt.Errorf("read build cache: %w", err)
	}
	if r.leased, err = s.Root.Leased(); err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	if r.oldest, err = s.oldestProcess(); err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	list, err := s.Layers.List()
	if err != nil {
		return nil, fmt.Errorf("read layers: %w", err)
	}
	for _, l := range list {
		r.layers[l.ID] = l
	}
	if r.damaged, err = s.Layers.Damaged(); err != nil {
		return nil, fmt.Errorf("read layers: %w", err)
	}
	err = s.Blobs.List(func(d digest.Digest, _ int64) error {
		fi, err := os.Lstat(s.Blobs.Path(d))
		if err == nil {
			r.blobs[d] = fi
		}
		return ignoreMissing(err)
	})
	if err != nil {
		return nil, fmt.Errorf("read blobs: %w", err)
	}
	r.link()
	return r, nil
}

// link follows the references of images and records.
func (r *references) link() {
	r.cacheLayers = map[layers.ID]bool{}
	for _, n := range r.names {
		for _, img := range n.Images {
			name := cmp.Or(n.Ref, img.ID.String())
			for _, id := range img.Tree {
				r.imageLayers[id] = name
			}
			r.imageBlobs[img.ID] = "configuration of " + name
			r.imageBlobs[img.Manifest] = "manifest of " + name
			for _, desc := range img.Pack.Blobs {
				r.imageBlobs[desc.Digest] = "layer of " + name
			}
			for _, a := range img.Attestations {
				r.imageBlobs[a.Desc.Digest] = "attestation of " + name
				for _, desc := range a.Blobs {
					r.imageBlobs[desc.Digest] = "attestation of " + name
				}
			}
		}
		r.imageBlobs[n.Index] = "index of " + n.Ref
	}
	for _, rec := range r.records {
		for _, t := range rec.Outputs {
			for _, id := range t {
				r.cacheLayers[id] = true
				if rec.Used.After(r.used[id]) {
					r.used[id] = rec.Used
				}
			}
		}
	}
}

// blobsOf are the digests of the blobs of a layer, those that may not be in the
// store among them.
func blobsOf(l snapshot.Layer) []digest.Digest {
	var list []digest.Digest
	for _, b := range l.Blobs {
		list = append(list, b.Digest)
	}
	for _, v := range l.Variants {
		for _, b := range v.Blobs {
			list = append(list, b.Digest)
		}
	}
	return list
}

// usedAt is when a record was last of use: when it was looked up, or one that
// was built on it. A build looks its target up and asks no further if that is
// there.
func (r *references) usedAt(rec cache.Record) time.Time {
	t := rec.Used
	for _, tree := range rec.Outputs {
		if len(tree) > 0 {
			if u := r.used[tree[len(tree)-1]]; u.After(t) {
				t = u
			}
		}
	}
	return t
}

// ofImages reports whether all that a record stands for is in images anyway.
func (r *references) ofImages(rec cache.Record) bool {
	for _, t := range rec.Outputs {
		for _, id := range t {
			if r.imageLayers[id] == "" {
				return false
			}
		}
	}
	return true
}

// inUse reports whether a living process uses one of a record's results.
func (r *references) inUse(rec cache.Record) bool {
	for _, t := range rec.Outputs {
		if len(t) > 0 && r.leased[state.KindLayer][string(t[len(t)-1])] {
			return true
		}
	}
	return false
}

// oldestProcess returns when the oldest living process that has a lease got it.
// If the file system doesn't know, it is taken for a day old.
func (s *Store) oldestProcess() (time.Time, error) {
	dir := s.Root.Path("leases")
	entries, err := os.ReadDir(dir)
	if err := ignoreMissing(err); err != nil {
		return time.Time{}, err
	}
	oldest := time.Now()
	for _, e := range entries {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, s.Root.Path("leases", e.Name()), 0, unix.STATX_BTIME, &st)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		born := time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
		if err != nil || st.Mask&unix.STATX_BTIME == 0 {
			born = time.Now().Add(-24 * time.Hour)
		}
		if born.Before(oldest) {
			oldest = born
		}
	}
	return oldest, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lock takes the exclusive gc lock.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	return s.Root.Lock(ctx, gcLock, true)
}

func short(id layers.ID) string { return string(id[:min(12, len(id))]) }

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
