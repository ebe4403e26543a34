package snapshot_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
)

func TestActive(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	base := s.addEntries(t, dir("etc"), file("etc/passwd", "root"))
	a, err := s.Prepare(t.Context(), layers.Tree{base}, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.Mount.Bind, "etc", "new"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := a.Commit(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Layer(id)
	if err != nil || !l.Dir || l.Size != 3 || l.Created.IsZero() {
		t.Errorf("layer is %+v, %v", l, err)
	}
	if got := described(t, s.Entries(t.Context(), id, snapshot.Sources{})); got != "5 etc 0755\n0 etc/new 0600 3\n" {
		t.Errorf("layer has %s", got)
	}
	s.noTemp(t)
	if err := a.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := a.Commit(t.Context(), nil); err == nil {
		t.Error("committed twice")
	}
	// The file below is another one.
	if got, err := os.ReadFile(s.root.Path("layers", string(base), "fs/etc/passwd")); err != nil || string(got) != "root" {
		t.Errorf("the layer below has %q, %v", got, err)
	}
}

func TestActiveDiscard(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	a, err := s.Prepare(t.Context(), layers.Tree{s.addEntries(t, file("f", ""))}, snapshot.Sources{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.Discard(); err != nil {
			t.Fatal(err)
		}
	}
	s.noTemp(t)
}

func TestActiveStubs(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	tests := []struct {
		name  string
		stubs []string
		make  func(root string) error
		want  string
	}{
		{
			name:  "left empty",
			stubs: []string{"run", "run/secrets", "run/secrets/key", "etc/resolv.conf"},
			make: func(root string) error {
				return errors.Join(os.MkdirAll(filepath.Join(root, "run/secrets"), 0o755),
					os.WriteFile(filepath.Join(root, "run/secrets/key"), nil, 0o600),
					os.WriteFile(filepath.Join(root, "etc/resolv.conf"), nil, 0o600))
			},
		},
		{
			name:  "filled",
			stubs: []string{"run", "/run/lock/"},
			make: func(root string) error {
				return errors.Join(os.MkdirAll(filepath.Join(root, "run/lock"), 0o755), os.WriteFile(filepath.Join(root, "run/f"), nil, 0o600))
			},
			want: "5 run 0755\n0 run/f 0600 0\n",
		},
		{name: "in the tree below", stubs: []string{"etc", "empty", "etc/hosts"}, make: func(string) error { return nil }},
		{name: "never made", stubs: []string{"x/y", ".", "/", ""}, make: func(string) error { return nil }},
		{
			name:  "replaced by a symlink",
			stubs: []string{"run/empty", "run"},
			make:  func(root string) error { return os.Symlink(outside, filepath.Join(root, "run")) },
			want:  "2 run " + outside + "\n",
		},
		{
			name:  "outside",
			stubs: []string{"../../../../../../../../../.." + outside + "/empty"},
			make:  func(root string) error { return nil },
		},
	}
	if err := os.Mkdir(filepath.Join(outside, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		s := newStore(t)
		base := s.addEntries(t, dir("empty"), dir("etc"), file("etc/hosts", ""))
		a, err := s.Prepare(t.Context(), layers.Tree{base}, snapshot.Sources{})
		if err != nil {
			t.Fatal(err)
		}
		if err := test.make(a.Mount.Bind); err != nil {
			t.Fatal(err)
		}
		id, err := a.Commit(t.Context(), test.stubs)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := described(t, s.Entries(t.Context(), id, snapshot.Sources{})); got != test.want {
			t.Errorf("%s: layer has\n%swant\n%s", test.name, got, test.want)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "empty")); err != nil {
		t.Error(err)
	}
}
