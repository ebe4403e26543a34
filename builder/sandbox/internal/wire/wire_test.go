package wire

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStream(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	for _, v := range []string{"one", "two"} {
		if err := Write(&b, v); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"one", "two"} {
		var got string
		if err := Read(&b, &got); err != nil || got != want {
			t.Errorf("got %q, error %v, want %q", got, err, want)
		}
	}
	if err := Read(&b, new(string)); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if err := Read(bytes.NewReader([]byte{9, 0, 0, 0, '1'}), new(int)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("torn: %v", err)
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	ours, theirs, err := Pair(unix.SOCK_SEQPACKET)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	socket := int(theirs.Fd())
	if err := errors.Join(Send(socket, "plain", -1), Send(socket, "pipe", int(w.Fd())), w.Close()); err != nil {
		t.Fatal(err)
	}
	var got string
	if fd, err := Receive(ours, &got); fd != -1 || got != "plain" || err != nil {
		t.Errorf("got %q, descriptor %d, error %v", got, fd, err)
	}
	fd, err := Receive(ours, &got)
	if fd < 0 || got != "pipe" || err != nil {
		t.Fatalf("got %q, descriptor %d, error %v", got, fd, err)
	}
	f := os.NewFile(uintptr(fd), "pipe")
	if _, err := f.WriteString("x"); err != nil {
		t.Error(err)
	}
	if err := errors.Join(f.Close(), theirs.Close()); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(r); string(b) != "x" || err != nil {
		t.Errorf("read %q, error %v", b, err)
	}
	if _, err := Receive(ours, &got); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}
