package file

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

const digestSrc = `
	d 750 5:6 dir
	f 640 5:6 dir/a aaa
	l 5:6 dir/l -> a
	f 644 5:6 other x
`

func digestOf(t *testing.T, src string, owned bool, actions ...plan.Action) digest.Digest {
	t.Helper()
	s, err := Select(context.Background(), &plan.File{Actions: actions}, 1, Input{Tree: newTree(t, src), Owned: owned})
	if err != nil {
		t.Fatal(err)
	}
	return s.Digest
}

func TestDigest(t *testing.T) {
	t.Parallel()
	ref := func(owned bool) digest.Digest { return digestOf(t, digestSrc, owned, dockerfile("/dir", "/to")) }
	for _, tt := range []struct {
		name    string
		src     string
		owned   bool
		changes bool
	}{
		{"nothing", digestSrc, false, false},
		{"a file that is not taken", digestSrc + "f 644 0:0 other2 y", false, false},
		{"content", digestSrc + "f 640 5:6 dir/a bbb", false, true},
		{"mode", digestSrc + "f 641 5:6 dir/a aaa", false, true},
		{"owner in a directory of the user", digestSrc + "f 640 9:6 dir/a aaa", false, false},
		{"owner in an image", digestSrc + "f 640 9:6 dir/a aaa", true, true},
		{"group in an image", digestSrc + "f 640 5:9 dir/a aaa", true, true},
		{"target of a link", digestSrc + "l 5:6 dir/l -> b", false, true},
		{"type", digestSrc + "d 640 5:6 dir/a", false, true},
		{"one more", digestSrc + "f 640 5:6 dir/b bbb", false, true},
		{"attributes of a directory of which only the contents are taken", digestSrc + "d 700 5:6 dir", false, false},
	} {
		got := digestOf(t, tt.src, tt.owned, dockerfile("/dir", "/to"))
		if changed := got != ref(tt.owned); changed != tt.changes {
			t.Errorf("%s: changed %v", tt.name, changed)
		}
	}
	if a, b := digestOf(t, "d 755 0:0 d", false, llb("/d", "/to")), digestOf(t, "d 711 0:0 d", false, llb("/d", "/to")); a == b {
		t.Error("the mode of a directory that is taken itself does not count")
	}
	if got := digestOf(t, digestSrc, false, &plan.Mkdir{Path: "/x"}, &plan.Copy{Input: 2}); got != "" {
		t.Errorf("taking nothing has digest %s", got)
	}
	// Names that patterns match are names in the result.
	if a, b := digestOf(t, "f 644 0:0 a x", false, dockerfile("/*", "/to/")), digestOf(t, "f 644 0:0 b x", false, dockerfile("/*", "/to/")); a == b {
		t.Error("the name that a pattern matched does not count")
	}
	_, err := Select(context.Background(), &plan.File{Actions: actions(dockerfile("/none", "/"))}, 1, Input{})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("missing source: %v", err)
	}
}

// Times and what happens to have been hashed or not are not in digests.
func TestDigestWithoutTimes(t *testing.T) {
	t.Parallel()
	src := newTree(t, digestSrc)
	in := Input{Tree: src, Owned: true}
	a, err := SelectPath(context.Background(), in, "/dir")
	if err != nil {
		t.Fatal(err)
	}
	e := src["dir/a"]
	e.ModTime = layers.DefaultModTime
	e.Digest = digest.FromBytes(e.Data)
	src["dir/a"] = e
	b, err := SelectPath(context.Background(), in, "dir/")
	if err != nil || a.Digest != b.Digest {
		t.Errorf("got %s and %s, %v", a.Digest, b.Digest, err)
	}
}

func TestSelectPath(t *testing.T) {
	t.Parallel()
	of := func(src, path string) digest.Digest {
		t.Helper()
		s, err := SelectPath(context.Background(), Input{Tree: newTree(t, src)}, path)
		if err != nil {
			t.Fatal(err)
		}
		return s.Digest
	}
	ref := of(digestSrc, "dir")
	if of(digestSrc+"l 0:0 link -> dir", "/link") != ref {
		t.Error("a symlink is not followed")
	}
	if of(digestSrc+"d 711 5:6 dir", "dir") == ref {
		t.Error("the mode of the directory does not count")
	}
	if of(digestSrc+"f 600 0:0 else x", "dir") != ref {
		t.Error("files elsewhere count")
	}
	if of("f 644 0:0 a x", ".") == of("f 644 0:0 b x", "/") {
		t.Error("names do not count")
	}
	if of("f 644 0:0 a x", "a") == of("f 644 0:0 a y", "a") {
		t.Error("the content of a file does not count")
	}
	if _, err := SelectPath(context.Background(), Input{}, "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing path: %v", err)
	}
	if _, err := SelectPath(context.Background(), Input{}, "."); err != nil {
		t.Errorf("empty tree: %v", err)
	}
}

// The bytes that are hashed must not change without a new schema version.
func TestDigestGolden(t *testing.T) {
	t.Parallel()
	const want = "sha256:6f0c4f84ef0564a62c2e4a705d59a4375f2170f14cc939824607dba71b435ae4"
	if got := digestOf(t, digestSrc, true, dockerfile("/d*", "/to")); got != want {
		t.Errorf("got %s, want %s: keys of stored results change", got, want)
	}
}

// TestList: a list tells of what is taken and nothing else, with owners where
// they count.
func TestList(t *testing.T) {
	t.Parallel()
	tree := newTree(t, digestSrc)
	tree["."] = layers.Entry{Path: ".", Type: layers.Dir, Mode: 0o755}
	list := func(s Selection, err error) string {
		t.Helper()
		var b strings.Builder
		if err == nil {
			err = s.List(func(l Listed) error {
				fmt.Fprintf(&b, "%c %o %d:%d %s %s\n", l.Type, l.Mode, l.UID, l.GID, l.Path, l.Sum)
				return nil
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	ctx := context.Background()
	sum := func(s string) string { return digest.FromString(s).Encoded()[:16] }
	op := &plan.File{Actions: actions(dockerfile("/dir", "/to"), dockerfile("/other", "/x"))}
	for name, tt := range map[string]struct{ got, want string }{
		"contents of a directory, and a file": {
			list(Select(ctx, op, 1, Input{Tree: tree})),
			"0 640 -1:-1 dir/a " + sum("aaa") + "\n2 777 -1:-1 dir/l " + sum("a") + "\n0 644 -1:-1 other " + sum("x") + "\n",
		},
		"a directory of an image": {
			list(SelectPath(ctx, Input{Tree: tree, Owned: true}, "dir")),
			"5 750 5:6 dir \n0 640 5:6 dir/a " + sum("aaa") + "\n2 777 5:6 dir/l " + sum("a") + "\n",
		},
		"nothing": {list(Select(ctx, op, 2, Input{Tree: tree})), ""},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got\n%swant\n%s", name, tt.got, tt.want)
		}
	}
}
