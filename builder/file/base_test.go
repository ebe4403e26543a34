package file

import (
	"archive/tar"
	"errors"
	"path"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

func TestNeedsBase(t *testing.T) {
	t.Parallel()
	src := newTree(t, `
		f 644 0:0 app x
		f 644 0:0 nginx.conf x
		f 644 0:0 code/main.go x
		f 644 0:0 code/sub/x.go x
		f 644 0:0 rootfs/app/x x
		f 644 0:0 merged/lib/x x
		f 644 0:0 files/bin x
		f 644 0:0 conf/nginx/x x
	`).with("a.tar", archive(t, tar.Header{Name: "x"}))
	workdir := func(p string, o *plan.Owner) *plan.Mkdir {
		return &plan.Mkdir{Path: p, Mode: 0o755, Parents: true, Owner: o}
	}
	for _, tt := range []struct {
		name   string
		action plan.Action
		hints  []string
		user   string
		want   bool
	}{
		{"directory of its own", dockerfile("/code", "/app/"), nil, "", false},
		{"deep in a directory of its own", dockerfile("/code", "/app/a/b"), nil, "", false},
		{"everything to a directory of its own", dockerfile("/", "/src"), nil, "", false},
		{"known directory", dockerfile("/code", "/app/"), []string{"/app"}, "", true},
		{"below a known directory", dockerfile("/code", "/go/src/app/"), []string{"/go"}, "", true},
		{"above a known directory", dockerfile("/code", "/app/"), []string{"/app/deep"}, "", true},
		{"beside a known directory", dockerfile("/code", "/app/"), []string{"/work"}, "", false},
		{"known directories that are plain", dockerfile("/app", "/usr/local/bin/"), []string{"/usr/local/bin"}, "", false},
		{"program", dockerfile("/app", "/usr/local/bin/"), nil, "", false},
		{"program by name", dockerfile("/app", "/usr/local/bin/app"), nil, "", false},
		{"program by another name", dockerfile("/app", "/usr/local/bin/tool"), nil, "", true},
		{"file with an extension", dockerfile("/app", "/opt/x/tool.sh"), nil, "", false},
		{"file in the root", dockerfile("/app", "/app"), nil, "", false},
		{"perhaps a directory", dockerfile("/app", "/srv/x"), nil, "", true},
		{"plain directory without a slash", dockerfile("/app", "/etc"), nil, "", true},
		{"configuration", dockerfile("/nginx.conf", "/etc/nginx/nginx.conf"), nil, "", true},
		{"configuration in /etc", dockerfile("/nginx.conf", "/etc/"), nil, "", false},
		{"/usr/share deep", dockerfile("/code", "/usr/share/nginx/html/"), nil, "", true},
		{"perhaps a symlink", dockerfile("/app", "/bin/"), nil, "", true},
		{"home of a user", dockerfile("/code", "/home/me/"), nil, "", true},
		{"/root", dockerfile("/code", "/root/"), nil, "", true},
		{"/tmp", dockerfile("/code", "/tmp/"), nil, "", true},
		{"/opt deep", dockerfile("/code", "/opt/a/b/"), nil, "", false},
		{"tree over the root, of its own", dockerfile("/rootfs", "/"), nil, "", false},
		{"tree over the root, with a name that may be a symlink", dockerfile("/merged", "/"), nil, "", true},
		{"file over the root, with a name that may be a directory", dockerfile("/files", "/"), nil, "", true},
		{"tree below /etc", dockerfile("/conf", "/etc/"), nil, "", true},
		{"tree not taken", dockerfile("/", "/", exclude("*", "!app")), nil, "", false},
		{"parents of what is included", dockerfile("/", "/x/", include("code/sub/*")), nil, "", false},
		{"directory itself", llb("/code", "/app"), nil, "", true},
		{"directory itself by a slash", llb("/code", "/app/"), nil, "", false},

		{"owner by number", dockerfile("/code", "/app/", chown("1000", "")), nil, "", false},
		{"owner by number, deeper", dockerfile("/code", "/app/x/", chown("1000", "")), nil, "", true},
		{"owner by number, in a plain directory", dockerfile("/app", "/etc/", chown("1000", "")), nil, "", true},
		{"owner by number, file in the root", dockerfile("/app", "/app", chown("1000", "")), nil, "", false},
		{"owner by name", dockerfile("/code", "/app/", chown("node", "")), nil, "", true},
		{"group by name", dockerfile("/code", "/app/", chown("1", "node")), nil, "", true},
		{"root by name", dockerfile("/code", "/app/x/", chown("root", "root")), nil, "", false},
		{"mode for new directories", dockerfile("/code", "/app/x/", chmodTo("700")), nil, "", true},
		{"mode that new directories don't get", dockerfile("/code", "/app/x/", chmodTo("go-w")), nil, "", false},
		{"file to be unpacked that is no archive", dockerfile("/app", "/etc/", unpacked), nil, "", false},
		{"archive over the root", dockerfile("/a.tar", "/", unpacked), nil, "", true},
		{"archive to a directory of its own", dockerfile("/a.tar", "/app/", unpacked), nil, "", false},
		{"parents must exist", dockerfile("/app", "/x/app", noParents), nil, "", true},

		{"workdir", workdir("/app/x", nil), nil, "", false},
		{"workdir that is there", workdir("/go", nil), []string{"/go"}, "", false},
		{"workdir below one that is there", workdir("/go/src", nil), []string{"/go"}, "", true},
		{"workdir in a home", workdir("/home/me", nil), nil, "", true},
		{"workdir of a number", workdir("/app", &plan.Owner{User: "5"}), nil, "5", false},
		{"deep workdir of a number", workdir("/app/x", &plan.Owner{User: "5"}), nil, "5", true},
		{"workdir of a name", workdir("/app", &plan.Owner{User: "node"}), nil, "node", true},
		{"directory of another mode", &plan.Mkdir{Path: "/app", Mode: 0o700, Parents: true}, nil, "", true},
		{"remove", &plan.Remove{Path: "/app"}, nil, "", true},
		{"symlink", &plan.Symlink{Path: "/app", Target: "x"}, nil, "", true},
		{"mkfile", &plan.Mkfile{Path: "/app"}, nil, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			op := &plan.File{Actions: actions(tt.action)}
			got, err := NeedsBase(op, inputsOf(Input{Tree: src}), tt.user, tt.hints)
			if err != nil || got != tt.want {
				t.Fatalf("got %v, %v; want %v", got, err, tt.want)
			}
			if got {
				return
			}
			// Then the result is the same on no base, and on one that has
			// the plain directories.
			lazy := mustUnpack(t, op, Hinted(nil, tt.hints), src)
			full := newTree(t, "")
			for p := range plain {
				full.add(p, layers.Entry{Type: layers.Dir, Mode: 0o755})
			}
			for _, h := range tt.hints {
				full.add(clean(h), layers.Entry{Type: layers.Dir, Mode: 0o755})
			}
			if diff := cmp.Diff(mustUnpack(t, op, full, src), lazy); diff != "" {
				t.Errorf("entries with a base and without (-with +without):\n%s", diff)
			}
			c, ok := tt.action.(*plan.Copy)
			if !ok || c.Owner != nil {
				return
			}
			// Nor does it matter if the destination is there, as root's.
			for dir := clean(c.Dest); isDirPath(c.Dest) && dir != "."; dir = path.Dir(dir) {
				full.add(dir, layers.Entry{Type: layers.Dir, Mode: 0o755})
			}
			if diff := cmp.Diff(mustUnpack(t, op, full, src), lazy); diff != "" {
				t.Errorf("entries with a destination and without (-with +without):\n%s", diff)
			}
		})
	}
	if _, err := NeedsBase(&plan.File{Actions: actions(dockerfile("/none", "/app/"))}, inputsOf(Input{}), "", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing source: %v", err)
	}
}

