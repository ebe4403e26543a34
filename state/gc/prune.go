package gc

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/state"
)

// Options says what Prune removes. The zero value removes all build cache that
// is not in use and not part of an image.
type Options struct {
	// All: the results of steps are forgotten even if their layers are part
	// of images, which keep them.
	All bool
	// KeepDuration keeps what was used, or made, within this time.
	KeepDuration time.Duration
	// MaxUsed, if positive, is how many bytes the store may take: what was
	// not used for the longest time goes until it takes no more.
	MaxUsed int64
	// MinFree, if positive, is how many bytes are to be free on the store's
	// file system: as much goes, likewise.
	MinFree int64
	// Reserved is how many bytes the store may take in any case. Without
	// MaxUsed and MinFree it is the limit itself.
	Reserved int64
	// Types, if any, are the types of what is removed.
	Types []Type
	// IDs, if any, are beginnings of the IDs of what is removed: layers,
	// blobs, cache mounts.
	IDs []string
}

// candidate is something that Prune may remove of its own, with what becomes
// garbage by it.
type candidate struct {
	used time.Time
	// One of these.
	record  *cache.Record
	mount   *cacheMount
	context *contextCopy
	segment os.FileInfo
}

// Prune removes build cache and garbage, and returns what was removed with what
// it took on the disk. If it fails, that is what was removed until then.
func (s *Store) Prune(ctx context.Context, o Options) ([]Entry, error) {
	var sizes map[string]int64
	total := int64(0)
	if o.limited() {
		// Before the lock is taken: it takes long.
		entries, err := s.Usage(ctx)
		if err != nil {
			return nil, fmt.Errorf("measure the store: %w", err)
		}
		sizes = map[string]int64{}
		for _, e := range entries {
			sizes[e.ID] = e.Size
			total += e.Size
		}
	}
	limit, err := o.limit(s.Root.Dir(), total)
	if err != nil {
		return nil, err
	}
	p := &pruning{Store: s, o: o, sizes: sizes, excess: total - limit, before: time.Now().Add(-o.KeepDuration)}
	err = p.collect(ctx)
	removed, rerr := p.empty()
	err = errors.Join(err, rerr)
	if err == nil && len(p.forgotten) > 0 {
		err = s.tidy(p)
	}
	return removed, err
}

// tidy has the cache forget what was dropped. If there is no space for that, it
// is no failure: what could go has gone, records of it are misses, and a later
// process tidies up.
func (s *Store) tidy(p *pruning) error {
	var err error
	if p.full {
		// Only now is there space to note it.
		err = s.Cache.Delete(p.forgotten...)
	}
	if err == nil {
		err = s.Cache.Compact()
	}
	if noSpace(err) {
		return nil
	}
	return err
}

func (o Options) limited() bool { return o.MaxUsed > 0 || o.MinFree > 0 || o.Reserved > 0 }

// limit is how many bytes the store may take.
func (o Options) limit(dir string, total int64) (int64, error) {
	limit := int64(-1)
	if o.MaxUsed > 0 {
		limit = o.MaxUsed
	}
	if o.MinFree > 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return 0, fmt.Errorf("ask for free space: %w", err)
		}
		free := int64(st.Bavail) * st.Bsize
		if l := total - max(0, o.MinFree-free); limit < 0 || l < limit {
			limit = l
		}
	}
	return max(limit, o.Reserved, 0), nil
}

func (o Options) wants(t Type, ids ...string) bool {
	if len(o.Types) > 0 && !slices.Contains(o.Types, t) {
		return false
	}
	return len(o.IDs) == 0 || slices.ContainsFunc(ids, func(id string) bool {
		return slices.ContainsFunc(o.IDs, func(prefix string) bool {
			return strings.HasPrefix(id, prefix) || strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), prefix)
		})
	})
}

// pruning is one run of Prune.
type pruning struct {
	*Store
	o      Options
	before time.Time // what was used since stays
	sizes  map[string]int64
	excess int64 // bytes to be freed, if there is a limit

	refs *references
	// holders counts the records that a layer is held by, and blobs by the
	// layers that name them.
	holders     map[layers.ID]int
	blobHolders map[digest.Digest]int

	trash     string // a directory; empty if there is no space for one
	forgotten []cache.Key
	full      bool // there was no space to tell the cache what is forgotten
	removed   []Entry
	trashed   map[string]int // path in trash → index in removed
}

