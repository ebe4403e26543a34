package blob

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
)

func open(t testing.TB) *Store {
	t.Helper()
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(tmp); len(left) > 0 || err != nil {
			t.Errorf("temporary files are left: %v, %v", left, err)
		}
	})
	s, err := Open(filepath.Join(dir, "blobs"), TempIn(tmp))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s *Store, content string) digest.Digest {
	t.Helper()
	d, n, err := s.Put(strings.NewReader(content), "", -1)
	if err != nil || n != int64(len(content)) || d != digest.FromString(content) {
		t.Fatalf("put %.20q: %s, %d, %v", content, d, n, err)
	}
	return d
}

func TestPut(t *testing.T) {
	t.Parallel()
	hello := digest.FromString("hello")
	for _, c := range []struct {
		name string
		r    io.Reader
		d    digest.Digest
		size int64
		want string // error
	}{
		{"nothing known", strings.NewReader("hello"), "", -1, ""},
		{"all known", strings.NewReader("hello"), hello, 5, ""},
		{"byte by byte", iotest.OneByteReader(strings.NewReader("hello")), hello, 5, ""},
		{"short", strings.NewReader("hell"), hello, 5, "4 bytes instead of the 5 that were announced: unexpected EOF"},
		{"long", strings.NewReader("hello!"), hello, 5, "more than the 5 bytes that were announced"},
		{"endless", strings.NewReader(strings.Repeat("x", 10<<20)), "", 5, "more than the 5 bytes that were announced"},
		{"other", strings.NewReader("hallo"), hello, 5, "content has digest " + digest.FromString("hallo").String() + ", not " + hello.String()},
		{"broken", io.MultiReader(strings.NewReader("he"), iotest.ErrReader(errors.New("connection reset"))), hello, 5, "connection reset"},
		{"sha512", strings.NewReader("hello"), "sha512:00", 5, `digest "sha512:00": blobs are stored by sha256, not sha512`},
		{"no digest", strings.NewReader("hello"), "sha256:../../../etc/passwd", 5, `digest "sha256:../../../etc/passwd": invalid checksum digest length`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			d, n, err := s.Put(c.r, c.d, c.size)
			if c.want != "" {
				if err == nil || err.Error() != c.want {
					t.Errorf("got %v, want %s", err, c.want)
				}
				if _, err := s.Stat(hello); !errors.Is(err, ErrNotFound) {
					t.Errorf("Stat gives %v", err)
				}
				return
			}
			if err != nil || d != hello || n != 5 {
				t.Errorf("got %s, %d, %v", d, n, err)
			}
			if b, err := s.Bytes(hello); string(b) != "hello" {
				t.Errorf("Bytes gives %q, %v", b, err)
			}
		})
	}
}

