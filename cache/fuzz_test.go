package cache

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzStore opens a cache whose log and snapshot have any bytes. It opens, what
// it says of a key is what was once put for it, and what is put now is there,
// after it was opened anew as well.
func FuzzStore(f *testing.F) {
	dir := f.TempDir()
	s := testStore(f, dir)
	mustPut(f, s, testRecord(0), testRecord(1))
	if err := errors.Join(s.Compact(), s.PutMemo("k", "s", "sha256:00"), s.Delete(testKey(0))); err != nil {
		f.Fatal(err)
	}
	mustPut(f, s, testRecord(2), testRecord(3))
	log, snapshot := readFile(f, dir, "log"), readFile(f, dir, "snapshot")
	f.Add(log, snapshot)
	f.Add(log[:len(log)-9], snapshot)
	f.Add(log, snapshot[:len(snapshot)-indexEntry])
	f.Add(log[:logHeader], []byte{})
	f.Add([]byte(logMagic), append([]byte(snapshotMagic), 2, 0, 0, 0))
	f.Fuzz(func(t *testing.T, log, snapshot []byte) {
		dir := t.TempDir()
		writeFile(t, log, dir, "log")
		writeFile(t, snapshot, dir, "snapshot")
		check := func(s *Store) {
			for n := range 4 {
				got, ok := s.Get(testKey(n))
				if !ok {
					continue
				}
				want := testRecord(n)
				want.Used = got.Used
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("a record that nobody put (-want +got):\n%s", diff)
				}
			}
			if _, err := s.All(); err != nil {
				t.Error(err)
			}
			s.Memo("k", "s")
		}
		s, _ := warningStore(t, dir)
		check(s)
		fresh := testRecord(9)
		mustPut(t, s, fresh)
		newer := s.newer // it is another version's then, and stays so
		if !newer {
			wantRecord(t, s, fresh)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s, _ = warningStore(t, dir)
		check(s)
		if !newer {
			wantRecord(t, s, fresh)
		} else if b, err := os.ReadFile(s.logPath()); err != nil || !cmp.Equal(b, log) {
			t.Errorf("the log of a newer version was changed: %v", err)
		}
	})
}