func mustUnpack(t *testing.T, op *plan.File, base Tree, src memory) string {
	t.Helper()
	got, err := Apply(t.Context(), op, base, inputsOf(Input{Tree: src}), func() (string, error) { return t.TempDir(), nil })
	if err != nil {
		t.Fatal(err)
	}
	return format(got)
}

func TestHinted(t *testing.T) {
	t.Parallel()
	known := newTree(t, "f 600 1:1 work/f x")
	h := Hinted(known, []string{"/work", "/go/src/"})
	for p, want := range map[string]layers.Type{".": layers.Dir, "work": layers.Dir, "work/f": layers.Regular, "go": layers.Dir, "go/src": layers.Dir, "go/x": 0} {
		if e, _ := h.Lookup(p); e.Type != want || want != 0 && e.Path != p {
			t.Errorf("%s: %+v", p, e)
		}
	}
	for p, want := range map[string]string{".": "d 755 0:0 go\nd 755 0:0 work\n", "go": "d 755 0:0 go/src\n", "go/src": ""} {
		entries, err := h.ReadDir(p)
		if err != nil || format(entries) != want {
			t.Errorf("%s: got\n%s%v", p, format(entries), err)
		}
	}
	if _, err := h.ReadDir("none"); err == nil {
		t.Error("a directory that is not there was read")
	}
}
