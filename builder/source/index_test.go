package source

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

func openIndex(t testing.TB, dir string) *Index {
	t.Helper()
	x, err := OpenIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// rec is the record of a made-up file.
func rec(i int) record {
	return record{
		identity: identity{dev: uint64(i % 3), ino: uint64(i), size: int64(i), mtime: int64(i) * 7, ctime: int64(i) * 9},
		sum:      sha256.Sum256(fmt.Append(nil, i)), capability: i%5 == 0,
	}
}

// has asserts which of the files 0 to n-1 the index knows.
func has(t *testing.T, x *Index, n int, want func(i int) bool) {
	t.Helper()
	for i := range n {
		w := rec(i)
		got, ok := x.find(w.identity, new(place))
		if ok != want(i) {
			t.Fatalf("file %d: known %v", i, ok)
		}
		if ok && (got.sum != w.sum || got.capability != w.capability) {
			t.Fatalf("file %d: got another digest", i)
		}
	}
}

func all(int) bool { return true }

func TestIndexKeeps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// Some fit the log, some make it overflow into the base, more than once.
	total := 0
	for _, n := range []int{1, 10, maxLog, 20000, 5, 3 * maxLog} {
		x := openIndex(t, dir)
		for i := total; i < total+n; i++ {
			x.learn(rec(i))
		}
		total += n
		if err := x.Save(); err != nil {
			t.Fatal(err)
		}
		has(t, x, total, all)
		has(t, openIndex(t, dir), total, all)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".index-*")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

func TestIndexTrustsNoOtherFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, dir)
	for i := range 2 * maxLog {
		x.learn(rec(i))
	}
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	x = openIndex(t, dir)
	for name, change := range map[string]func(*identity){
		"dev": func(i *identity) { i.dev += 7 }, "ino": func(i *identity) { i.ino += 1 << 40 }, "size": func(i *identity) { i.size++ },
		"mtime": func(i *identity) { i.mtime++ }, "ctime": func(i *identity) { i.ctime++ },
	} {
		id := rec(4711).identity
		change(&id)
		if _, ok := x.find(id, new(place)); ok {
			t.Errorf("a file with another %s was taken for it", name)
		}
	}
}

func TestIndexManyWriters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const writers, each = 8, 3000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			x, err := OpenIndex(dir)
			if err != nil {
				t.Error(err)
				return
			}
			defer x.Close()
			for i := range each {
				x.learn(rec(w*each + i))
				if i%1000 == 999 {
					if err := x.Save(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	has(t, openIndex(t, dir), writers*each, all)
}

// TestIndexInUse looks files up and learns more of them while it is saved, as
// the builds of a daemon do.
func TestIndexInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, dir)
	const builds, each = 4, 2 * maxLog
	var wg sync.WaitGroup
	for b := range builds {
		wg.Go(func() {
			for i := b * each; i < (b+1)*each; i++ {
				x.learn(rec(i))
				if i%(maxLog/2) > 0 {
					continue
				}
				if err := x.Save(); err != nil {
					t.Error(err)
				}
				if got, ok := x.find(rec(i).identity, new(place)); !ok || got.sum != rec(i).sum {
					t.Errorf("file %d: saved, but not found", i)
				}
			}
		})
	}
	wg.Wait()
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	has(t, x, builds*each, all)
	has(t, openIndex(t, dir), builds*each, all)
	if n := len(x.log); n > maxLog {
		t.Errorf("%d records are in memory", n)
	}
}

// TestIndexNotSaved: what can't be written is written the next time.
func TestIndexNotSaved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "index")
	x := openIndex(t, dir)
	x.learn(rec(1))
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := x.Save(); err == nil {
		t.Fatal("saved to a directory that is not there")
	}
	x.learn(rec(2))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	has(t, openIndex(t, dir), 4, func(i int) bool { return i == 1 || i == 2 })
}

// TestIndexSavedBefore: what a build hashed is saved, however it ends.
func TestIndexSavedBefore(t *testing.T) {
	t.Parallel()
	dir, store := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"a": "1", "b": "2"})
	age(t, dir)
	time.Sleep(30 * time.Millisecond)
	for _, want := range []int64{2, 0} {
		d, err := OpenDir(dir, DirOptions{Index: openIndex(t, store)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Digests(context.Background(), []string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if got := d.FilesRead(); got != want {
			t.Errorf("%d files were read, want %d", got, want)
		}
	}
}

func TestIndexDamaged(t *testing.T) {
	t.Parallel()
	fill := func(t *testing.T) string {
		dir := t.TempDir()
		x := openIndex(t, dir)
		for i := range maxLog + 100 {
			x.learn(rec(i))
		}
		if err := x.Save(); err != nil {
			t.Fatal(err)
		}
		x.learn(rec(maxLog + 100))
		if err := x.Save(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)-13] },
		"noise":     func(b []byte) []byte { return slices.Repeat([]byte{0x5a}, len(b)) },
		"zeros":     func(b []byte) []byte { return make([]byte, len(b)) },
		"longer":    func(b []byte) []byte { return append(b, 1, 2, 3) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := fill(t)
			for _, f := range []string{"index", "index.log"} {
				f = filepath.Join(dir, f)
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f, damage(b), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			x := openIndex(t, dir)
			var near place
			for i := range maxLog + 101 {
				if got, ok := x.find(rec(i).identity, &near); ok && got.sum != rec(i).sum {
					t.Fatalf("file %d: wrong digest", i)
				}
			}
			// It heals.
			for i := range maxLog + 101 {
				x.learn(rec(i))
			}
			if err := x.Save(); err != nil {
				t.Fatal(err)
			}
			has(t, openIndex(t, dir), maxLog+101, all)
		})
	}
	t.Run("one record", func(t *testing.T) {
		t.Parallel()
		dir := fill(t)
		f := filepath.Join(dir, "index")
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b[headerSize+100*recordSize+50] ^= 1 // in a digest
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
		x, missing, near := openIndex(t, dir), 0, place{}
		for i := range maxLog + 101 {
			got, ok := x.find(rec(i).identity, &near)
			if !ok {
				missing++
			} else if got.sum != rec(i).sum {
				t.Fatalf("file %d: wrong digest", i)
			}
		}
		if missing != 1 {
			t.Errorf("%d records are missing, want the damaged one", missing)
		}
	})
}

