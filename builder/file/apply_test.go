package file

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// dockerfile is what the parser makes of COPY src… dest.
func dockerfile(src, dest string, change ...func(*plan.Copy)) *plan.Copy {
	c := &plan.Copy{
		Input: 1, Source: src, Dest: dest, Wildcard: true, AllowNoMatch: true,
		ContentsOnly: true, FollowLinks: true, CreateParents: true,
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// llb is what an LLB client makes of llb.Copy(src, dest) without options.
func llb(src, dest string, change ...func(*plan.Copy)) *plan.Copy {
	c := &plan.Copy{Input: 1, Source: src, Dest: dest, CreateParents: true}
	for _, f := range change {
		f(c)
	}
	return c
}

func chown(user, group string) func(*plan.Copy) {
	return func(c *plan.Copy) { c.Owner = &plan.Owner{User: user, Group: group} }
}
func chmodTo(mode string) func(*plan.Copy)   { return func(c *plan.Copy) { c.Mode = mode } }
func include(p ...string) func(*plan.Copy)   { return func(c *plan.Copy) { c.Include = p } }
func exclude(p ...string) func(*plan.Copy)   { return func(c *plan.Copy) { c.Exclude = p } }
func noParents(c *plan.Copy)                 { c.CreateParents = false }
func noFollow(c *plan.Copy)                  { c.FollowLinks = false }
func mustMatch(c *plan.Copy)                 { c.AllowNoMatch = false }
func unpacked(c *plan.Copy)                  { c.Unpack = true }
func actions(a ...plan.Action) []plan.Action { return a }
func inputsOf(in Input) []Input              { return []Input{{}, in} }
func noStage() (string, error)               { return "", errors.New("nothing is to be staged") }
func apply(t *testing.T, op *plan.File, base Tree, in Input) ([]layers.Entry, error) {
	t.Helper()
	return Apply(context.Background(), op, base, inputsOf(in), noStage)
}

func TestApply(t *testing.T) {
	t.Parallel()
	const src = `
		d 750 5:6 dir
		f 640 5:6 dir/a aaa
		d 700 5:6 dir/sub
		f 4755 5:6 dir/sub/b bbb
		f 600 5:6 file text
		f 600 5:6 empty
		f 644 5:6 x.go x
		f 644 5:6 y.go y
		d 755 5:6 pkg
		f 644 5:6 pkg/z.go z
		l 5:6 tofile -> file
		l 5:6 todir -> dir
		l 5:6 dangling -> nothing
		l 5:6 dir/up -> ../../../file
	`
	tests := []struct {
		name    string
		base    string
		owned   bool
		actions []plan.Action
		want    string
		err     string
	}{
		// Names of the destination.
		{"file to a name", "", false, actions(dockerfile("/file", "/to")), `f 600 0:0 to < 1:file`, ""},
		{"file to a name in new directories", "", false, actions(dockerfile("/file", "/a/b/to")), `
			d 755 0:0 a
			d 755 0:0 a/b
			f 600 0:0 a/b/to < 1:file`, ""},
		{"file to a directory by its slash", "", false, actions(dockerfile("/file", "/to/")), `
			d 755 0:0 to
			f 600 0:0 to/file < 1:file`, ""},
		{"file to a directory by its dot", "", false, actions(dockerfile("/file", "/to/.")), `
			d 755 0:0 to
			f 600 0:0 to/file < 1:file`, ""},
		{"file to a directory that is there", "d 711 3:4 to", false, actions(dockerfile("/file", "/to")), `
			d 711 3:4 to
			f 600 0:0 to/file < 1:file`, ""},
		{"file over a file", "f 644 3:4 to old", false, actions(dockerfile("/file", "/to")), `f 600 0:0 to < 1:file`, ""},
		{"file to the root", "", false, actions(dockerfile("/file", "/")), `f 600 0:0 file < 1:file`, ""},
		{"empty file", "", false, actions(dockerfile("/empty", "/")), `f 600 0:0 empty = ""`, ""},
		{"source with a slash", "", false, actions(dockerfile("/file/", "/to")), `f 600 0:0 to < 1:file`, ""},
		{"dots in the source do not leave it", "", false, actions(dockerfile("/../../file", "/to")), `f 600 0:0 to < 1:file`, ""},

		// Directories.
		{"contents of a directory to a new one", "", false, actions(dockerfile("/dir", "/to")), `
			d 755 0:0 to
			f 640 0:0 to/a < 1:dir/a
			d 700 0:0 to/sub
			f 4755 0:0 to/sub/b < 1:dir/sub/b
			l 0:0 to/up -> ../../../file`, ""},
		{"directories that are there get the source's attributes, but for the destination", `
			d 711 3:4 to
			d 711 3:4 to/sub`, false, actions(dockerfile("/dir", "/to/")), `
			d 711 3:4 to
			f 640 0:0 to/a < 1:dir/a
			d 700 0:0 to/sub
			f 4755 0:0 to/sub/b < 1:dir/sub/b
			l 0:0 to/up -> ../../../file`, ""},
		{"directory itself to a new one has its attributes", "", false, actions(llb("/dir", "/to", exclude("sub", "up"))), `
			d 750 0:0 to
			f 640 0:0 to/a < 1:dir/a`, ""},
		{"directory itself into one that is there", "d 755 0:0 to", false, actions(llb("/dir", "/to", exclude("sub", "up"))), `
			d 755 0:0 to
			d 750 0:0 to/dir
			f 640 0:0 to/dir/a < 1:dir/a`, ""},
		{"directory itself by a slash", "", false, actions(llb("/dir", "/to/", exclude("sub", "up"))), `
			d 755 0:0 to
			d 750 0:0 to/dir
			f 640 0:0 to/dir/a < 1:dir/a`, ""},
		{"dir/. is its contents", "d 755 0:0 to", false, actions(llb("/dir/.", "/to", exclude("sub", "up"))), `
			d 755 0:0 to
			f 640 0:0 to/a < 1:dir/a`, ""},
		{"whole source", "", false, actions(llb("/", "/to", exclude("*", "!file"))), `
			d 755 0:0 to
			f 600 0:0 to/file < 1:file`, ""},

		// Conflicts.
		{"directory over a file", "f 644 0:0 to/sub x", false, actions(dockerfile("/dir", "/to/")), "", "cannot copy to non-directory: /to/sub"},
		{"directory over a symlink", "l 0:0 to/sub -> /etc\nd 755 0:0 etc", false, actions(dockerfile("/dir", "/to/")), "", "cannot copy to non-directory: /to/sub"},
		{"file over a directory", "d 755 0:0 to/a", false, actions(dockerfile("/dir", "/to/")), "", "cannot replace to directory /to/a with file"},
		{"contents over a file", "f 644 0:0 to x", false, actions(dockerfile("/dir", "/to")), "", "cannot copy to non-directory: /to"},
		{"through a file", "f 644 0:0 to x", false, actions(dockerfile("/file", "/to/deep/x")), "", "/to: not a directory"},

		// Symlinks.
		{"symlink to a file is followed", "", false, actions(dockerfile("/tofile", "/to/")), `
			d 755 0:0 to
			f 600 0:0 to/tofile < 1:file`, ""},
		{"symlink to a directory is followed", "", false, actions(dockerfile("/todir", "/to", exclude("sub", "up"))), `
			d 755 0:0 to
			f 640 0:0 to/a < 1:dir/a`, ""},
		{"symlink on the way is followed", "", false, actions(dockerfile("/todir/a", "/to")), `f 640 0:0 to < 1:dir/a`, ""},
		{"symlink that would leave the source is held in it", "", false, actions(dockerfile("/dir/up", "/to")), `f 600 0:0 to < 1:file`, ""},
		{"symlink as such", "", false, actions(llb("/tofile", "/to", noFollow)), `l 0:0 to -> file`, ""},
		{"symlink to nothing", "", false, actions(dockerfile("/dangling", "/to")), "", `"/nothing": not found`},
		{"symlink at the destination is followed", "l 0:0 to -> /real\nd 700 1:1 real", false, actions(dockerfile("/file", "/to")), `
			d 700 1:1 real
			f 600 0:0 real/file < 1:file`, ""},
		{"symlink at the destination to nothing", "l 0:0 to -> /real/x", false, actions(dockerfile("/file", "/to")), `
			d 755 0:0 real
			f 600 0:0 real/x < 1:file`, ""},
		{"symlink on the way to the destination", "l 0:0 lib -> usr/lib\nd 755 0:0 usr/lib", false, actions(dockerfile("/file", "/lib/x/")), `
			d 755 0:0 usr
			d 755 0:0 usr/lib
			d 755 0:0 usr/lib/x
			f 600 0:0 usr/lib/x/file < 1:file`, ""},
		{"symlink of the destination that would leave the root", "l 0:0 out -> ../../../etc", false, actions(dockerfile("/file", "/out/x")), `
			d 755 0:0 etc
			f 600 0:0 etc/x < 1:file`, ""},
		{"symlinks in a circle", "l 0:0 a -> b\nl 0:0 b -> a", false, actions(dockerfile("/file", "/a/x")), "", "too many symbolic links"},

		// Patterns.
		{"wildcard", "", false, actions(dockerfile("/*.go", "/to/")), `
			d 755 0:0 to
			f 644 0:0 to/x.go < 1:x.go
			f 644 0:0 to/y.go < 1:y.go`, ""},
		{"wildcard in a directory name", "", false, actions(dockerfile("/p*/?.go", "/to/")), `
			d 755 0:0 to
			f 644 0:0 to/z.go < 1:pkg/z.go`, ""},
		{"wildcard that matches directories copies what is in them", "", false, actions(dockerfile("/p*", "/to/")), `
			d 755 0:0 to
			f 644 0:0 to/z.go < 1:pkg/z.go`, ""},
		{"star stops at a slash", "", false, actions(dockerfile("/*z.go", "/to/")), ``, ""},
		{"no match", "", false, actions(dockerfile("/*.rs", "/to/")), ``, ""},
		{"no match where there must be one", "", false, actions(dockerfile("/*.rs", "/to/", mustMatch)), "", `"/*.rs": not found`},
		{"below a directory that is missing", "", false, actions(dockerfile("/nodir/*", "/to/")), "", `"/nodir": not found`},
		{"bad pattern", "", false, actions(dockerfile("/[", "/to/")), "", "syntax error in pattern"},
		{"missing", "", false, actions(dockerfile("/missing", "/to/")), "", `"/missing": not found`},
		{"include", "", false, actions(dockerfile("/", "/to/", include("pkg/*.go", "dir/sub"))), `
			d 755 0:0 to
			d 750 0:0 to/dir
			d 700 0:0 to/dir/sub
			f 4755 0:0 to/dir/sub/b < 1:dir/sub/b
			d 755 0:0 to/pkg
			f 644 0:0 to/pkg/z.go < 1:pkg/z.go`, ""},
		{"include keeps owners of directories that are there and takes modes", "d 711 3:4 to/pkg", false, actions(dockerfile("/", "/to/", include("**/z.go"))), `
			d 755 0:0 to
			d 755 3:4 to/pkg
			f 644 0:0 to/pkg/z.go < 1:pkg/z.go`, ""},
		{"required path", "", false, actions(dockerfile("/", "/to/", include("nope"), func(c *plan.Copy) { c.Required = []string{"/nope"} })), "", `"/nope": not found`},
		{"exclude with an exception", "", false, actions(dockerfile("/", "/to/", exclude("*", "!dir/sub/b"))), `
			d 755 0:0 to
			d 750 0:0 to/dir
			d 700 0:0 to/dir/sub
			f 4755 0:0 to/dir/sub/b < 1:dir/sub/b`, ""},

		// Owners and modes.
		{"owner of new directories, too", "d 755 0:0 opt", false, actions(dockerfile("/file", "/opt/a/b/", chown("7", ""))), `
			d 755 0:0 opt
			d 755 7:7 opt/a
			d 755 7:7 opt/a/b
			f 600 7:7 opt/a/b/file < 1:file`, ""},
		{"owner of everything", "", false, actions(dockerfile("/dir", "/to", chown("7", "8"), exclude("sub"))), `
			d 755 7:8 to
			f 640 7:8 to/a < 1:dir/a
			l 7:8 to/up -> ../../../file`, ""},
		{"owner of an image's files", "", true, actions(dockerfile("/file", "/to/")), `
			d 755 0:0 to
			f 600 5:6 to/file < 1:file`, ""},
		{"octal mode", "", false, actions(dockerfile("/dir", "/to", chmodTo("2711"))), `
			d 711 0:0 to
			f 2711 0:0 to/a < 1:dir/a
			d 2711 0:0 to/sub
			f 2711 0:0 to/sub/b < 1:dir/sub/b
			l 0:0 to/up -> ../../../file`, ""},
		{"symbolic mode", "", false, actions(dockerfile("/dir", "/to", chmodTo("go=u-w,u-s,+X"))), `
			d 755 0:0 to
			f 644 0:0 to/a < 1:dir/a
			d 755 0:0 to/sub
			f 755 0:0 to/sub/b < 1:dir/sub/b
			l 0:0 to/up -> ../../../file`, ""},
		{"bad mode", "", false, actions(dockerfile("/dir", "/to", chmodTo("u+q"))), "", `mode "u+q"`},
		{"mode out of range", "", false, actions(dockerfile("/dir", "/to", chmodTo("10000"))), "", "07777"},

		// Other actions, and several.
		{"mkdir", "d 711 1:1 a", false, actions(&plan.Mkdir{Path: "/a/b/c", Mode: 0o700, Parents: true, Owner: &plan.Owner{User: "3"}}), `
			d 711 1:1 a
			d 700 3:3 a/b
			d 700 3:3 a/b/c`, ""},
		{"mkdir of what is there", "d 711 1:1 a", false, actions(&plan.Mkdir{Path: "/a", Mode: 0o700, Parents: true}), ``, ""},
		{"mkdir over a file", "f 711 1:1 a x", false, actions(&plan.Mkdir{Path: "/a/b", Mode: 0o700, Parents: true}), "", "/a: not a directory"},
		{"mkdir without a parent", "", false, actions(&plan.Mkdir{Path: "/a/b", Mode: 0o700}), "", "no directory /a"},
		{"mkdir below a set-group-ID bit", "d 2711 1:9 a", false, actions(
			&plan.Mkdir{Path: "/a/b/c", Mode: 0o700, Parents: true},
			&plan.Mkdir{Path: "/a/own", Mode: 0o700, Owner: &plan.Owner{User: "3"}},
			&plan.Mkfile{Path: "/a/f", Mode: 0o640},
			&plan.Symlink{Path: "/a/l", Target: "/b"},
		), `
			d 2711 1:9 a
			d 2700 0:9 a/b
			d 2700 0:9 a/b/c
			f 640 0:9 a/f = ""
			l 0:9 a/l -> /b
			d 2700 3:3 a/own`, ""},
		{"copy below a set-group-ID bit", "d 2711 1:9 a", false, actions(dockerfile("/dir/a", "/a/new/f"), dockerfile("/dir/a", "/a/own/f", chown("3", "4"))), `
			d 2711 1:9 a
			d 2755 0:9 a/new
			f 640 0:0 a/new/f < 1:dir/a
			d 2755 3:4 a/own
			f 640 3:4 a/own/f < 1:dir/a`, ""},
		{"mkfile", "d 700 0:0 etc", false, actions(&plan.Mkfile{Path: "/etc/x", Mode: 0o640, Data: []byte("hi"), Owner: &plan.Owner{User: "1", Group: "2"}}), `
			d 700 0:0 etc
			f 640 1:2 etc/x = "hi"`, ""},
		{"mkfile over a directory", "d 700 0:0 etc", false, actions(&plan.Mkfile{Path: "/etc"}), "", "is a directory"},
		{"symlink", "", false, actions(&plan.Symlink{Path: "/a", Target: "/b"}), `l 0:0 a -> /b`, ""},
		{"symlink over a file", "f 644 0:0 a x", false, actions(&plan.Symlink{Path: "/a", Target: "/b"}), "", "exists"},
		{"remove", "f 644 0:0 a/b x", false, actions(&plan.Remove{Path: "/a/b"}), `
			d 755 0:0 a
			w a/b`, ""},
		{"remove a tree", "f 644 0:0 a/b x", false, actions(&plan.Remove{Path: "/a"}), `w a`, ""},
		{"remove by pattern", "f 644 0:0 a/b1 x\nf 644 0:0 a/b2 x\nf 644 0:0 a/c x", false, actions(&plan.Remove{Path: "/a/b*", Wildcard: true}), `
			d 755 0:0 a
			w a/b1
			w a/b2`, ""},
		{"remove a link, not what it leads to", "l 0:0 a -> b\nf 644 0:0 b x", false, actions(&plan.Remove{Path: "/a"}), `w a`, ""},
		{"remove what is missing", "", false, actions(&plan.Remove{Path: "/a"}), "", `"/a": not found`},
		{"remove what may be missing", "", false, actions(&plan.Remove{Path: "/a", AllowMissing: true}), ``, ""},
		{"remove the root", "", false, actions(&plan.Remove{Path: "/"}), "", "root directory"},
		{"remove what this op made", "", false, actions(dockerfile("/file", "/a"), &plan.Remove{Path: "/a"}), ``, ""},
		{"make anew what was removed", "f 644 0:0 a/b x", false, actions(&plan.Remove{Path: "/a"}, dockerfile("/file", "/a/")), `
			d 755 0:0 a opaque
			f 600 0:0 a/file < 1:file`, ""},
		{"later actions see earlier ones", "", false, actions(&plan.Symlink{Path: "/l", Target: "/d"}, &plan.Mkdir{Path: "/d", Mode: 0o700}, dockerfile("/file", "/l")), `
			d 700 0:0 d
			f 600 0:0 d/file < 1:file
			l 0:0 l -> /d`, ""},
		{"the same file twice is one entry", "", false, actions(dockerfile("/file", "/a"), dockerfile("/file", "/a")), `f 600 0:0 a < 1:file`, ""},
		{"parent that may not be made", "", false, actions(dockerfile("/file", "/a/b", noParents)), "", "no directory /a"},
		{"input out of range", "", false, actions(&plan.Copy{Input: 2, Source: "/", Dest: "/"}), "", "input 2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var base Tree
			if tt.base != "" {
				base = newTree(t, tt.base)
			}
			got, err := apply(t, &plan.File{Actions: tt.actions}, base, Input{Tree: newTree(t, src), Owned: tt.owned})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(lines(tt.want), format(got)); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			checkEntries(t, got)
		})
	}
}

// checkEntries asserts what every layer must be.
func checkEntries(t *testing.T, entries []layers.Entry) {
	t.Helper()
	seen := map[string]layers.Entry{".": {Type: layers.Dir}}
	for i, e := range entries {
		if i > 0 && layers.ComparePaths(entries[i-1].Path, e.Path) >= 0 {
			t.Errorf("%s comes after %s", e.Path, entries[i-1].Path)
		}
		dir := "."
		if j := strings.LastIndexByte(e.Path, '/'); j >= 0 {
			dir = e.Path[:j]
		}
		if seen[dir].Type != layers.Dir {
			t.Errorf("%s comes without its directory", e.Path)
		}
		if slices.Contains(strings.Split(e.Path, "/"), "..") {
			t.Errorf("%s leaves the root", e.Path)
		}
		switch e.Type {
		case layers.Regular:
			if e.Digest.Validate() != nil {
				t.Errorf("%s has digest %q", e.Path, e.Digest)
			}
		case layers.Hardlink:
			if seen[e.Link].Type != layers.Regular {
				t.Errorf("%s is a link to %s, which does not come before", e.Path, e.Link)
			}
		}
		seen[e.Path] = e
	}
}

func TestFilesThatLayersCannotHold(t *testing.T) {
	t.Parallel()
	for _, src := range []string{"f 644 0:0 .wh.gone x", "c 644 0:0 gone 0:0"} {
		_, err := apply(t, &plan.File{Actions: actions(dockerfile("/", "/to"))}, nil, Input{Tree: newTree(t, src)})
		if err == nil || !strings.Contains(err.Error(), "no image can hold") {
			t.Errorf("%s: got error %v", src, err)
		}
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	src := newTree(t, "f 644 0:0 a x")
	for _, owned := range []bool{false, true} {
		got, err := apply(t, &plan.File{Actions: actions(dockerfile("/a", "/d/"))}, nil, Input{Tree: src, Owned: owned})
		if err != nil {
			t.Fatal(err)
		}
		if !got[0].ModTime.Equal(layers.DefaultModTime) {
			t.Errorf("directory has time %v", got[0].ModTime)
		}
		if owned != got[1].ModTime.IsZero() {
			t.Errorf("owned %v: file has time %v", owned, got[1].ModTime)
		}
	}
}

func TestMissingSaysWhy(t *testing.T) {
	t.Parallel()
	in := Input{Tree: newTree(t, "l 0:0 link -> secret/key"), Why: func(p string) string {
		if p == "secret/key" {
			return `left out by "secret" in .dockerignore`
		}
		return ""
	}}
	for _, src := range []string{"/secret/key", "/link"} {
		_, err := apply(t, &plan.File{Actions: actions(dockerfile(src, "/"))}, nil, in)
		const want = `"/secret/key": not found (left out by "secret" in .dockerignore)`
		if err == nil || err.Error() != want || !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	_, err := Apply(ctx, &plan.File{Actions: actions(dockerfile("/", "/"))}, nil, inputsOf(Input{Tree: newTree(t, "f 644 0:0 a x")}), noStage)
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestDigestsAreOfContents(t *testing.T) {
	t.Parallel()
	got, err := apply(t, &plan.File{Actions: actions(dockerfile("/a", "/"))}, nil, Input{Tree: newTree(t, "f 644 0:0 a hello")})
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Digest != digest.FromString("hello") {
		t.Errorf("got %s", got[0].Digest)
	}
}
