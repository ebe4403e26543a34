package cache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
)

// warnings collects what a Store warns of.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, err.Error())
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.list
	w.list = nil
	return list
}

// testStore opens the cache at dir; a warning fails the test.
func testStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := open(dir, func(err error) { t.Errorf("warning: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func warningStore(t testing.TB, dir string) (*Store, *warnings) {
	t.Helper()
	w := new(warnings)
	s, err := open(dir, w.add)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, w
}

func testKey(n int) Key { return Key(digest.FromString(fmt.Sprint(n)).Encoded()) }

func testRecord(n int) Record {
	k := testKey(n)
	return Record{
		Key:     k,
		Outputs: []layers.Tree{{layers.ID(k), layers.ID(testKey(n + 1))}, {layers.ID(k)}},
		Made:    time.Unix(int64(n), 5).UTC(),
		Took:    time.Duration(n) * time.Millisecond,
		Why: Why{
			Name:     fmt.Sprintf("RUN make step-%d", n),
			Op:       strings.Repeat(fmt.Sprintf(`{"args":["/bin/sh","-c","make %d"]}`, n), 10),
			Inputs:   []string{"step:" + string(k), "content:" + string(k)},
			Args:     []string{"VERSION=1"},
			Platform: "linux/amd64",
		},
	}
}

func mustPut(t testing.TB, s *Store, records ...Record) {
	t.Helper()
	for _, r := range records {
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
	}
}

// wantRecord checks that s has r.
func wantRecord(t testing.TB, s *Store, r Record) {
	t.Helper()
	got, ok := s.Get(r.Key)
	if !ok {
		t.Errorf("%s: miss", r.Why.Name)
		return
	}
	got.Used = r.Used
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", r.Why.Name, diff)
	}
}

func wantMiss(t testing.TB, s *Store, k Key) {
	t.Helper()
	if r, ok := s.Get(k); ok {
		t.Errorf("got %q for a key that should be a miss", r.Why.Name)
	}
}

func TestPutGetDelete(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := testStore(t, dir)
	a, b, c := testRecord(1), testRecord(2), testRecord(3)
	wantMiss(t, s, a.Key)
	mustPut(t, s, a, b, c)
	wantRecord(t, s, a)
	wantRecord(t, s, b)

	changed := a
	changed.Took = time.Hour
	mustPut(t, s, changed)
	wantRecord(t, s, changed)

	if err := s.Delete(b.Key, c.Key, testKey(99)); err != nil {
		t.Fatal(err)
	}
	wantMiss(t, s, b.Key)
	mustPut(t, s, c)

	check := func(t *testing.T, s *Store) {
		t.Helper()
		wantRecord(t, s, changed)
		wantMiss(t, s, b.Key)
		wantRecord(t, s, c)
	}
	check(t, s)
	check(t, testStore(t, dir))
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	check(t, s)
	check(t, testStore(t, dir))
	if err := s.Delete(c.Key); err != nil { // one of the snapshot
		t.Fatal(err)
	}
	wantMiss(t, s, c.Key)
	wantMiss(t, testStore(t, dir), c.Key)
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	wantMiss(t, s, c.Key)
	wantRecord(t, s, changed)
}

func TestMemo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := testStore(t, dir)
	d1, d2 := digest.FromString("1"), digest.FromString("2")
	for _, m := range []memo{{"k", "a", d1}, {"k", "b", d2}, {"ka", "", d2}} {
		if err := s.PutMemo(m.key, m.selector, m.digest); err != nil {
			t.Fatal(err)
		}
	}
	check := func(s *Store) {
		t.Helper()
		for _, c := range []struct {
			key, selector string
			want          digest.Digest
		}{{"k", "a", d1}, {"k", "b", d2}, {"ka", "", d2}, {"k", "", ""}, {"", "ka", ""}, {"a", "k", ""}} {
			got, ok := s.Memo(c.key, c.selector)
			if got != c.want || ok != (c.want != "") {
				t.Errorf("Memo(%q, %q) = %q, %v, want %q", c.key, c.selector, got, ok, c.want)
			}
		}
		wantMiss(t, s, "k")
	}
	check(s)
	check(testStore(t, dir))
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	check(s)
}

func TestOtherStoresSeeChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := testStore(t, dir), testStore(t, dir)
	n := 0
	for _, change := range []struct {
		name string
		do   func() error
	}{
		{"first", func() error { return nil }},
		{"append", func() error { return nil }},
		{"a compacts", a.Compact},
		{"b compacts", b.Compact},
		{"both compact", func() error { return errors.Join(a.Compact(), b.Compact(), a.Compact()) }},
	} {
		if err := change.do(); err != nil {
			t.Fatal(change.name, err)
		}
		mustPut(t, a, testRecord(n))
		mustPut(t, b, testRecord(n+1))
		for i := range n + 2 {
			wantRecord(t, a, testRecord(i))
			wantRecord(t, b, testRecord(i))
		}
		n += 2
		if t.Failed() {
			t.Fatal(change.name)
		}
	}
}

func TestUsed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := testStore(t, dir)
	start := time.Date(2026, 1, 2, 3, 40, 0, 0, time.UTC)
	now := start
	s.now = func() time.Time { return now }
	mustPut(t, s, testRecord(1), testRecord(2))

	used := func(s *Store) map[Key]string {
		t.Helper()
		all, err := s.All()
		if err != nil {
			t.Fatal(err)
		}
		m := make(map[Key]string)
		for _, r := range all {
			m[r.Key] = r.Used.Format("2 15:04")
		}
		return m
	}
	size := func() int64 {
		t.Helper()
		fi, err := os.Stat(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	want := map[Key]string{testKey(1): "2 03:00", testKey(2): "2 03:00"}
	if diff := cmp.Diff(want, used(s)); diff != "" {
		t.Error(diff)
	}
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}

	before := size()
	now = start.Add(5 * time.Hour)
	for range 10 {
		if r, ok := s.Get(testKey(2)); !ok || r.Used.Hour() != 8 {
			t.Errorf("got %v, %v, want use at 8", r.Used, ok)
		}
	}
	if size() != before {
		t.Error("a look-up wrote to the log")
	}
	all, err := s.All()
	if err != nil || len(all) != 2 || all[0].Key != testKey(2) {
		t.Errorf("All() = %v, %v, want the last used first", all, err)
	}
	mustPut(t, s, testRecord(3))
	want = map[Key]string{testKey(1): "2 03:00", testKey(2): "2 08:00", testKey(3): "2 08:00"}
	other := testStore(t, dir)
	if diff := cmp.Diff(want, used(other)); diff != "" {
		t.Errorf("another process (-want +got):\n%s", diff)
	}

	now = start.Add(24 * time.Hour)
	wantRecord(t, s, testRecord(1))
	if err := s.Close(); err != nil { // writes the use down
		t.Fatal(err)
	}
	want[testKey(1)] = "3 03:00"
	if diff := cmp.Diff(want, used(other)); diff != "" {
		t.Errorf("after Close (-want +got):\n%s", diff)
	}
	if err := other.Compact(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, used(testStore(t, dir))); diff != "" {
		t.Errorf("after Compact (-want +got):\n%s", diff)
	}
}

func TestUnusedMemosAreForgotten(t *testing.T) {
	t.Parallel()
	s := testStore(t, t.TempDir())
	now := time.Date(2026, 1, 2, 3, 40, 0, 0, time.UTC)
	s.now = func() time.Time { return now }
	for _, sel := range []string{"old", "used"} {
		if err := s.PutMemo("k", sel, digest.FromString(sel)); err != nil {
			t.Fatal(err)
		}
	}
	mustPut(t, s, testRecord(1))
	now = now.Add(memoKeep + time.Hour)
	s.Memo("k", "used")
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Memo("k", "old"); ok {
		t.Error("a memo outlives its time")
	}
	if _, ok := s.Memo("k", "used"); !ok {
		t.Error("a memo that is used is gone")
	}
	wantRecord(t, s, testRecord(1))
}

func TestCompactsByItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := testStore(t, dir)
	big := testRecord(0)
	big.Why.Op = strings.Repeat("x", minCompact/2)
	size := func(name string) int64 {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return 0
		}
		return fi.Size()
	}
	for n := range 12 {
		big.Key = testKey(n)
		mustPut(t, s, big)
	}
	if size("log") > 4*minCompact || size("snapshot") < 4*minCompact {
		t.Errorf("log has %d bytes, snapshot %d: a long-lived process should have compacted", size("log"), size("snapshot"))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if size("log") != logHeader {
		t.Errorf("log has %d bytes after Close, want %d", size("log"), logHeader)
	}
	s = testStore(t, dir)
	for n := range 12 {
		big.Key = testKey(n)
		wantRecord(t, s, big)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	s := testStore(t, t.TempDir())
	mustPut(t, s, testRecord(1))
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	wantMiss(t, s, testKey(1))
	_, allErr := s.All()
	for name, err := range map[string]error{"Put": s.Put(testRecord(2)), "Compact": s.Compact(), "All": allErr} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: got %v, want %v", name, err, os.ErrClosed)
		}
	}
}

// Every field of a Record comes back, those too that are added some day.
func TestCodecKnowsAllFields(t *testing.T) {
	t.Parallel()
	var r Record
	n := 0
	var fill func(reflect.Value)
	fill = func(v reflect.Value) {
		n++
		switch x := v.Addr().Interface().(type) {
		case *time.Time:
			*x = time.Unix(int64(n), int64(n)).UTC()
			return
		}
		switch v.Kind() {
		case reflect.String:
			v.SetString(fmt.Sprint("value ", n))
		case reflect.Int64:
			v.SetInt(int64(n))
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			fill(v.Index(0))
			fill(v.Index(1))
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		default:
			t.Fatalf("a field of kind %v: teach this test and the codec", v.Kind())
		}
	}
	fill(reflect.ValueOf(&r).Elem())
	got, err := decodeRecord(encodeRecord(r))
	if err != nil {
		t.Fatal(err)
	}
	got.Used = r.Used // is kept outside of the payload
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCodecPassesOverNewFields(t *testing.T) {
	t.Parallel()
	r := testRecord(1)
	b := appendField(nil, 200, "from the future")
	b = append(b, encodeRecord(r)...)
	b = appendField(b, 201, "")
	got, err := decodeRecord(string(b))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(encodeRecord(testRecord(1)))
	f.Add(encodeMemo(memo{"k", "s", "sha256:00"}))
	f.Add(string([]byte{byte(tagOutput), 2, 0xff, 0xff}))
	f.Add(string([]byte{byte(tagMade), 0}))
	f.Fuzz(func(t *testing.T, b string) {
		r, err := decodeRecord(b)
		decodeMemo(b)
		if err != nil {
			return
		}
		again, err := decodeRecord(encodeRecord(r))
		if err != nil {
			t.Fatal(err)
		}
		if r.Made.IsZero() { // not in b; has no other form
			again.Made = r.Made
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Errorf("decode, encode, decode (-first +second):\n%s", diff)
		}
	})
}

// Whatever is in a log, reading it ends, and gives no frame that was not
// written as one.
func FuzzLog(f *testing.F) {
	m := mark{1, 2, 3, 4, 5, 6, 7, 8}
	var good []byte
	for n := range 3 {
		good = appendFrame(good, m, frame{kind: kindRecord, id: id{byte(n)}, payload: encodeRecord(testRecord(n))})
	}
	f.Add(good, []byte{})
	f.Add(good[:len(good)-5], []byte{7})
	f.Add(bytes.Repeat(m[:], 20), []byte("foreign"))
	f.Add([]byte{}, good[:frameHeader-1])
	f.Fuzz(func(t *testing.T, before, after []byte) {
		want := frame{kind: kindMemo, used: 9, id: id{42}, payload: "payload"}
		b := appendFrame(bytes.Clone(before), m, want)
		b = append(b, after...)
		found := false
		for {
			f, skipped, size, ok := nextFrame(b, m)
			if !ok {
				break
			}
			if size < frameHeader || skipped+size > len(b) {
				t.Fatalf("skipped %d and read %d of %d bytes", skipped, size, len(b))
			}
			if f.id == want.id && f.kind == want.kind {
				found = true
			}
			if again := appendFrame(nil, m, f); len(again) != size || string(again[24:]) != string(b[skipped+24:][:size-24]) {
				t.Fatalf("frame %v is not what the log holds", f)
			}
			b = b[skipped+size:]
		}
		if !found && !bytes.Contains(before, m[:]) {
			t.Error("the frame after the damage was not found")
		}
	})
}
