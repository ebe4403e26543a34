package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers/snapshot"
)

func (s *store) find(t *testing.T, arg string) Name {
	t.Helper()
	n, err := s.images.Find(arg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFind(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	img := s.put(t, "one", []string{"app", "docker.io/me/app:1.2"})
	other := s.put(t, "two", []string{"localhost:5000/app:latest"})
	hex := img.ID.Encoded()
	for arg, want := range map[string]string{
		"app":                           "docker.io/library/app:latest",
		"app:latest":                    "docker.io/library/app:latest",
		"docker.io/library/app":         "docker.io/library/app:latest",
		"me/app:1.2":                    "docker.io/me/app:1.2",
		"me/app:1.2@" + img.ID.String(): "docker.io/me/app:1.2",
		"app@" + img.ID.String():        "docker.io/library/app:latest",
		hex:                             "",
		hex[:12]:                        "",
		hex[:7]:                         "",
		"sha256:" + hex:                 "",
		"sha256:" + hex[:10]:            "",
	} {
		n := s.find(t, arg)
		if n.Ref != want || len(n.Images) != 1 || n.Images[0].ID != img.ID {
			t.Errorf("Find(%q) = %+v, want %q", arg, n, want)
		}
	}
	if n := s.find(t, "localhost:5000/app"); n.Images[0].ID != other.ID {
		t.Errorf("got %+v", n)
	}
	for _, arg := range []string{"nosuch", "app:2", strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64), "UPPER", "", "me/app", "app@sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.images.Find(arg); !errors.Is(err, ErrNotFound) || err.Error() != "No such image: "+arg {
			t.Errorf("Find(%q): %v", arg, err)
		}
	}
}

func TestAmbiguousPrefix(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	seen := map[byte]string{}
	for i := 0; ; i++ {
		img := s.put(t, fmt.Sprint(i), nil)
		c := img.ID.Encoded()[0]
		if seen[c] != "" {
			_, err := s.images.Find(string(c))
			wantError(t, err, "ambiguous")
			if errors.Is(err, ErrNotFound) {
				t.Errorf("ambiguous is not absent: %v", err)
			}
			return
		}
		seen[c] = img.ID.Encoded()
	}
}

func TestNameWinsOverID(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	img := s.put(t, "one", nil)
	named := s.put(t, "two", []string{img.ID.Encoded()[:12]})
	if n := s.find(t, img.ID.Encoded()[:12]); n.Images[0].ID != named.ID {
		t.Errorf("got %+v", n)
	}
}

func TestPutMovesNames(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	old := s.put(t, "old", []string{"app:1"})
	kept := s.put(t, "kept", []string{"app:2", "app:3"})
	s.put(t, "new", []string{"app:1", "app:2"})
	list, err := s.images.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range list {
		cmd := map[digest.Digest]string{old.ID: "old", kept.ID: "kept"}[n.Images[0].ID]
		got = append(got, n.Ref+"="+cmd)
	}
	slices.Sort(got)
	want := []string{"=old", "docker.io/library/app:1=", "docker.io/library/app:2=", "docker.io/library/app:3=kept"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if list[0].Ref == "" || list[len(list)-1].Images[0].ID != old.ID {
		t.Errorf("the newest are not first: %+v", list)
	}
}

func TestTag(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	img := s.put(t, "one", []string{"app"})
	for _, arg := range []string{"app", img.ID.Encoded()[:12]} {
		if err := s.images.Tag(arg, "other:x"); err != nil {
			t.Fatal(err)
		}
		if n := s.find(t, "other:x"); n.Images[0].ID != img.ID {
			t.Errorf("got %+v", n)
		}
	}
	wantError(t, s.images.Tag("nosuch", "x"), "No such image: nosuch")
	wantError(t, s.images.Tag("app", "UPPER"), "UPPER")
	wantError(t, s.images.Tag("app", "x@"+img.ID.String()), "refusing to create a tag with a digest")
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	img := s.put(t, "one", []string{"app:1", "me/app:2", "app:3"})
	check := func(arg string, force bool, untagged, deleted []string) {
		t.Helper()
		u, d, err := s.images.Remove(arg, force)
		slices.Sort(u)
		if err != nil || !slices.Equal(u, untagged) || !slices.Equal(d, deleted) {
			t.Errorf("Remove(%q): untagged %q, deleted %q, %v; want %q, %q", arg, u, d, err, untagged, deleted)
		}
	}
	check("app:3", false, []string{"app:3"}, nil)
	_, _, err := s.images.Remove(img.ID.Encoded()[:12], false)
	wantError(t, err, "conflict: unable to delete "+img.ID.Encoded()[:12]+" (must be forced)", "multiple repositories")
	check(img.ID.String(), true, []string{"app:1", "me/app:2"}, []string{img.ID.String()})
	if _, err := s.images.Find(img.ID.String()); !errors.Is(err, ErrNotFound) {
		t.Errorf("still there: %v", err)
	}
	two := s.put(t, "two", []string{"app"})
	check("app", false, []string{"app:latest"}, []string{two.ID.String()})
	three := s.put(t, "three", nil)
	check(three.ID.Encoded()[:12], false, nil, []string{three.ID.String()})
	four := s.put(t, "four", []string{"app"})
	check(four.ID.Encoded(), false, []string{"app:latest"}, []string{four.ID.String()})
	if _, _, err := s.images.Remove("app", false); !errors.Is(err, ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	if list, err := s.images.List(); err != nil || len(list) != 0 {
		t.Errorf("left: %+v, %v", list, err)
	}
}

func TestSeveralPlatforms(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var images []Image
	var configs [][]byte
	for _, p := range []ocispec.Platform{linux, arm} {
		raw, err := s.packer.Config(t.Context(), config(p, "x"), nil, PackOptions{}, created, snapshot.Sources{})
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, Image{ID: digest.FromBytes(raw), Platform: p})
		configs = append(configs, raw)
	}
	index := digest.FromString("index")
	if err := s.images.Put([]string{"app"}, images, configs, index); err != nil {
		t.Fatal(err)
	}
	if n := s.find(t, "app@"+index.String()); len(n.Images) != 2 || n.Images[1].Platform.Architecture != "arm64" {
		t.Errorf("got %+v", n)
	}
	if n := s.find(t, images[1].ID.String()); len(n.Images) != 1 {
		t.Errorf("got %+v", n)
	}
	_, deleted, err := s.images.Remove("app", false)
	if err != nil || len(deleted) != 2 {
		t.Errorf("deleted %q, %v", deleted, err)
	}
}

// TestPutAgain: what is there already is not written again, unless something of
// it is lost.
func TestPutAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	names := []string{"app", "app:2"}
	img := s.put(t, "one", names)
	state := func() map[string]string {
		t.Helper()
		m := map[string]string{}
		for _, f := range []string{s.images.idFile(img.ID), s.images.nameFile("docker.io/library/app:latest"), s.images.nameFile("docker.io/library/app:2")} {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			m[filepath.Base(f)] = fmt.Sprint(info.ModTime(), string(data))
		}
		return m
	}
	before := state()
	s.put(t, "one", names)
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Errorf("written again (-before +after):\n%s", diff)
	}
	for _, lost := range []string{s.images.idFile(img.ID), s.images.nameFile("docker.io/library/app:2"), s.blobs.Path(img.ID)} {
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
		s.put(t, "one", names)
		if _, err := os.Stat(lost); err != nil {
			t.Error(err)
		}
	}
	// A name that moves is written.
	other := s.put(t, "two", names[:1])
	if n := s.find(t, "app"); n.Images[0].ID != other.ID {
		t.Errorf("app is %+v", n)
	}
	if n := s.find(t, "app:2"); n.Images[0].ID != img.ID {
		t.Errorf("app:2 is %+v", n)
	}
}

