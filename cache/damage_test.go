package cache

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func readFile(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, b []byte, elem ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(elem...), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Damage to the log is a miss for what it hits and a warning; the rest can be
// read, and so can what is appended by a store that was open before, and by one
// that is opened after.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	const records = 5
	for _, c := range []struct {
		name   string
		damage func(log []byte, at []int) []byte // at: where the frames begin
		miss   []int
		silent bool // until something is appended
	}{
		{"torn tail", func(b []byte, _ []int) []byte { return b[:len(b)-7] }, []int{4}, true},
		{"torn header", func(b []byte, at []int) []byte { return b[:at[4]+5] }, []int{4}, true},
		{"torn mark of zeros", func(b []byte, at []int) []byte { clear(b[at[4]:]); return b }, []int{4}, true},
		{"flipped bit in a payload", func(b []byte, at []int) []byte { b[at[2]+60] ^= 4; return b }, []int{2}, false},
		{"flipped bit in a mark", func(b []byte, at []int) []byte { b[at[2]] ^= 4; return b }, []int{2}, false},
		{"flipped bit in a length", func(b []byte, at []int) []byte { b[at[1]+14] ^= 1; return b }, []int{1}, false},
		{"huge length", func(b []byte, at []int) []byte { b[at[1]+15] ^= 0x80; return b }, []int{1}, false},
		{"page of zeros", func(b []byte, at []int) []byte { clear(b[at[1]+9 : at[3]+9]); return b }, []int{1, 2, 3}, false},
		{"foreign bytes", func(b []byte, at []int) []byte {
			return append(bytes.Clone(b[:at[3]]), append([]byte("what is this"), b[at[3]:]...)...)
		}, nil, false},
		{"foreign tail", func(b []byte, _ []int) []byte { return append(b, "what is this"...) }, nil, true},
		{"header", func(b []byte, _ []int) []byte { b[3] ^= 1; return b }, []int{0, 1, 2, 3, 4}, false},
		{"empty", func([]byte, []int) []byte { return nil }, []int{0, 1, 2, 3, 4}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s, err := open(dir, func(err error) { t.Error(err) })
			if err != nil {
				t.Fatal(err)
			}
			var at []int
			for n := range records {
				if n == 0 {
					at = append(at, logHeader)
				} else {
					at = append(at, len(readFile(t, dir, "log")))
				}
				mustPut(t, s, testRecord(n))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			writeFile(t, c.damage(readFile(t, dir, "log"), at), dir, "log")

			lost := make(map[int]bool)
			for _, n := range c.miss {
				lost[n] = true
			}
			check := func(s *Store) {
				t.Helper()
				for n := range records {
					if lost[n] {
						wantMiss(t, s, testKey(n))
					} else {
						wantRecord(t, s, testRecord(n))
					}
				}
			}
			s, warned := warningStore(t, dir)
			check(s)
			if got := len(warned.take()) == 0; got != c.silent {
				t.Errorf("silent is %v, want %v", got, c.silent)
			}
			other, _ := warningStore(t, dir)
			mustPut(t, other, testRecord(10))
			wantRecord(t, s, testRecord(10))
			mustPut(t, s, testRecord(11))
			late, _ := warningStore(t, dir)
			for _, s := range []*Store{s, other, late} {
				check(s)
				wantRecord(t, s, testRecord(10))
				wantRecord(t, s, testRecord(11))
			}

			// The next who leaves heals it.
			if err := late.Close(); err != nil {
				t.Fatal(err)
			}
			healed := testStore(t, dir)
			check(healed)
			wantRecord(t, healed, testRecord(10))
			check(s)
			mustPut(t, s, testRecord(12))
			wantRecord(t, healed, testRecord(12))
		})
	}
}