func TestIndexForgets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := time.Unix(20000*day, 0)
	now := func() time.Time { return at }
	save := func(from, to int, used ...int) {
		t.Helper()
		x := openIndex(t, dir)
		x.now = now
		for i := from; i < to; i++ {
			x.learn(rec(i))
		}
		for _, i := range used {
			x.find(rec(i).identity, new(place))
		}
		if err := x.Save(); err != nil {
			t.Fatal(err)
		}
	}
	save(0, 20000)
	at = at.AddDate(0, 0, forgetAfter-10)
	save(20000, 20001, 5, 17) // two of the old ones are used
	at = at.AddDate(0, 0, 20)
	save(20001, 40000)
	x := openIndex(t, dir)
	x.now = now
	has(t, x, 40000, func(i int) bool { return i == 5 || i == 17 || i >= 20000 })
}

func TestDropLeastUsed(t *testing.T) {
	t.Parallel()
	var recs []record
	for i := range 100 {
		r := rec(i)
		r.used = uint32(100 + i/10) // ten a day
		recs = append(recs, r)
	}
	got := slices.Collect(drop(slices.Values(recs), 110, 25))
	if len(got) != 25 {
		t.Fatalf("%d records are left, want 25", len(got))
	}
	for _, r := range got {
		if r.used < 107 {
			t.Errorf("kept one last used on day %d", r.used)
		}
	}
}

// TestIndexSpares reads of a context again only what changed, in another
// process as it were.
func TestIndexSpares(t *testing.T) {
	t.Parallel()
	dir, store := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"a": "1", "b/c": "2", "b/d": "3"})
	age(t, dir)
	time.Sleep(30 * time.Millisecond) // ctime can't be set; it must be older than the file system's clock is exact
	read := func(want int64) {
		t.Helper()
		x := openIndex(t, store)
		d := openDir(t, dir, DirOptions{Index: x})
		if _, err := d.Digests(context.Background(), []string{"a", "b/c", "b/d"}); err != nil {
			t.Fatal(err)
		}
		if err := x.Save(); err != nil {
			t.Fatal(err)
		}
		if got := d.FilesRead(); got != want {
			t.Errorf("%d files were read, want %d", got, want)
		}
	}
	read(3)
	read(0)
	// The same size and time: ctime tells.
	st, err := os.Stat(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"a": "9"})
	if err := os.Chtimes(filepath.Join(dir, "a"), st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	read(1)
}

// TestIndexRacy: a file that was changed in the instant it was hashed could
// change again without getting another time.
func TestIndexRacy(t *testing.T) {
	t.Parallel()
	var f filesystems
	now := time.Unix(1_700_000_000, 123456789)
	f.slack.Store(uint64(1), 20*time.Millisecond)
	at := func(d time.Duration) int64 { return now.Add(d).UnixNano() }
	for _, tt := range []struct {
		name         string
		mtime, ctime int64
		want         bool
	}{
		{"old", at(-time.Hour), at(-time.Hour), true},
		{"just changed", at(-time.Millisecond), at(-time.Millisecond), false},
		{"changed, and its time set back", at(-time.Hour), at(-time.Millisecond), false},
		{"from the future", at(time.Hour), at(-time.Hour), false},
		{"whole seconds, a second ago", now.Add(-time.Second).Truncate(time.Second).UnixNano(), now.Add(-time.Second).Truncate(time.Second).UnixNano(), false},
		{"whole seconds, long ago", now.Add(-time.Hour).Truncate(time.Second).UnixNano(), now.Add(-time.Hour).Truncate(time.Second).UnixNano(), true},
	} {
		if got := f.settled(-1, identity{dev: 1, mtime: tt.mtime, ctime: tt.ctime}, now); got != tt.want {
			t.Errorf("%s: trusted %v", tt.name, got)
		}
	}
	// An unknown file system gets the benefit of no doubt.
	if f.settled(-1, identity{dev: 2, mtime: at(-time.Second), ctime: at(-time.Second)}, now) {
		t.Error("a second on an unknown file system was trusted")
	}
}

// TestIndexNear: a look-up finds the same wherever it begins.
func TestIndexNear(t *testing.T) {
	t.Parallel()
	const n = 100
	var recs []byte
	for i := range n {
		recs = record{identity: identity{dev: uint64(1 + i/50), ino: uint64(10 + 2*i)}}.append(recs)
	}
	for begin := range n + 2 { // the index may have been longer
		for i := range n {
			key, near := inode{uint64(1 + i/50), uint64(10 + 2*i)}, begin
			if r, ok := search(recs, key, &near); !ok || r.inode() != key || near != i {
				t.Fatalf("from %d: record %d is %v, %v, at %d", begin, i, r.inode(), ok, near)
			}
			for _, d := range []uint64{^uint64(0), 1} {
				key.ino = uint64(10+2*i) + d
				if r, ok := search(recs, key, &near); ok {
					t.Fatalf("from %d: found %v, which is not there: %v", begin, key, r)
				}
			}
		}
	}
}
