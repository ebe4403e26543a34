package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/internal/flight"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
)

// Importer asks one cache, for one build.
type Importer struct {
	backend Backend
	layers  *snapshot.Store
	warn    func(error)
	// Patience is how long one answer may take before the cache is passed
	// over; 0 is 30 seconds.
	Patience time.Duration
	// Mounts: directories of cache mounts are asked for, too (mounts=true).
	Mounts bool

	flights flight.Group[[]byte]
	slots   chan struct{}

	mu      sync.Mutex
	down    bool
	missing map[string]bool    // names that the cache said it does not have
	found   map[string][]byte  // what it answered of others
	room    int                // how many bytes more found may hold
	lost    map[layers.ID]bool // layers whose blobs it does not have after all
	given   map[layers.ID][]cache.Key
	damaged map[cache.Key]bool // records with lost layers
}

const (
	patience = 30 * time.Second
	// asks is how many requests are under way at once.
	asks = 16
	// remembered is how many bytes of answers are kept for the build, which may
	// want them again: a record is asked for ahead, for its memos and for its
	// result.
	remembered = 16 << 20
)

// NewImporter returns an importer that adds layers to a store. warn is called
// at most once, when the cache is given up.
func NewImporter(b Backend, store *snapshot.Store, warn func(error)) *Importer {
	return &Importer{
		backend: b, layers: store, warn: warn, Patience: patience, slots: make(chan struct{}, asks),
		missing: map[string]bool{}, found: map[string][]byte{}, room: remembered, lost: map[layers.ID]bool{}, given: map[layers.ID][]cache.Key{}, damaged: map[cache.Key]bool{},
	}
}

// Record returns the result of a key, with layers that are in the store now, as
// far as what is known of them.
func (im *Importer) Record(ctx context.Context, k cache.Key) (cache.Record, bool) {
	im.mu.Lock()
	damaged := im.damaged[k]
	im.mu.Unlock()
	if damaged {
		return cache.Record{}, false
	}
	r, ok := im.record(ctx, recordName(k), k)
	if !ok {
		return cache.Record{}, false
	}
	rec := cache.Record{Key: k, Made: r.Made, Took: r.Took, Why: r.Why}
	for _, out := range r.Outputs {
		t, ok := im.tree(k, out)
		if !ok {
			return cache.Record{}, false
		}
		rec.Outputs = append(rec.Outputs, t)
		rec.Trees = append(rec.Trees, out.Tree)
	}
	return rec, true
}

// tree adds the layers of a result to the store.
func (im *Importer) tree(k cache.Key, out Output) (layers.Tree, bool) {
	t := layers.Tree{}
	for _, l := range out.Layers {
		id := layers.ID(l.DiffID.Encoded())
		im.mu.Lock()
		lost := im.lost[id]
		if lost {
			im.damaged[k] = true
		} else if !slices.Contains(im.given[id], k) {
			im.given[id] = append(im.given[id], k)
		}
		im.mu.Unlock()
		if lost {
			return nil, false
		}
		var err error
		if known, kerr := im.layers.Layer(id); kerr == nil && !known.Cached && len(known.Blobs) > 0 &&
			!slices.ContainsFunc(known.Blobs, func(b ocispec.Descriptor) bool { return b.Digest == l.Blob.Digest }) {
			// An image has told which blobs it has, and those are not to be
			// mixed with what is only claimed.
		} else if l.Base {
			_, err = im.layers.AddBlob(l.DiffID, l.Blob, l.Origins...)
		} else {
			_, err = im.layers.AddCached(l.DiffID, l.Blob, im.backend.Origin())
		}
		if err != nil {
			im.fail(fmt.Errorf("add layer %s: %w", l.DiffID, err))
			return nil, false
		}
		t = append(t, id)
	}
	return t, true
}