func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	const records = 100
	for _, c := range []struct {
		name   string
		damage func([]byte) []byte
		miss   int // at most
	}{
		{"flipped bit in a frame", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, 1},
		{"flipped bit in an id of the index", func(b []byte) []byte { b[len(b)-indexEntry*7] ^= 1; return b }, 1},
		{"flipped bit in an offset", func(b []byte) []byte { b[len(b)-indexEntry*7+21] ^= 1; return b }, 1},
		{"flipped bit in a size", func(b []byte) []byte { b[len(b)-indexEntry*7+26] ^= 0x80; return b }, 1},
		{"foreign", func(b []byte) []byte { return bytes.Repeat([]byte("foreign"), 1000) }, records},
		{"header", func(b []byte) []byte { b[30] ^= 1; return b }, records},
		{"huge count", func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[32:], 1<<60)
			binary.LittleEndian.PutUint32(b[40:], crc32c(b[:40]))
			return b
		}, records},
		{"cut short", func(b []byte) []byte { return b[:len(b)-1] }, records},
		{"empty", func(b []byte) []byte { return nil }, records},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := testStore(t, dir)
			for n := range records {
				mustPut(t, s, testRecord(n))
			}
			if err := s.Compact(); err != nil {
				t.Fatal(err)
			}
			mustPut(t, s, testRecord(records))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			writeFile(t, c.damage(readFile(t, dir, "snapshot")), dir, "snapshot")

			s, warned := warningStore(t, dir)
			missed := 0
			for range 2 {
				missed = 0
				for n := range records {
					if _, ok := s.Get(testKey(n)); !ok {
						missed++
					}
				}
			}
			if missed == 0 || missed > c.miss {
				t.Errorf("%d of %d are lost, want 1 to %d", missed, records, c.miss)
			}
			wantRecord(t, s, testRecord(records))
			if n := len(warned.take()); n != 1 && !strings.Contains(c.name, "id of the index") {
				t.Errorf("%d warnings, want 1", n)
			}
			mustPut(t, s, testRecord(records+1))
			if all, err := s.All(); err != nil || len(all) < 2 {
				t.Errorf("All() gives %d records, %v", len(all), err)
			}
			if err := s.Compact(); err != nil {
				t.Fatal(err)
			}
			healed := testStore(t, dir)
			wantRecord(t, healed, testRecord(records))
			wantRecord(t, healed, testRecord(records+1))
		})
	}
}

// The file is cut short while it is mapped: reading it is a fault then.
func TestSnapshotCutShortWhileOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, warned := warningStore(t, dir)
	for n := range 200 {
		mustPut(t, s, testRecord(n))
	}
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "snapshot"), 4096); err != nil {
		t.Fatal(err)
	}
	for n := range 200 {
		wantMiss(t, s, testKey(n))
	}
	if len(warned.take()) == 0 {
		t.Error("no warning")
	}
	mustPut(t, s, testRecord(1))
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	wantRecord(t, s, testRecord(1))
}

func TestNewerVersion(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"log", "snapshot"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := testStore(t, dir)
			mustPut(t, s, testRecord(1))
			if err := s.Compact(); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			b := readFile(t, dir, name)
			binary.LittleEndian.PutUint32(b[8:], version+1)
			writeFile(t, b, dir, name)

			s, warned := warningStore(t, dir)
			if err := s.Put(testRecord(2)); err != nil {
				t.Errorf("Put: %v", err)
			}
			if err := s.Compact(); err != nil {
				t.Errorf("Compact: %v", err)
			}
			wantMiss(t, s, testKey(2))
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if list := warned.take(); len(list) != 1 || !strings.Contains(list[0], "newer version") {
				t.Errorf("warnings %q, want one that names the newer version", list)
			}
			if !bytes.Equal(readFile(t, dir, name), b) {
				t.Errorf("the newer version's %s was changed", name)
			}
		})
	}
}

// Random damage never fails a build, and never makes a record say something
// else.
func TestRandomDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := testStore(t, dir)
	for n := range 20 {
		mustPut(t, s, testRecord(n))
	}
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		mustPut(t, s, testRecord(20+n))
	}
	good := map[string][]byte{"log": readFile(t, dir, "log"), "snapshot": readFile(t, dir, "snapshot")}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		dir := t.TempDir()
		for name, b := range good {
			b := bytes.Clone(b)
			for range rnd.IntN(4) {
				switch rnd.IntN(3) {
				case 0:
					b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
				case 1:
					b = b[:rnd.IntN(len(b))+1]
				case 2:
					i := rnd.IntN(len(b))
					clear(b[i:min(len(b), i+rnd.IntN(600))])
				}
			}
			if len(b) > 12 { // not a newer version's
				binary.LittleEndian.PutUint32(b[8:], version)
			}
			writeFile(t, b, dir, name)
		}
		s, _ := warningStore(t, dir)
		for n := range 40 {
			if _, ok := s.Get(testKey(n)); ok {
				wantRecord(t, s, testRecord(n))
			}
		}
		mustPut(t, s, testRecord(50))
		wantRecord(t, s, testRecord(50))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantRecord(t, testStore(t, dir), testRecord(50))
	}
}
