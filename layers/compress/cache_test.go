package compress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// testCache is a cache with its directories of lists and blobs.
type testCache struct {
	*SegmentCache
}

func openCache(t testing.TB) testCache {
	t.Helper()
	dir := t.TempDir()
	c := testCache{OpenSegments(filepath.Join(dir, "segments"), filepath.Join(dir, "blobs"), tempIn(dir))}
	if err := os.Mkdir(c.blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

func tempIn(dir string) func(string) (*os.File, error) {
	return func(pattern string) (*os.File, error) { return os.CreateTemp(dir, pattern) }
}

// again is the cache as another process sees it.
func (c testCache) again() testCache {
	return testCache{OpenSegments(c.dir, c.blobs, c.temp)}
}

// pack compresses data into a blob, and tells what was not there already.
func (c testCache) pack(t testing.TB, data []byte, o Options) (packed []byte, made int) {
	t.Helper()
	o.Segments = c.SegmentCache
	var out bytes.Buffer
	w, err := NewWriter(&out, o)
	if err != nil {
		t.Fatal(err)
	}
	known := len(c.places)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	name := hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(c.blobs, name), out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	w.(*Writer).Keep(name)
	return out.Bytes(), len(c.places) - known
}

// only returns the one file of a directory.
func only(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files in %s, %v", len(files), dir, err)
	}
	return files[0]
}

func TestCacheDamage(t *testing.T) {
	t.Parallel()
	data := sample(8<<20, 20)
	c := openCache(t)
	want, n := c.pack(t, data, Options{})
	if n < 4 {
		t.Fatalf("%d segments", n)
	}
	for _, dir := range []string{c.dir, c.blobs} {
		for name, damage := range map[string]func([]byte) []byte{
			"flipped":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"zeros":     func(b []byte) []byte { return make([]byte, len(b)) },
			"truncated": func(b []byte) []byte { return b[:len(b)-100] },
			"short":     func(b []byte) []byte { return b[:3] },
			"empty":     func([]byte) []byte { return nil },
			"huge":      func([]byte) []byte { return make([]byte, maxList+1) },
			"moved":     func(b []byte) []byte { return append([]byte("x"), b...) },
		} {
			file := only(t, dir)
			good, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, damage(good), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, _ := c.again().pack(t, data, Options{}); !bytes.Equal(got, want) {
				t.Errorf("%s: other bytes", name)
			}
			if _, n := c.again().pack(t, data, Options{}); n != 0 {
				t.Errorf("%s: %d segments were not kept again", name, n)
			}
		}
	}
}

func TestCacheKeys(t *testing.T) {
	t.Parallel()
	data := sample(3<<20, 21)
	c := openCache(t)
	for _, o := range []Options{{}, {Level: 1}, {Algorithm: Zstd}, {Algorithm: Zstd, Level: 1}} {
		if _, n := c.pack(t, data, o); n == 0 {
			t.Errorf("%+v found segments of other options", o)
		}
	}
	if _, n := c.pack(t, data, Options{Level: 5}); n != 0 { // is the default
		t.Errorf("the default level has %d segments of its own", n)
	}
}

// A key is that of one content and one form, in one store.
func TestCacheKey(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	c.pack(t, sample(1<<20, 27), Options{})
	again, other := c.again(), openCache(t)
	for _, c := range []testCache{again, other} {
		if err := c.load(); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[segmentKey]string{}
	for _, content := range []string{"", "\x00", "\x00\x00", string(make([]byte, 16)), string(make([]byte, 32)), "a", "b", "ab"} {
		for _, id := range []string{segmentID(Gzip, 5), segmentID(Gzip, 6), segmentID(Zstd, 5)} {
			what := fmt.Sprintf("%q, %q", id, content)
			k := c.key(nonce(id), []byte(content))
			if old, ok := seen[k]; ok {
				t.Errorf("%s has the key of %s", what, old)
			}
			seen[k] = what
			if again.key(nonce(id), []byte(content)) != k {
				t.Errorf("%s: another process has another key", what)
			}
			if other.key(nonce(id), []byte(content)) == k {
				t.Errorf("%s has the same key in another store", what)
			}
		}
	}
}

// Processes that begin the directory at the same time have secrets of their own.
// Of the later ones all have the same, and what was kept under another is kept
// again.
func TestCacheSecrets(t *testing.T) {
	t.Parallel()
	a := openCache(t)
	b := a.again()
	for _, c := range []testCache{a, b} {
		if err := c.load(); err != nil {
			t.Fatal(err)
		}
	}
	contents := [][]byte{sample(1<<20, 28), sample(1<<20, 29)}
	a.pack(t, contents[0], Options{})
	b.pack(t, contents[1], Options{})
	for i, want := range []int{1, 0} { // streams that are compressed again
		c, made := a.again(), 0
		for _, data := range contents {
			got, n := c.pack(t, data, Options{})
			if !bytes.Equal(got, pack(t, data, Options{})) {
				t.Errorf("process %d: other bytes", i)
			}
			if n > 0 {
				made++
			}
		}
		if made != want {
			t.Errorf("process %d compressed %d of 2 streams, want %d", i, made, want)
		}
	}
}

func TestCacheReuse(t *testing.T) {
	t.Parallel()
	data := sample(16<<20, 22)
	c := openCache(t)
	c.pack(t, data, Options{Level: 1})
	copy(data[5<<20:], "changed")
	c = c.again()
	if err := c.load(); err != nil {
		t.Fatal(err)
	}
	want := pack(t, data, Options{Level: 1})
	got, n := c.pack(t, data, Options{Level: 1})
	if n < 1 || n > 3 {
		t.Errorf("a change of 7 bytes made %d new segments of %d", n, len(c.places))
	}
	if !bytes.Equal(got, want) {
		t.Error("other bytes with segments of another blob")
	}
}

// What is read is what the checksum is of, not what the encoder gives.
func TestCacheReads(t *testing.T) {
	t.Parallel()
	data := sample(1<<20, 26)
	c := openCache(t)
	c.pack(t, data, Options{})
	for k, p := range c.places {
		got, ok := c.get(k, []byte("before"))
		if !ok || len(got) != len("before")+int(p.size) || string(got[:6]) != "before" || checksum(k, got[6:]) != p.sum {
			t.Errorf("segment at %d: %d bytes, %v", p.offset, len(got), ok)
		}
	}
	if err := os.Remove(only(t, c.blobs)); err != nil {
		t.Fatal(err)
	}
	for k := range c.places {
		if _, ok := c.get(k, nil); ok {
			t.Error("a segment of a blob that is gone")
		}
	}
}

// The list of a blob that is gone goes with it.
func TestCacheOfNoBlob(t *testing.T) {
	t.Parallel()
	data := sample(1<<20, 24)
	c := openCache(t)
	c.pack(t, data, Options{})
	list := only(t, c.dir)
	if err := os.Remove(only(t, c.blobs)); err != nil {
		t.Fatal(err)
	}
	if err := c.again().load(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(list); !os.IsNotExist(err) {
		t.Errorf("the list is still there (%v)", err)
	}
}

// A cache that can't be written is as good as none.
func TestCacheGone(t *testing.T) {
	t.Parallel()
	data := sample(3<<20, 23)
	c := openCache(t)
	c.temp = tempIn(filepath.Join(t.TempDir(), "missing"))
	got, n := c.pack(t, data, Options{})
	if n != 0 || !bytes.Equal(got, pack(t, data, Options{})) {
		t.Errorf("%d segments kept, or other bytes", n)
	}
}
