package blob

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

func TestMade(t *testing.T) {
	t.Parallel()
	s := open(t)
	make := func(content string) *Made {
		w, err := s.Create()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		return w.Made()
	}
	read := func(m *Made) (string, bool, error) {
		r, err := m.Open()
		if err != nil {
			return "", false, err
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		return string(b), File(r, m.d) != nil && Verifies(r, m.d), err
	}
	m := make("hello")
	if got, trusted, err := read(m); got != "hello" || !trusted || err != nil {
		t.Errorf("read %q, trusted: %v, %v", got, trusted, err)
	}
	if make("hello") != nil {
		t.Error("a blob that was there counts as made")
	}
	// Touched, it is verified.
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(s.Path(m.d), later, later); err != nil {
		t.Fatal(err)
	}
	if got, trusted, err := read(m); got != "hello" || trusted || err != nil {
		t.Errorf("after a touch: read %q, trusted: %v, %v", got, trusted, err)
	}
	if err := os.WriteFile(s.Path(m.d), []byte("hallo"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(m); !errors.Is(err, ErrDamaged) {
		t.Errorf("after damage: %v", err)
	}
	if _, _, err := read(m); !errors.Is(err, ErrNotFound) {
		t.Errorf("after it was removed: %v", err)
	}
	again := make("hello")
	if got, _, err := read(m); got != "hello" || err != nil {
		t.Errorf("replaced: read %q, %v", got, err)
	}
	if _, trusted, err := read(again); !trusted || err != nil {
		t.Errorf("made again: trusted: %v, %v", trusted, err)
	}
}
