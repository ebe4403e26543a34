package gc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/state"
)

// testStore opens a store as a process of its own does.
func testStore(t testing.TB, dir string) *Store {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := state.Open(dir)
	check(err)
	s := &Store{Root: root}
	s.Blobs, err = blob.Open(root.Path("blobs"), root.TempFile)
	check(err)
	rootless := os.Geteuid() != 0
	s.Layers, err = snapshot.Open(root, snapshot.Options{
		Driver: &copydir.Driver{UserXattr: rootless, RecordOwners: rootless}, UserXattr: rootless, RecordOwners: rootless,
	})
	check(err)
	s.Images, err = image.OpenStore(root, s.Blobs)
	check(err)
	s.Cache, err = cache.Open(root, func(err error) { t.Errorf("warning: %v", err) })
	check(err)
	t.Cleanup(s.close(t))
	return s
}

// close ends the process that has opened s.
func (s *Store) close(t testing.TB) func() {
	return func() {
		if err := errors.Join(s.Cache.Close(), s.Root.Close()); err != nil {
			t.Error(err)
		}
	}
}

// fill is what a finished process has left: it runs fn on a store and closes it.
func fill(t testing.TB, dir string, fn func(*Store)) {
	t.Helper()
	s := testStore(t, dir)
	fn(s)
	s.close(t)()
}

