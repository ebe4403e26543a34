package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain lets the test program be other processes that use the cache:
// "cache-test-process", then what to do, and where.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "cache-test-process" {
		if err := process(os.Args[2], os.Args[3], os.Args[4:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func process(what, dir string, args []string) error {
	s, err := open(dir, func(err error) { fmt.Println("warning:", err) })
	if err != nil {
		return err
	}
	switch what {
	case "put": // from, to; half of the processes compact
		from, _ := strconv.Atoi(args[0])
		to, _ := strconv.Atoi(args[1])
		for n := from; n < to; n++ {
			if err := s.Put(testRecord(n)); err != nil {
				return err
			}
			if _, ok := s.Get(testKey(n)); !ok {
				return fmt.Errorf("record %d is a miss right after Put", n)
			}
			if from%200 == 0 && n%25 == 0 {
				if err := s.Compact(); err != nil {
					return err
				}
			}
		}
	case "put-for-ever":
		for n := 0; ; n++ {
			if err := s.Put(testRecord(n)); err != nil {
				return err
			}
			fmt.Println(n)
			if n%20 == 19 {
				if err := s.Compact(); err != nil {
					return err
				}
			}
		}
	case "lock":
		unlock, err := s.Lock(context.Background(), testKey(1))
		if err != nil {
			return err
		}
		fmt.Println("locked")
		io.Copy(io.Discard, os.Stdin)
		unlock()
	case "count": // adds one to a number, so many times
		n, _ := strconv.Atoi(args[0])
		for range n {
			unlock, err := s.Lock(context.Background(), testKey(1))
			if err != nil {
				return err
			}
			if err := increment(filepath.Join(dir, "number")); err != nil {
				return err
			}
			unlock()
		}
	}
	return s.Close()
}

func increment(path string) error {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	n, _ := strconv.Atoi(string(b))
	return os.WriteFile(path, []byte(strconv.Itoa(n+1)), 0o600)
}

func command(t *testing.T, what, dir string, args ...any) *exec.Cmd {
	t.Helper()
	list := []string{"cache-test-process", what, dir}
	for _, a := range args {
		list = append(list, fmt.Sprint(a))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, os.Args[0], list...)
}

func TestManyProcesses(t *testing.T) {
	t.Parallel()
	const processes, each = 6, 100
	dir := t.TempDir()
	s := testStore(t, dir)
	var wg sync.WaitGroup
	for p := range processes {
		cmd := command(t, "put", dir, p*each, (p+1)*each)
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("process: %v\n%s", err, out)
			}
		})
	}
	// Read all along.
	for n := 0; n < processes*each; n += 7 {
		s.Get(testKey(n))
	}
	wg.Wait()
	for n := range processes * each {
		wantRecord(t, s, testRecord(n))
	}
	late := testStore(t, dir)
	for n := range processes * each {
		wantRecord(t, late, testRecord(n))
	}
}

// Whatever a killed process was doing, what it had put is there, and the others
// go on.
func TestKilledWriter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, _ := warningStore(t, dir)
	for round := range 8 {
		cmd := command(t, "put-for-ever", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := -1
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("process said %q", lines.Text())
			}
			last = n
			if n == 30+round*7 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if last < 30 {
			t.Fatalf("process ended at %d", last)
		}
		for n := range last + 1 {
			wantRecord(t, s, testRecord(n))
		}
		mustPut(t, s, testRecord(1000+round))
		late, _ := warningStore(t, dir)
		wantRecord(t, late, testRecord(last))
		wantRecord(t, late, testRecord(1000+round))
		if err := s.Delete(testKey(last)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got, want := strings.Join(names, " "), "lock locks log snapshot"; got != want {
		t.Errorf("directory has %q, want %q", got, want)
	}
}

func lockFiles(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "locks"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestLockExcludesProcessesAndGoroutines(t *testing.T) {
	t.Parallel()
	const each = 40
	dir := t.TempDir()
	s := testStore(t, dir)
	var wg sync.WaitGroup
	for range 3 {
		cmd := command(t, "count", dir, each)
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("process: %v\n%s", err, out)
			}
		})
		wg.Go(func() {
			for range each {
				unlock, err := s.Lock(t.Context(), testKey(1))
				if err != nil {
					t.Error(err)
					return
				}
				if err := increment(filepath.Join(dir, "number")); err != nil {
					t.Error(err)
				}
				unlock()
			}
		})
	}
	wg.Wait()
	if got, want := string(readFile(t, dir, "number")), fmt.Sprint(6*each); got != want {
		t.Errorf("counted %s, want %s", got, want)
	}
	if n := lockFiles(t, dir); n != 0 {
		t.Errorf("%d lock files left", n)
	}
}

func TestLockEndsWithContextAndOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := testStore(t, dir)
	cmd := command(t, "lock", dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatalf("process said %q, %v", line, err)
	}

	why := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, why)
	defer cancel()
	if _, err := s.Lock(ctx, testKey(1)); err != why {
		t.Errorf("waiting for a lock that is held: got %v, want %v", err, why)
	}
	unlock, err := s.Lock(t.Context(), testKey(2))
	if err != nil {
		t.Fatalf("another key: %v", err)
	}
	unlock()

	cmd.Process.Kill()
	cmd.Wait()
	unlock, err = s.Lock(t.Context(), testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	unlock2, err := s.Lock(t.Context(), testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	unlock() // again: must not free what another holds
	if n := lockFiles(t, dir); n != 1 {
		t.Errorf("%d lock files, want that of the lock held", n)
	}
	unlock2()
	if n := lockFiles(t, dir); n != 0 {
		t.Errorf("%d lock files left", n)
	}
}

func TestCompactRemovesLocksOfTheDead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := testStore(t, dir)
	writeFile(t, nil, dir, "locks", "0123456789abcdef")
	unlock, err := s.Lock(t.Context(), testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	if n := lockFiles(t, dir); n != 1 {
		t.Errorf("%d lock files, want that of the lock held", n)
	}
}

// benchStore makes a cache of n records in the snapshot, and some in the log.
func benchStore(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	s := testStore(b, dir)
	err := writeSnapshot(s.snapshotPath(), s.temp, newMark(), func(yield func(frame) bool) {
		for i := range n {
			r := testRecord(i)
			yield(frame{kind: kindRecord, used: s.hour(), id: recordID(r.Key), payload: encodeRecord(r)})
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	s = testStore(b, dir)
	for i := range 1000 {
		mustPut(b, s, testRecord(n+i))
	}
	return dir
}

func BenchmarkOpen100k(b *testing.B) {
	dir := benchStore(b, 100_000)
	for b.Loop() {
		s := testStore(b, dir)
		if _, ok := s.Get(testKey(5)); !ok {
			b.Fatal("miss")
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// Goal: 0.4 ms.
func Benchmark1000Lookups(b *testing.B) {
	for _, c := range []struct {
		name  string
		first int
	}{{"snapshot", 0}, {"log", 100_000}, {"miss", 200_000}} {
		b.Run(c.name, func(b *testing.B) {
			dir := benchStore(b, 100_000)
			s := testStore(b, dir)
			var keys []Key
			for n := range 1000 {
				keys = append(keys, testKey(c.first+n))
			}
			for b.Loop() {
				for _, k := range keys {
					s.Get(k)
				}
			}
		})
	}
}

func BenchmarkPut(b *testing.B) {
	s := testStore(b, b.TempDir())
	r := testRecord(1)
	for b.Loop() {
		mustPut(b, s, r)
	}
}