// Identity returns the record of a key without its layers: what its results are
// known by in memos.
func (im *Importer) Identity(ctx context.Context, k cache.Key) (cache.Record, bool) {
	im.mu.Lock()
	damaged := im.damaged[k]
	im.mu.Unlock()
	if damaged {
		return cache.Record{}, false
	}
	for _, name := range []string{recordName(k), identityName(k)} {
		if r, ok := im.record(ctx, name, k); ok {
			rec := cache.Record{Key: k, Made: r.Made, Took: r.Took, Why: r.Why}
			for _, out := range r.Outputs {
				rec.Trees = append(rec.Trees, out.Tree)
			}
			return rec, true
		}
	}
	return cache.Record{}, false
}

// Memo returns the digest of the content that selector names in a tree.
func (im *Importer) Memo(ctx context.Context, tree, selector string) (digest.Digest, bool) {
	data, ok := im.get(ctx, memoName(tree, selector))
	if !ok {
		return "", false
	}
	d, err := decodeMemo(data, tree, selector)
	return d, err == nil
}

// Prefetch asks for the records of keys that are likely to be wanted. It returns
// when all have been answered; what they say is remembered.
func (im *Importer) Prefetch(ctx context.Context, keys []cache.Key) {
	var wg sync.WaitGroup
	for _, k := range keys {
		wg.Go(func() { im.get(ctx, recordName(k)) })
	}
	wg.Wait()
}

// Lose notes that the blobs of a layer are not to be had: records with it count
// for nothing in this build.
func (im *Importer) Lose(id layers.ID) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.lost[id] = true
	for _, k := range im.given[id] {
		im.damaged[k] = true
	}
}

// GiveUp has the cache count for nothing in the rest of this build.
func (im *Importer) GiveUp(err error) { im.fail(err) }

// Distrust has the record of a key count for nothing in this build.
func (im *Importer) Distrust(k cache.Key) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.damaged[k] = true
}

// Damaged reports whether the record that the cache has for a key is one whose
// layers it has not.
func (im *Importer) Damaged(k cache.Key) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.damaged[k]
}

// Backend is the cache that is asked.
func (im *Importer) Backend() Backend { return im.backend }

func (im *Importer) record(ctx context.Context, name string, k cache.Key) (Record, bool) {
	data, ok := im.get(ctx, name)
	if !ok {
		return Record{}, false
	}
	r, err := DecodeRecord(data, k)
	if err != nil {
		im.Distrust(k) // so that it is replaced
	}
	return r, err == nil
}

// get fetches an object. The answer is remembered.
func (im *Importer) get(ctx context.Context, name string) ([]byte, bool) {
	if data, err := im.known(name); !errors.Is(err, errUnknown) {
		return data, err == nil
	}
	data, err := im.flights.Do(ctx, name, func(ctx context.Context) ([]byte, error) {
		// Another flight may have ended since.
		if data, err := im.known(name); !errors.Is(err, errUnknown) {
			return data, err
		}
		select {
		case im.slots <- struct{}{}:
			defer func() { <-im.slots }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		ctx, cancel := context.WithTimeoutCause(ctx, im.Patience, fmt.Errorf("no answer for %s", im.Patience))
		defer cancel()
		data, err := im.backend.Get(ctx, name)
		im.remember(name, data, err)
		return data, err
	})
	if err != nil && !errors.Is(err, ErrNotFound) && ctx.Err() == nil {
		im.fail(err)
	}
	return data, err == nil
}

var errUnknown = errors.New("not asked yet")

// known returns what the cache has answered before: if it was not asked, or
// its answer is not kept, the error is errUnknown.
func (im *Importer) known(name string) ([]byte, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.down || im.missing[name] {
		return nil, ErrNotFound
	}
	if data, ok := im.found[name]; ok {
		return data, nil
	}
	return nil, errUnknown
}

// remember keeps an answer, if there is room for it.
func (im *Importer) remember(name string, data []byte, err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	switch {
	case errors.Is(err, ErrNotFound):
		im.missing[name] = true
	case err == nil && len(data) <= im.room:
		im.room -= len(data)
		im.found[name] = data
	}
}

// fail gives the cache up for this build.
func (im *Importer) fail(err error) {
	im.mu.Lock()
	again := im.down
	im.down = true
	im.mu.Unlock()
	if !again {
		im.warn(fmt.Errorf("cache %s is not used: %w", im.backend, err))
	}
}