func (s *Store) layer(t testing.TB, name string, size int) layers.ID {
	t.Helper()
	id, err := s.Layers.AddEntries(t.Context(), []layers.Entry{{
		Path: name, Type: layers.Regular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid(),
		Size: int64(size), Data: bytes.Repeat([]byte("x"), size), Inline: true,
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (s *Store) record(t testing.TB, step string, trees ...layers.Tree) cache.Key {
	t.Helper()
	k := cache.Key(digest.FromString(step).Encoded())
	if err := s.Cache.Put(cache.Record{Key: k, Outputs: trees, Why: cache.Why{Name: step}}); err != nil {
		t.Fatal(err)
	}
	return k
}

func (s *Store) image(t testing.TB, ref string, tree layers.Tree) digest.Digest {
	t.Helper()
	config := []byte(`{"name":"` + ref + `"}`)
	id := digest.FromBytes(config)
	if err := s.Images.Put([]string{ref}, []image.Image{{ID: id, Tree: tree}}, [][]byte{config}, ""); err != nil {
		t.Fatal(err)
	}
	return id
}

func (s *Store) blob(t testing.TB, content string) digest.Digest {
	t.Helper()
	d, _, err := s.Blobs.Put(strings.NewReader(content), "", -1)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pack gives a layer a blob.
func (s *Store) pack(t testing.TB, id layers.ID) digest.Digest {
	t.Helper()
	p := &image.Packer{Layers: s.Layers, Blobs: s.Blobs}
	ref, _, err := p.Pack(t.Context(), id, image.PackOptions{Compression: compress.Gzip}, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	return ref.Desc.Digest
}

func (s *Store) cacheMount(t testing.TB, id string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(id))
	name := hex.EncodeToString(sum[:16])
	meta, err := json.Marshal(map[string]any{"id": id, "created": time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	write(t, "contents", s.Root.Path("cachemounts", name, "fs", "file"))
	write(t, string(meta), s.Root.Path("cachemounts", name, "meta.json"))
	return name
}

func (s *Store) segment(t testing.TB, content string) {
	t.Helper()
	write(t, content, s.Root.Path("segments", digest.FromString(content).Encoded()))
}

func write(t testing.TB, content, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// contents are the layers, blobs, cache mounts and segments in the store, by the
// names that the test has for them.
func (s *Store) contents(t testing.TB, names map[string]string) []string {
	t.Helper()
	var list []string
	for _, pattern := range []string{"layers/*", "blobs/sha256/*", "cachemounts/*", "segments/*"} {
		paths, err := filepath.Glob(s.Root.Path(pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			name := filepath.Base(p)
			if n, ok := names[name]; ok {
				name = n
			}
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// example is a store with something of every kind. The names of what is in it
// tell what it is for.
type example struct {
	dir   string
	names map[string]string // → what it is
	keys  map[string]cache.Key
}

func newExample(t testing.TB) example {
	ex := example{dir: t.TempDir(), names: map[string]string{}, keys: map[string]cache.Key{}}
	fill(t, ex.dir, func(s *Store) {
		base, one, two := s.layer(t, "base", 9000), s.layer(t, "one", 20000), s.layer(t, "two", 30000)
		other, alone := s.layer(t, "other", 40000), s.layer(t, "alone", 50000)
		ex.names = map[string]string{
			string(base): "base", string(one): "one", string(two): "two", string(other): "other", string(alone): "alone",
			s.pack(t, one).Encoded():         "one.gz",
			s.pack(t, other).Encoded():       "other.gz",
			s.blob(t, "nothing's").Encoded(): "garbage",
			s.cacheMount(t, "/root/.cache"):  "mount",
		}
		s.segment(t, "segment")
		ex.names[digest.FromString("segment").Encoded()] = "segment"
		ex.keys["one"] = s.record(t, "RUN one", layers.Tree{base, one})
		ex.keys["two"] = s.record(t, "RUN two", layers.Tree{base, one, two})
		ex.keys["other"] = s.record(t, "RUN  other \\\n  thing", layers.Tree{base, other})
		ex.names[s.image(t, "docker.io/library/app:latest", layers.Tree{base, one}).Encoded()] = "config"
	})
	return ex
}

var everything = []string{"alone", "base", "config", "garbage", "mount", "one", "one.gz", "other", "other.gz", "segment", "two"}

func TestPrune(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		o       Options
		left    string
		records string
	}{
		{"build cache that no image needs", Options{}, "base config one one.gz", "one"},
		{"all build cache", Options{All: true}, "base config one one.gz", ""},
		{"of yesterday", Options{KeepDuration: 24 * time.Hour}, strings.Join(everything, " "), "one other two"},
		{"cache mounts", Options{Types: []Type{TypeCacheMount}}, "alone base config garbage one one.gz other other.gz segment two", "one other two"},
		{"segments", Options{Types: []Type{TypeSegments}}, "alone base config garbage mount one one.gz other other.gz two", "one other two"},
		{"blobs", Options{Types: []Type{TypeBlob}}, "alone base config mount one one.gz other other.gz segment two", "one other two"},
		{"layers", Options{Types: []Type{TypeLayer}}, "base config garbage mount one one.gz segment", "one"},
		{"a limit above all", Options{MaxUsed: 1 << 30}, "base config mount one one.gz other other.gz segment two", "one other two"},
		{"a limit of nothing", Options{MaxUsed: 1}, "base config one one.gz", "one"},
		{"a limit below what is reserved", Options{MaxUsed: 1, Reserved: 1 << 30}, "base config mount one one.gz other other.gz segment two", "one other two"},
		{"free space that is there", Options{MinFree: 1}, "base config mount one one.gz other other.gz segment two", "one other two"},
		{"free space that can't be had", Options{MinFree: 1 << 60}, "base config one one.gz", "one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ex := newExample(t)
			s := testStore(t, ex.dir)
			if diff := cmp.Diff(everything, s.contents(t, ex.names)); diff != "" {
				t.Fatalf("before (-want +got):\n%s", diff)
			}
			before, err := s.Usage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			removed, err := s.Prune(t.Context(), c.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Fields(c.left), s.contents(t, ex.names)); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
			var records []string
			for name, k := range ex.keys {
				if _, ok := s.Cache.Get(k); ok {
					records = append(records, name)
				}
			}
			slices.Sort(records)
			if got := strings.Join(records, " "); got != c.records {
				t.Errorf("records %q are left, want %q", got, c.records)
			}
			// What it says it removed is what is missing, and was as large.
			gone := map[string]int64{}
			for _, e := range before {
				if e.Type != TypeOther && e.Type != TypeSegments && !slices.Contains(s.contents(t, ex.names), ex.name(e)) {
					gone[ex.name(e)] = e.Size
				}
			}
			said := map[string]int64{}
			for _, e := range removed {
				said[ex.name(e)] = e.Size
			}
			delete(said, "segments") // the directory is left
			if diff := cmp.Diff(gone, said); diff != "" {
				t.Errorf("sizes of what was removed (-want +got):\n%s", diff)
			}
			if problems, err := s.Check(t.Context(), true); err != nil || len(problems) > 0 {
				t.Errorf("after pruning: %v, %v", problems, err)
			}
			if temp, _ := filepath.Glob(s.Root.Path("tmp", "*", "prune*")); len(temp) > 0 {
				t.Errorf("%q are left", temp)
			}
		})
	}
}

func (ex example) name(e Entry) string {
	if n, ok := ex.names[strings.TrimPrefix(e.ID, "sha256:")]; ok {
		return n
	}
	return e.ID
}

// The list of a blob's segments goes with the blob.
func TestPruneSegmentsOfBlob(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var gone, kept string
	fill(t, dir, func(s *Store) {
		gone, kept = s.blob(t, "nothing's").Encoded(), s.pack(t, s.layer(t, "layer", 9000)).Encoded()
		for _, name := range []string{gone, kept} {
			write(t, "list", s.Root.Path("segments", name))
		}
	})
	s := testStore(t, dir)
	if _, err := s.Prune(t.Context(), Options{Types: []Type{TypeBlob}}); err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob(s.Root.Path("segments", "*"))
	if err != nil || len(lists) != 1 || filepath.Base(lists[0]) != kept {
		t.Errorf("left: %q, %v; want the list of %s", lists, err, kept)
	}
}

func TestPruneByID(t *testing.T) {
	t.Parallel()
	ex := newExample(t)
	s := testStore(t, ex.dir)
	var two string
	for id, name := range ex.names {
		if name == "two" {
			two = id
		}
	}
	removed, err := s.Prune(t.Context(), Options{IDs: []string{two[:12]}})
	if err != nil || len(removed) != 1 || removed[0].ID != two || removed[0].Description != "RUN two" {
		t.Errorf("removed %v, %v, want layer two", removed, err)
	}
	if _, ok := s.Cache.Get(ex.keys["two"]); ok {
		t.Error("its record is left")
	}
}

// With a limit, what was built on something goes before it, and no more goes
// than must.
func TestPruneToLimit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	names := map[string]string{}
	fill(t, dir, func(s *Store) {
		var tree layers.Tree
		for i := range 5 {
			id := s.layer(t, "file", 100_000)
			names[string(id)] = fmt.Sprint(i)
			tree = append(tree, id)
			s.record(t, fmt.Sprint("RUN ", i), slices.Clone(tree))
		}
	})
	s := testStore(t, dir)
	total := func() (n int64) {
		t.Helper()
		entries, err := s.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			n += e.Size
		}
		return n
	}
	limit := total() - 150_000
	if _, err := s.Prune(t.Context(), Options{MaxUsed: limit}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"0", "1", "2"}, s.contents(t, names)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if got := total(); got > limit {
		t.Errorf("%d bytes are in use, more than %d", got, limit)
	}
}

func TestUsedAtFollowsWhatWasBuiltOnIt(t *testing.T) {
	t.Parallel()
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	r := &references{
		imageLayers: map[layers.ID]string{}, imageBlobs: map[digest.Digest]string{}, used: map[layers.ID]time.Time{},
		records: []cache.Record{
			{Key: "base", Outputs: []layers.Tree{{"a"}}, Used: day(1)},
			{Key: "on base", Outputs: []layers.Tree{{"a", "b"}}, Used: day(20)},
			{Key: "sibling", Outputs: []layers.Tree{{"a", "c"}}, Used: day(5)},
			{Key: "nothing", Used: day(2)},
		},
	}
	r.link()
	for i, want := range []time.Time{day(20), day(20), day(5), day(2)} {
		if got := r.usedAt(r.records[i]); got != want {
			t.Errorf("%s: used at %v, want %v", r.records[i].Key, got, want)
		}
	}
}

// What a living process uses stays, and so do blobs that it may be about to use.
func TestPruneKeepsWhatIsInUse(t *testing.T) {
	t.Parallel()
	ex := newExample(t)
	process := testStore(t, ex.dir)
	rec, ok := process.Cache.Get(ex.keys["two"])
	if !ok {
		t.Fatal("miss")
	}
	if ok, err := process.Layers.Lease(rec.Outputs[0]); !ok || err != nil {
		t.Fatal(ok, err)
	}
	unlock, err := process.Root.Lock(t.Context(), "cachemount-"+nameOf(ex, "mount"), false)
	if err != nil {
		t.Fatal(err)
	}
	ex.names[process.blob(t, "of the process").Encoded()] = "fresh"
	leased := nameOf(ex, "other.gz")
	if err := process.Root.Keep(state.KindBlob, "sha256:"+leased); err != nil {
		t.Fatal(err)
	}

	s := testStore(t, ex.dir)
	for _, e := range must(s.Usage(t.Context()))(t) {
		want := slices.Contains([]string{"base", "one", "two", "one.gz", "mount", "other.gz"}, ex.name(e))
		if e.InUse != want {
			t.Errorf("%s: in use is %v, want %v", ex.name(e), e.InUse, want)
		}
	}
	must(s.Prune(t.Context(), Options{All: true}))(t)
	want := strings.Fields("base config fresh mount one one.gz other.gz two")
	if diff := cmp.Diff(want, s.contents(t, ex.names)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if _, ok := s.Cache.Get(ex.keys["two"]); !ok {
		t.Error("the record of what is in use is forgotten")
	}

	unlock()
	process.close(t)()
	s.close(t)()
	s = testStore(t, ex.dir)
	must(s.Prune(t.Context(), Options{All: true}))(t)
	want = strings.Fields("base config one one.gz")
	if diff := cmp.Diff(want, s.contents(t, ex.names)); diff != "" {
		t.Errorf("left after the process has ended (-want +got):\n%s", diff)
	}
}

// What an image is about to get stays, even if it was garbage before: documents
// that are stored again are not written again.
func TestPruneKeepsWhatAnImageGets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const index, manifest, statement, empty, config = "an index", "a manifest", "a statement", "{}", `{"name":"app"}`
	names := map[string]string{}
	fill(t, dir, func(s *Store) {
		for _, content := range []string{index, manifest, statement, empty, config, "garbage"} {
			names[s.blob(t, content).Encoded()] = content
		}
	})
	ref := func(content string) blob.Ref {
		return blob.Ref{
			Desc: ocispec.Descriptor{Digest: digest.FromString(content), Size: int64(len(content))},
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
		}
	}
	process, other := testStore(t, dir), testStore(t, dir)
	if _, err := process.Images.PutAttestation(t.Context(), &image.Packed{
		Desc: ref(manifest).Desc, Manifest: []byte(manifest), Config: ref(empty), Layers: []blob.Ref{ref(statement)},
	}); err != nil {
		t.Fatal(err)
	}
	if err := process.Images.Keep(digest.FromString(index), []byte(index)); err != nil {
		t.Fatal(err)
	}
	id := process.image(t, "app", nil)
	if _, _, err := process.Images.Remove(id.String(), false); err != nil { // as if it was not yet there
		t.Fatal(err)
	}
	must(other.Prune(t.Context(), Options{All: true}))(t)
	want := []string{index, manifest, statement, config, empty}
	got := other.contents(t, names)
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func nameOf(ex example, what string) string {
	for name, w := range ex.names {
		if w == what {
			return name
		}
	}
	return ""
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Processes that build lose nothing to one that prunes all the time.
func TestPruneWhileOthersBuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pruner := testStore(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	var builders, prune sync.WaitGroup
	prune.Go(func() {
		for ctx.Err() == nil {
			if _, err := pruner.Prune(t.Context(), Options{All: true}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for b := range 3 {
		builders.Go(func() {
			for round := range 8 {
				s := testStore(t, dir)
				var tree layers.Tree
				for i := range 4 {
					step := fmt.Sprint("RUN ", i, " of ", b%2)
					k := cache.Key(digest.FromString(step).Encoded())
					if rec, ok := s.Cache.Get(k); ok {
						ok, err := s.Layers.Lease(rec.Outputs[0])
						if err != nil {
							t.Error(err)
						}
						if ok {
							tree = rec.Outputs[0]
							continue
						}
					}
					tree = append(slices.Clone(tree), s.layer(t, step, 5000))
					s.record(t, step, tree)
				}
				for _, id := range tree {
					if _, err := os.Stat(s.Root.Path("layers", string(id), "fs")); err != nil {
						t.Errorf("builder %d, round %d: a layer that is leased is gone: %v", b, round, err)
					}
				}
				s.close(t)()
			}
		})
	}
	builders.Wait()
	stop()
	prune.Wait()
	must(pruner.Prune(t.Context(), Options{All: true}))(t)
	if left := pruner.contents(t, nil); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	ex := newExample(t)
	// Two layers that share a file.
	fill(t, ex.dir, func(s *Store) {
		shared := s.layer(t, "shared", 70_000)
		if err := os.Link(s.Root.Path("layers", string(shared), "fs", "shared"), s.Root.Path("layers", nameOf(ex, "two"), "fs", "link")); err != nil {
			t.Fatal(err)
		}
	})
	s := testStore(t, ex.dir)
	entries := must(s.Usage(t.Context()))(t)

	var total int64
	got := map[string]string{}
	for _, e := range entries {
		total += e.Size
		if e.Type != TypeOther {
			got[ex.name(e)] = fmt.Sprintf("%s image=%v reclaimable=%v %s", e.Type, e.Image, e.Reclaimable(), e.Description)
		}
	}
	want := map[string]string{
		"base":     "layer image=true reclaimable=false layer of docker.io/library/app:latest",
		"one":      "layer image=true reclaimable=false RUN one",
		"two":      "layer image=false reclaimable=true RUN two",
		"other":    `layer image=false reclaimable=true RUN other \ thing`,
		"alone":    "layer image=false reclaimable=true ",
		"config":   "blob image=true reclaimable=false configuration of docker.io/library/app:latest",
		"one.gz":   "blob image=true reclaimable=false packed layer " + nameOf(ex, "one")[:12],
		"other.gz": "blob image=false reclaimable=true packed layer " + nameOf(ex, "other")[:12],
		"garbage":  "blob image=false reclaimable=true ",
		"mount":    "cachemount image=false reclaimable=true cache mount /root/.cache",
		"segments": "segments image=false reclaimable=true where compressed pieces of layers are in blobs",
	}
	for name := range got {
		if strings.Contains(got[name], "layer image=false reclaimable=true ") && want[name] == "" {
			delete(got, name) // the layer that shares a file
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}

	if want := onDisk(t, ex.dir); total != want {
		t.Errorf("sizes add up to %d, the disk says %d", total, want)
	}
	if !slices.IsSortedFunc(entries, func(a, b Entry) int { return int(b.Size - a.Size) }) {
		t.Error("the largest is not first")
	}
}

// onDisk is what du would say, without the topmost directory.
func onDisk(t *testing.T, dir string) int64 {
	t.Helper()
	var total int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		if path != dir && !seen[st.Ino] {
			total += st.Blocks * 512
		}
		seen[st.Ino] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

func TestCancel(t *testing.T) {
	t.Parallel()
	ex := newExample(t)
	s := testStore(t, ex.dir)
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, perr := s.Prune(ctx, Options{})
	_, uerr := s.Usage(ctx)
	_, cerr := s.Check(ctx, true)
	_, rerr := s.Repair(ctx)
	for name, err := range map[string]error{"Prune": perr, "Usage": uerr, "Check": cerr, "Repair": rerr} {
		if !errors.Is(err, why) {
			t.Errorf("%s: got %v, want %v", name, err, why)
		}
	}
	if diff := cmp.Diff(everything, s.contents(t, ex.names)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}
