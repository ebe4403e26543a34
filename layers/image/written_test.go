package image

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// place writes a file as an archive, and skips the test where leases are
// missing.
func (s *store) place(t *testing.T, dest string, id digest.Digest) {
	t.Helper()
	f, err := os.CreateTemp(filepath.Dir(dest), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("archive"); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Skip("this file system has no leases: ", err)
	}
	if err := s.images.Place(f, dest, id); err != nil {
		t.Fatal(err)
	}
}

func TestWritten(t *testing.T) {
	t.Parallel()
	id, other := digest.FromString("one"), digest.FromString("other")
	for name, c := range map[string]struct {
		do   func(t *testing.T, dest string)
		id   digest.Digest
		want bool
	}{
		"untouched":     {func(*testing.T, string) {}, id, true},
		"other archive": {func(*testing.T, string) {}, other, false},
		"removed":       {func(t *testing.T, dest string) { must(t, os.Remove(dest)) }, id, false},
		"other mode":    {func(t *testing.T, dest string) { must(t, os.Chmod(dest, 0o600)) }, id, false},
		"other content of the same size and time": {func(t *testing.T, dest string) {
			fi, err := os.Stat(dest)
			must(t, err)
			f, err := os.OpenFile(dest, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteString("ARCHIVE")
			must(t, err)
			must(t, f.Close())
			must(t, os.Chtimes(dest, time.Time{}, fi.ModTime()))
		}, id, false},
		"replaced": {func(t *testing.T, dest string) {
			must(t, os.WriteFile(dest+"2", []byte("ARCHIVE"), 0o600))
			must(t, os.Rename(dest+"2", dest))
		}, id, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			dest := filepath.Join(t.TempDir(), "image.tar")
			if s.images.Written(dest, id) {
				t.Error("written before it was")
			}
			s.place(t, dest, id)
			c.do(t, dest)
			if got := s.images.Written(dest, c.id); got != c.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

// Who opens the file while its times are not yet safe spoils the record only.
func TestPlaceWatched(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	dest := filepath.Join(t.TempDir(), "image.tar")
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if f, err := os.OpenFile(dest, os.O_WRONLY, 0); err == nil {
				_, _ = f.WriteString("ARCHIVE")
				f.Close()
				return
			}
		}
	}()
	s.place(t, dest, digest.FromString("one"))
	close(stop)
	<-ended
	data, err := os.ReadFile(dest)
	must(t, err)
	if string(data) == "ARCHIVE" && s.images.Written(dest, digest.FromString("one")) {
		t.Error("a changed file is taken for the archive")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