// collect takes everything that is to go out of the store.
func (p *pruning) collect(ctx context.Context) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if p.refs, err = p.read(); err != nil {
		return err
	}
	p.trashed = map[string]int{}
	// Without space it is removed where it is.
	p.trash, err = p.Root.TempDir("prune")
	if err != nil && !noSpace(err) {
		return err
	}
	p.countHolders()
	if err := p.garbage(ctx); err != nil {
		return err
	}
	candidates, err := p.candidates()
	if err != nil {
		return err
	}
	for _, c := range candidates {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
			break
		}
		if p.o.limited() && p.excess <= 0 {
			break
		}
		if err = p.drop(c); err != nil {
			break
		}
	}
	// Records of layers that are gone are misses, but take space.
	if len(p.forgotten) > 0 {
		derr := p.Cache.Delete(p.forgotten...)
		if p.full = noSpace(derr); !p.full {
			err = errors.Join(err, derr)
		}
	}
	return err
}

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func (p *pruning) countHolders() {
	p.holders = map[layers.ID]int{}
	p.blobHolders = map[digest.Digest]int{}
	for id := range p.refs.imageLayers {
		p.holders[id]++
	}
	for id := range p.refs.leased[state.KindLayer] {
		p.holders[layers.ID(id)]++
	}
	for _, rec := range p.refs.records {
		for id := range layersOf(rec) {
			p.holders[id]++
		}
	}
	for d := range p.refs.imageBlobs {
		p.blobHolders[d]++
	}
	for d := range p.refs.leased[state.KindBlob] {
		p.blobHolders[digest.Digest(d)]++
	}
	for _, l := range p.refs.layers {
		for _, d := range blobsOf(l) {
			p.blobHolders[d]++
		}
	}
}

// layersOf is the set of layers of a record's results.
func layersOf(rec cache.Record) map[layers.ID]bool {
	set := map[layers.ID]bool{}
	for _, t := range rec.Outputs {
		for _, id := range t {
			set[id] = true
		}
	}
	return set
}

// garbage removes what nothing refers to.
func (p *pruning) garbage(ctx context.Context) error {
	for _, id := range p.refs.damaged {
		if p.refs.leased[state.KindLayer][string(id)] || !p.o.wants(TypeLayer, string(id)) {
			continue
		}
		if err := p.removeLayer(id); err != nil {
			return err
		}
	}
	for id, l := range p.refs.layers {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if p.holders[id] == 0 && p.o.wants(TypeLayer, string(id)) && (p.o.KeepDuration == 0 || l.Created.Before(p.before)) {
			if err := p.removeLayer(id); err != nil {
				return err
			}
		}
	}
	for d := range p.refs.blobs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !p.o.wants(TypeBlob, d.String()) {
			continue
		}
		if err := p.removeBlob(d); err != nil {
			return err
		}
	}
	return nil
}

// candidates are the records, cache mounts and segments that may go, those that
// were not used for the longest time first.
func (p *pruning) candidates() ([]candidate, error) {
	var list []candidate
	add := func(c candidate) {
		if c.used.Before(p.before) || p.o.KeepDuration == 0 {
			list = append(list, c)
		}
	}
	for i := range p.refs.records {
		rec := &p.refs.records[i]
		if !p.refs.inUse(*rec) && (p.o.All || !p.refs.ofImages(*rec)) {
			ids := []string{string(rec.Key)}
			for _, t := range rec.Outputs {
				if len(t) > 0 {
					ids = append(ids, string(t[len(t)-1]))
				}
			}
			if p.o.wants(TypeLayer, ids...) {
				add(candidate{used: p.refs.usedAt(*rec), record: rec})
			}
		}
	}
	mounts, _, err := p.cacheMounts()
	if err != nil {
		return nil, err
	}
	for i := range mounts {
		if m := &mounts[i]; p.o.wants(TypeCacheMount, m.name, m.id) {
			add(candidate{used: m.used, mount: m})
		}
	}
	contexts, err := p.contexts()
	if err != nil {
		return nil, err
	}
	for i := range contexts {
		if c := &contexts[i]; p.o.wants(TypeContext, c.id()) {
			add(candidate{used: c.used, context: c})
		}
	}
	if p.o.wants(TypeSegments, string(TypeSegments)) {
		segments, err := os.ReadDir(p.Root.Path("segments"))
		if err := ignoreMissing(err); err != nil {
			return nil, err
		}
		for _, e := range segments {
			if _, err := hex.DecodeString(e.Name()); err != nil {
				continue
			}
			if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
				add(candidate{used: fi.ModTime(), segment: fi})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int {
		// At the same hour, what is built on others goes before them.
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(b.depth(), a.depth()))
	})
	return list, nil
}

func (c candidate) depth() int {
	if c.record == nil {
		return 0
	}
	return len(layersOf(*c.record))
}

