package compress

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openCache(t *testing.T) *SegmentCache {
	t.Helper()
	c, err := OpenSegments(filepath.Join(t.TempDir(), "segments"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func segments(t *testing.T, c *SegmentCache) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "????????*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestCacheDamage(t *testing.T) {
	t.Parallel()
	data := sample(8<<20, 20)
	c := openCache(t)
	o := Options{Segments: c}
	want := pack(t, data, o)
	files := segments(t, c)
	if len(files) < 4 {
		t.Fatalf("%d segments", len(files))
	}
	for name, damage := range map[string]func([]byte) []byte{
		"flipped":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"zeros":     func(b []byte) []byte { return make([]byte, len(b)) },
		"truncated": func(b []byte) []byte { return b[:len(b)-1] },
		"short":     func(b []byte) []byte { return b[:3] },
		"empty":     func([]byte) []byte { return nil },
		"huge":      func([]byte) []byte { return make([]byte, 3*maxSegment) },
		"swapped":   func([]byte) []byte { b, _ := os.ReadFile(files[1]); return b },
	} {
		good, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(files[0], damage(bytes.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pack(t, data, o), want) {
			t.Errorf("%s: other bytes", name)
		}
		again, err := os.ReadFile(files[0])
		if err != nil || !bytes.Equal(again, good) {
			t.Errorf("%s: the segment was not stored again", name)
		}
	}
}

func TestCacheKeys(t *testing.T) {
	t.Parallel()
	data := sample(3<<20, 21)
	c := openCache(t)
	n := 0
	for _, o := range []Options{{}, {Level: 1}, {Algorithm: Zstd}, {Algorithm: Zstd, Level: 1}} {
		o.Segments = c
		pack(t, data, o)
		if now := len(segments(t, c)); now <= n {
			t.Errorf("%+v found segments of other options", o)
		} else {
			n = now
		}
	}
	pack(t, data, Options{Level: 5, Segments: c}) // is the default
	if now := len(segments(t, c)); now != n {
		t.Errorf("the default level has %d segments of its own", now-n)
	}
}

func TestCacheReuse(t *testing.T) {
	t.Parallel()
	data := sample(16<<20, 22)
	c := openCache(t)
	pack(t, data, Options{Level: 1, Segments: c})
	n := len(segments(t, c))
	copy(data[5<<20:], "changed")
	pack(t, data, Options{Level: 1, Segments: c})
	if more := len(segments(t, c)) - n; more < 1 || more > 3 {
		t.Errorf("a change of 7 bytes made %d new segments of %d", more, n)
	}
}

// A cache that can't be written is as good as none.
func TestCacheGone(t *testing.T) {
	t.Parallel()
	data := sample(3<<20, 23)
	c := openCache(t)
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pack(t, data, Options{Segments: c}), pack(t, data, Options{})) {
		t.Error("other bytes")
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	pack(t, sample(8<<20, 24), Options{Level: 1, Segments: c})
	files := segments(t, c)
	for i, f := range files {
		old := time.Now().Add(-time.Duration(10+i) * time.Hour)
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	size, err := c.Size()
	if err != nil || size == 0 {
		t.Fatal(size, err)
	}
	last, err := os.Stat(files[len(files)-1])
	if err != nil {
		t.Fatal(err)
	}
	freed, err := c.Prune(size - 1)
	if err != nil || freed != last.Size() {
		t.Errorf("freed %d, %v; want %d of the one longest not used", freed, err, last.Size())
	}
	if left := segments(t, c); len(left) != len(files)-1 {
		t.Errorf("%d segments of %d are left", len(left), len(files))
	}
	if freed, err := c.Prune(size); freed != 0 || err != nil {
		t.Errorf("Prune with room freed %d, %v", freed, err)
	}
	if _, err := c.Prune(0); err != nil {
		t.Error(err)
	}
	if size, err := c.Size(); size != 0 || err != nil {
		t.Errorf("%d bytes after Prune(0), %v", size, err)
	}
}

// Reading a segment makes it count as used.
func TestTouch(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	data := sample(1000, 25)
	pack(t, data, Options{Segments: c})
	f := segments(t, c)[0]
	old := time.Now().Add(-2 * touchAfter)
	if err := os.Chtimes(f, old, old); err != nil {
		t.Fatal(err)
	}
	pack(t, data, Options{Segments: c})
	if fi, err := os.Stat(f); err != nil || time.Since(fi.ModTime()) > touchAfter {
		t.Errorf("the segment was not touched (%v)", err)
	}
}

func TestCleanTemp(t *testing.T) {
	t.Parallel()
	c := openCache(t)
	living, err := os.CreateTemp(c.tmp(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	if err := unix.Flock(int(living.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(c.tmp(), "dead")
	if err := os.WriteFile(dead, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSegments(c.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("the file of a dead process is still there (%v)", err)
	}
	if _, err := os.Stat(living.Name()); err != nil {
		t.Error("the file of a living process is gone")
	}
}
