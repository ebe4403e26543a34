package blob

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

// begin begins a blob that is followed.
func begin(t *testing.T) (*Writer, *Follower) {
	t.Helper()
	w, err := open(t).Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	f, err := w.Follow()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return w, f
}

func TestFollow(t *testing.T) {
	t.Parallel()
	w, f := begin(t)
	var got []byte
	done := make(chan error)
	go func() {
		var err error
		got, err = io.ReadAll(f)
		done <- err
	}()
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	for piece := range slices.Chunk(content, 77_777) {
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
	if d, _ := f.Blob(); d != "" {
		t.Errorf("the digest is said to be %s before there is one", d)
	}
	if _, _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !bytes.Equal(got, content) {
		t.Errorf("followed %d of %d bytes, %v", len(got), len(content), err)
	}
	if d, n := f.Blob(); d != digest.FromBytes(content) || n != int64(len(content)) {
		t.Errorf("followed %s of %d bytes", d, n)
	}
}

func TestFollowerWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, f := begin(t)
		read := make(chan error, 1)
		wait := make(chan bool, 1)
		go func() { _, err := f.Read(make([]byte, 1)); read <- err }()
		go func() { wait <- f.Wait(10) }()
		synctest.Wait()
		if len(read)+len(wait) != 0 {
			t.Fatal("there was nothing to read, and a call did not wait")
		}
		if _, err := w.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(wait) != 0 {
			t.Error("5 bytes were taken for 10")
		}
		w.Close()
		if <-wait {
			t.Error("a blob that was given up is said to have 10 bytes")
		}
		if b, err := io.ReadAll(f); string(b) != "ello" || !errors.Is(err, errGivenUp) {
			t.Errorf("given up: read %q, %v", b, err)
		}
	})
}

func TestFollowerClose(t *testing.T) {
	t.Parallel()
	w, f := begin(t)
	read := make(chan error)
	go func() { _, err := f.Read(make([]byte, 1)); read <- err }()
	f.Close()
	if err := <-read; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if f.Wait(1) {
		t.Error("Wait found a byte after Close")
	}
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Errorf("write without a follower: %v", err)
	}
}