func TestReader(t *testing.T) {
	t.Parallel()
	s := open(t)
	content := strings.Repeat("0123456789", 100_000)
	d := put(t, s, content)
	empty := put(t, s, "")
	for _, size := range []int64{-1, int64(len(content))} {
		r, err := s.Reader(d, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, []byte(content)); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if b, err := s.Bytes(empty); len(b) != 0 || err != nil {
		t.Errorf("the empty blob is %q, %v", b, err)
	}
	for name, err := range map[string]error{
		"other size":     second(s.Reader(d, 5)),
		"missing":        second(s.Reader(digest.FromString("missing"), -1)),
		"Bytes, missing": second(s.Bytes(digest.FromString("missing"))),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := s.Bytes(put(t, s, strings.Repeat("x", maxBytes+1))); err == nil {
		t.Error("Bytes reads more than its limit")
	}
	for _, bad := range []digest.Digest{"", "sha256:", "md5:0123", "sha256:../x", "sha512:00"} {
		if _, err := s.Reader(bad, -1); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("Reader(%q) gives %v", bad, err)
		}
		if p := s.Path(bad); p != "" {
			t.Errorf("Path(%q) is %s", bad, p)
		}
		if err := s.Remove(bad); err == nil {
			t.Errorf("Remove(%q) succeeds", bad)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Damage is noticed before the last byte is given, and the blob is gone then.
func TestDamage(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"x", strings.Repeat("0123456789", 50_000)} {
		s := open(t)
		d := put(t, s, content)
		bad := []byte(content)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(s.Path(d), bad, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := s.Reader(d, int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		n, err := io.Copy(io.Discard, io.LimitReader(r, int64(len(content))))
		if !errors.Is(err, ErrDamaged) || !errors.Is(err, ErrNotFound) || n >= int64(len(content)) {
			t.Errorf("%d damaged bytes of %d were given, %v", n, len(content), err)
		}
		if _, err := s.Stat(d); !errors.Is(err, ErrNotFound) {
			t.Errorf("the damaged blob is still there (%v)", err)
		}
		put(t, s, content)
		if _, err := s.Bytes(d); err != nil {
			t.Error(err)
		}
	}
}

// A reader of a damaged blob leaves the good one that came in its place alone.
func TestDamageReplaced(t *testing.T) {
	t.Parallel()
	s := open(t)
	d := put(t, s, "hello")
	if err := os.WriteFile(s.Path(d), []byte("hallo"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := s.Reader(d, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Remove(d); err != nil {
		t.Fatal(err)
	}
	put(t, s, "hello")
	if _, err := io.ReadAll(r); err == nil {
		t.Error("damage was not noticed")
	}
	if b, err := s.Bytes(d); string(b) != "hello" {
		t.Errorf("the good blob is %q, %v", b, err)
	}
}

// Truncated blobs, as a crash may leave them, are no blobs and get replaced.
func TestTruncated(t *testing.T) {
	t.Parallel()
	s := open(t)
	d := put(t, s, "hello")
	if err := os.Truncate(s.Path(d), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reader(d, 5); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	put(t, s, "hello")
	if b, err := s.Bytes(d); string(b) != "hello" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestWriter(t *testing.T) {
	t.Parallel()
	s := open(t)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "hel")
	fmt.Fprint(w, "lo")
	if _, err := s.Stat(digest.FromString("hello")); !errors.Is(err, ErrNotFound) {
		t.Errorf("there before Commit (%v)", err)
	}
	d, n, err := w.Commit()
	if d != digest.FromString("hello") || n != 5 || err != nil {
		t.Errorf("got %s, %d, %v", d, n, err)
	}
	if _, _, err := w.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a second Commit gives %v", err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if size, err := s.Stat(d); size != 5 || err != nil {
		t.Errorf("after Close: %d, %v", size, err)
	}
	fi, err := os.Stat(s.Path(d))
	if err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}

	dropped, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(dropped, "dropped")
	for range 2 {
		if err := dropped.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := dropped.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Write after Close gives %v", err)
	}
	if _, err := s.Stat(digest.FromString("dropped")); !errors.Is(err, ErrNotFound) {
		t.Errorf("a dropped blob is there (%v)", err)
	}
}

// A full disk makes no blob.
func TestFull(t *testing.T) {
	t.Parallel()
	s := open(t)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	name := w.f.Name()
	w.f.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	w.f = full
	if _, err := w.Write([]byte("hello")); err == nil {
		t.Error("Write succeeds")
	}
	if _, _, err := w.Commit(); err == nil {
		t.Error("Commit succeeds after a failed Write")
	}
	full.Close()
	w.f = nil
	if err := os.Remove(name); err != nil {
		t.Error(err)
	}
}

func TestListRemove(t *testing.T) {
	t.Parallel()
	s := open(t)
	want := map[digest.Digest]int64{}
	for i := range 2000 {
		content := strings.Repeat("x", i)
		want[put(t, s, content)] = int64(i)
	}
	for _, name := range []string{"README", strings.Repeat("0", 63)} {
		if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := map[digest.Digest]int64{}
	err := s.List(func(d digest.Digest, size int64) error {
		got[d] = size
		return s.Remove(d)
	})
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d blobs of %d, %v", len(got), len(want), err)
	}
	stop := errors.New("stop")
	put(t, s, "one more")
	if err := s.List(func(digest.Digest, int64) error { return stop }); err != stop {
		t.Errorf("got %v", err)
	}
	for d := range want {
		if err := s.Remove(d); err != nil {
			t.Error("removing what is gone:", err)
		}
		break
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	s := open(t)
	for _, n := range []int{0, 1, syncOneByOne, syncOneByOne + 1} {
		for i := range n {
			put(t, s, fmt.Sprint(n, i))
		}
		if n > 0 {
			if err := s.Remove(digest.FromString(fmt.Sprint(n, 0))); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.unsynced) != n {
			t.Errorf("%d blobs to sync, want %d", len(s.unsynced), n)
		}
		if err := s.Sync(); err != nil || len(s.unsynced) != 0 {
			t.Errorf("%d blobs: %v, %d left to sync", n, err, len(s.unsynced))
		}
	}
	// Someone else may have put it and not synced.
	other, err := Open(filepath.Dir(s.dir), s.temp)
	if err != nil {
		t.Fatal(err)
	}
	put(t, other, "shared")
	put(t, s, "shared")
	if len(s.unsynced) != 1 {
		t.Error("a blob that was there already is not synced")
	}
	if err := os.Rename(s.dir, s.dir+"2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(); err == nil || len(s.unsynced) != 1 {
		t.Errorf("without the directory: %v, %d left to sync", err, len(s.unsynced))
	}
}

// Many processes put, read and remove the same blobs, and some are killed.
func TestProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperProcess$")
			cmd.Env = append(os.Environ(), "STRAKE_TEST_BLOBS="+dir)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Error(err)
				return
			}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			if i < 2 {
				// Its first round is over when it reads that far.
				in.Write(make([]byte, 1<<17))
				cmd.Process.Kill()
				cmd.Wait()
				return
			}
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, &out)
			}
		})
	}
	wg.Wait()
	s, err := Open(filepath.Join(dir, "blobs"), TempIn(tmp))
	if err != nil {
		t.Fatal(err)
	}
	err = s.List(func(d digest.Digest, size int64) error {
		_, err := s.Bytes(d)
		return err
	})
	if err != nil {
		t.Error("a blob is not whole:", err)
	}
}

// TestHelperProcess is a process of TestProcesses.
func TestHelperProcess(t *testing.T) {
	dir := os.Getenv("STRAKE_TEST_BLOBS")
	if dir == "" {
		t.Skip("not called as a helper")
	}
	s, err := Open(filepath.Join(dir, "blobs"), TempIn(filepath.Join(dir, "tmp")))
	if err != nil {
		t.Fatal(err)
	}
	for round := range 50 {
		if round == 1 {
			io.Copy(io.Discard, os.Stdin) // until it is closed, or we are killed
		}
		for i := range 10 {
			content := strings.Repeat(fmt.Sprint(i), 10_000*i)
			d := put(t, s, content)
			if b, err := s.Bytes(d); err == nil && string(b) != content {
				t.Errorf("blob %d has other content", i)
			} else if err != nil && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
			if i%3 == 0 {
				if err := s.Remove(d); err != nil {
					t.Error(err)
				}
			}
		}
	}
	if err := s.Sync(); err != nil {
		t.Error(err)
	}
}

func BenchmarkPut(b *testing.B) {
	s := open(b)
	data := make([]byte, 64<<20)
	b.SetBytes(int64(len(data)))
	for i := byte(0); b.Loop(); i++ {
		data[0] = i
		d, _, err := s.Put(bytes.NewReader(data), "", -1)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(d); err != nil {
			b.Fatal(err)
		}
	}
}