// drop removes a candidate.
func (p *pruning) drop(c candidate) error {
	switch {
	case c.record != nil:
		p.forgotten = append(p.forgotten, c.record.Key)
		for id := range layersOf(*c.record) {
			if p.holders[id]--; p.holders[id] == 0 {
				if _, ok := p.refs.layers[id]; !ok {
					continue
				}
				if err := p.removeLayer(id); err != nil {
					return err
				}
			}
		}
		return nil
	case c.mount != nil:
		unlock, ok := p.tryMount(c.mount.name)
		if !ok {
			return nil
		}
		defer unlock()
		return p.remove(c.mount.entry(false), "")
	case c.context != nil:
		unlock, ok := p.tryContext(c.context.id())
		if !ok {
			return nil
		}
		defer unlock()
		return p.remove(c.context.entry(false), "")
	default:
		return p.removeSegments(c.segment)
	}
}

// removeSegments removes the list of a blob's segments.
func (p *pruning) removeSegments(list os.FileInfo) error {
	err := os.Remove(p.Root.Path("segments", list.Name()))
	if err != nil {
		return ignoreMissing(err)
	}
	p.reclaim(Entry{ID: string(TypeSegments), Type: TypeSegments, Size: blocks(list), Description: descriptions["segments"]})
	return nil
}

// removeLayer removes a layer that nothing holds, and the blobs that only it
// named.
func (p *pruning) removeLayer(id layers.ID) error {
	l := p.refs.layers[id]
	e := Entry{ID: string(id), Type: TypeLayer, Created: l.Created, Used: p.refs.used[id], Description: p.describe(id)}
	if err := p.remove(e, "layer.json"); err != nil {
		return err
	}
	for _, d := range blobsOf(l) {
		p.blobHolders[d]--
		if err := p.removeBlob(d); err != nil {
			return err
		}
	}
	return nil
}

func (p *pruning) describe(id layers.ID) string {
	for _, rec := range p.refs.records {
		for _, t := range rec.Outputs {
			if len(t) > 0 && t[len(t)-1] == id {
				return oneLine(rec.Why.Name)
			}
		}
	}
	return ""
}

// removeBlob removes a blob if it is there, nothing holds it, and nobody can be
// about to.
func (p *pruning) removeBlob(d digest.Digest) error {
	fi, ok := p.refs.blobs[d]
	if !ok || p.blobHolders[d] > 0 {
		return nil
	}
	if !fi.ModTime().Before(p.refs.oldest) || p.o.KeepDuration > 0 && !fi.ModTime().Before(p.before) {
		return nil
	}
	delete(p.refs.blobs, d)
	if err := p.Blobs.Remove(d); err != nil {
		return err
	}
	p.reclaim(Entry{ID: d.String(), Type: TypeBlob, Size: blocks(fi), Created: fi.ModTime()})
	if list, err := os.Lstat(p.Root.Path("segments", d.Encoded())); err == nil {
		return p.removeSegments(list)
	}
	return nil
}

// remove takes a directory out of the store. Without a trash it is removed in
// its place, the file first without which it is none.
func (p *pruning) remove(e Entry, first string) error {
	path := p.place(e)
	if p.trash != "" {
		name := filepath.Join(p.trash, string(e.Type)+"-"+e.ID)
		err := os.Rename(path, name)
		if err == nil {
			p.trashed[name] = len(p.removed)
			p.removed = append(p.removed, e)
			p.excess -= p.sizes[e.ID]
			return nil
		}
		if !noSpace(err) {
			return ignoreMissing(err)
		}
	}
	var d disk
	e.Size, _ = d.freed(path)
	if first != "" {
		if err := os.Remove(filepath.Join(path, first)); ignoreMissing(err) != nil {
			return err
		}
	}
	if err := state.RemoveAll(path); err != nil {
		return err
	}
	p.reclaim(e)
	return nil
}

// reclaim notes what was removed. Segments are one entry.
func (p *pruning) reclaim(e Entry) {
	p.excess -= e.Size
	if e.Type == TypeSegments {
		i := slices.IndexFunc(p.removed, func(r Entry) bool { return r.Type == TypeSegments })
		if i >= 0 {
			p.removed[i].Size += e.Size
			return
		}
	}
	p.removed = append(p.removed, e)
}

// empty removes what was taken out of the store, now that nobody waits, and
// returns all that was removed.
func (p *pruning) empty() ([]Entry, error) {
	if p.trash == "" {
		return p.removed, nil
	}
	var errs []error
	var d disk
	for path, i := range p.trashed {
		size, err := d.freed(path)
		p.removed[i].Size = size
		errs = append(errs, err)
	}
	return p.removed, errors.Join(append(errs, state.RemoveAll(p.trash))...)
}
