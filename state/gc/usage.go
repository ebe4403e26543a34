package gc

import (
	"cmp"
	"context"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/state"
)

// Usage lists all that is in the store, the largest first. The sizes add up to
// what the store takes on the disk, but for its topmost directory and what
// changes meanwhile.
func (s *Store) Usage(ctx context.Context) ([]Entry, error) {
	entries, err := s.entries(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.measure(ctx, entries); err != nil {
		return nil, err
	}
	slices.SortStableFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.ID, b.ID))
	})
	return entries, nil
}

// entries lists all that is in the store without sizes, those that come first
// in the order of time.
func (s *Store) entries(ctx context.Context) ([]Entry, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := s.read()
	if err != nil {
		return nil, err
	}
	mounts, _, err := s.cacheMounts()
	if err != nil {
		return nil, err
	}
	list := append(r.layerEntries(), r.blobEntries()...)
	slices.SortStableFunc(list, func(a, b Entry) int { return a.Created.Compare(b.Created) })
	for _, m := range mounts {
		unlock, ok := s.tryMount(m.name)
		if ok {
			unlock()
		}
		list = append(list, m.entry(!ok))
	}
	contexts, err := s.contexts()
	if err != nil {
		return nil, err
	}
	for _, c := range contexts {
		unlock, ok := s.tryContext(c.id())
		if ok {
			unlock()
		}
		list = append(list, c.entry(!ok))
	}
	others, err := os.ReadDir(s.Root.Dir())
	if err != nil {
		return nil, err
	}
	for _, e := range others {
		t := TypeOther
		if e.Name() == "segments" {
			t = TypeSegments
		}
		list = append(list, Entry{ID: e.Name(), Type: t, Description: descriptions[e.Name()]})
	}
	return list, nil
}

var descriptions = map[string]string{
	"blobs":       "the directory of blobs",
	"builds":      "records and logs of builds",
	"cache":       "results of steps",
	"cachemounts": "the directory of cache mounts",
	"contexts":    "the directory of copies of clients' directories",
	"history":     "builds of the daemon's clients",
	"images":      "images and their names",
	"index":       "digests of files of build contexts",
	"layers":      "the directory of layers",
	"leases":      "what processes use",
	"locks":       "what processes wait for",
	"segments":    "where compressed pieces of layers are in blobs",
	"tmp":         "temporary files of processes",
}

func (m cacheMount) entry(inUse bool) Entry {
	return Entry{ID: m.name, Type: TypeCacheMount, Created: m.made, Used: m.used, InUse: inUse, Description: "cache mount " + m.id}
}

// layerEntries are the layers, with what is known of them.
func (r *references) layerEntries() []Entry {
	// A layer is the last one of what the step that made it gave.
	steps := map[layers.ID]string{}
	for _, rec := range slices.Backward(r.records) { // the last used wins
		for _, t := range rec.Outputs {
			if len(t) > 0 {
				steps[t[len(t)-1]] = oneLine(rec.Why.Name)
			}
		}
	}
	var list []Entry
	for id, l := range r.layers {
		e := Entry{
			ID: string(id), Type: TypeLayer, Created: l.Created, Used: r.used[id],
			InUse: r.leased[state.KindLayer][string(id)], Image: r.imageLayers[id] != "", Cache: r.cacheLayers[id],
			Description: steps[id],
		}
		switch {
		case e.Description != "":
		case e.Image:
			e.Description = "layer of " + r.imageLayers[id]
		case len(l.Origins) > 0:
			e.Description = "layer of " + l.Origins[0]
		}
		list = append(list, e)
	}
	for _, id := range r.damaged {
		list = append(list, Entry{ID: string(id), Type: TypeLayer, Description: "damaged"})
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func (r *references) blobEntries() []Entry {
	entries := map[string]Entry{}
	for d, fi := range r.blobs {
		entries[d.String()] = Entry{
			ID: d.String(), Type: TypeBlob, Created: fi.ModTime(),
			InUse: r.leased[state.KindBlob][d.String()], Image: r.imageBlobs[d] != "", Description: r.imageBlobs[d],
		}
	}
	for id, l := range r.layers {
		for _, d := range blobsOf(l) {
			e, ok := entries[d.String()]
			if !ok {
				continue
			}
			e.InUse = e.InUse || r.leased[state.KindLayer][string(id)]
			e.Image = e.Image || r.imageLayers[id] != ""
			e.Cache = e.Cache || r.cacheLayers[id]
			if e.Description == "" || strings.HasPrefix(e.Description, "layer of ") {
				e.Description = "packed layer " + short(id)
			}
			if r.used[id].After(e.Used) {
				e.Used = r.used[id]
			}
			entries[d.String()] = e
		}
	}
	list := make([]Entry, 0, len(entries))
	for _, e := range entries {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// measure fills in the sizes.
func (s *Store) measure(ctx context.Context, entries []Entry) error {
	// What has an entry of its own is not counted with the directory it is in.
	own := map[string]bool{}
	for _, e := range entries {
		own[s.place(e)] = true
	}
	var d disk
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range entries {
		e := &entries[i]
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			e.Size, err = d.usage(s.place(*e), own)
			return err
		})
	}
	return g.Wait()
}

// place is where an entry is.
func (s *Store) place(e Entry) string {
	switch e.Type {
	case TypeLayer:
		return s.Root.Path("layers", e.ID)
	case TypeCacheMount:
		return s.Root.Path("cachemounts", e.ID)
	case TypeContext:
		return s.contextPlace(e.ID)
	case TypeBlob:
		return s.Blobs.Path(digest.Digest(e.ID))
	}
	return s.Root.Path(e.ID)
}