func TestPutRefusesNonsense(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	good := Image{ID: digest.FromString("{}")}
	for name, err := range map[string]error{
		"no image":      s.images.Put([]string{"app"}, nil, nil, ""),
		"no config":     s.images.Put([]string{"app"}, []Image{good}, nil, ""),
		"other config":  s.images.Put([]string{"app"}, []Image{good}, [][]byte{[]byte("[]")}, ""),
		"bad ID":        s.images.Put([]string{"app"}, []Image{{ID: "../x"}}, [][]byte{[]byte("{}")}, ""),
		"bad reference": s.images.Put([]string{"app", "A B"}, []Image{good}, [][]byte{[]byte("{}")}, ""),
	} {
		if err == nil {
			t.Errorf("%s passed", name)
		}
	}
	if list, err := s.images.List(); err != nil || len(list) != 0 {
		t.Errorf("left: %+v, %v", list, err)
	}
}

func TestDamagedFilesAreMissing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.put(t, "good", []string{"good"})
	s.put(t, "bad", []string{"bad"})
	n := s.find(t, "bad")
	for _, path := range []string{s.images.nameFile(n.Ref), s.images.idFile(n.Images[0].ID)} {
		for _, text := range []string{"", "{", `{"ref":"docker.io/library/bad:latest","images":[]}`, `{"id":"../../x"}`} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			list, err := s.images.List()
			if err != nil || !slices.ContainsFunc(list, func(n Name) bool { return n.Ref == "docker.io/library/good:latest" }) {
				t.Errorf("%q: %+v, %v", text, list, err)
			}
		}
	}
	if _, err := s.images.Find("bad"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	// JSON still, and about another platform.
	s.put(t, "bad", []string{"bad"})
	n = s.find(t, "bad")
	data, err := os.ReadFile(s.images.nameFile(n.Ref))
	if err != nil || !bytes.Contains(data, []byte(`"linux"`)) {
		t.Fatalf("%s, %v", data, err)
	}
	if err := os.WriteFile(s.images.nameFile(n.Ref), bytes.Replace(data, []byte(`"linux"`), []byte(`"minux"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.images.Find("bad"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a flipped bit: %v", err)
	}
	s.put(t, "bad", []string{"bad"}) // and can be stored again
	s.find(t, "bad")
}

func TestStoreIsShared(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const each = 8
	var wg sync.WaitGroup
	for i := range 4 {
		s := openStore(t, dir)
		wg.Go(func() {
			for j := range each {
				s.put(t, fmt.Sprint(i, j), []string{fmt.Sprintf("app%d:%d", i, j), "shared"})
				if _, err := s.images.List(); err != nil {
					t.Error(err)
				}
			}
			if _, _, err := s.images.Remove(fmt.Sprintf("app%d:0", i), true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := openStore(t, dir).images.List()
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, n := range list {
		if n.Ref != "" {
			named++
		}
	}
	if named != 4*(each-1)+1 {
		t.Errorf("%d names, want %d", named, 4*(each-1)+1)
	}
	left, err := filepath.Glob(filepath.Join(dir, "images", "*", ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
