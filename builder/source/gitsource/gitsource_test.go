package gitsource

import (
	"context"
	"errors"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// repo is a repository served by http, as git's own server program does it.
type repo struct {
	t   *testing.T
	dir string // holds all repositories
	url string
}

func serve(t *testing.T) *repo {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skip("git --exec-path:", err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Skip("git-http-backend is not installed")
	}
	dir := t.TempDir()
	s := httptest.NewServer(&cgi.Handler{Path: backend, Env: []string{
		"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
	}})
	t.Cleanup(s.Close)
	return &repo{t: t, dir: dir, url: s.URL}
}

func (r *repo) git(name string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", filepath.Join(r.dir, name), "-c", "user.name=a", "-c", "user.email=a@b",
		"-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a repository if it isn't there, and a commit of files in it.
func (r *repo) commit(name string, files map[string]string) string {
	r.t.Helper()
	dir := filepath.Join(r.dir, name)
	if _, err := os.Stat(dir); err != nil {
		if err := os.Mkdir(dir, 0o755); err != nil {
			r.t.Fatal(err)
		}
		r.git(name, "init", "-q")
	}
	for p, data := range files {
		p = filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(data, "-> "); ok {
			if err := os.Symlink(to, p); err != nil {
				r.t.Fatal(err)
			}
			continue
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(data, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(p, []byte(data), mode); err != nil {
			r.t.Fatal(err)
		}
	}
	r.git(name, "add", "-A")
	r.git(name, "commit", "-q", "-m", "x")
	return r.git(name, "rev-parse", "HEAD")
}

// tree lists what Checkout made, without what is in .git.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := source.Staged(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Path, ".git/") {
			continue
		}
		line := e.Path
		switch {
		case e.Type == layers.Symlink:
			line += " -> " + e.Link
		case e.Type == layers.Regular:
			data, err := os.ReadFile(e.Origin.Staged)
			if err != nil {
				t.Fatal(err)
			}
			line += " = " + string(data)
		}
		if e.Type == layers.Regular && e.Mode != 0o644 || e.Type == layers.Dir && e.Mode != 0o755 {
			line += " mode " + os.FileMode(e.Mode).String()
		}
		list = append(list, line)
	}
	return list
}

func TestCheckout(t *testing.T) {
	t.Parallel()
	r := serve(t)
	first := r.commit("a", map[string]string{"old": "1"})
	r.git("a", "tag", "-a", "-m", "x", "v1")
	annotated := r.git("a", "rev-parse", "v1")
	second := r.commit("a", map[string]string{"run": "#!/bin/sh", "dir/sub/f": "2", "dir/link": "-> ../../../etc/passwd", ".gitattributes": ""})
	r.git("a", "branch", "dev", first)
	all := []string{".gitattributes = ", "dir", "dir/link -> ../../../etc/passwd", "dir/sub", "dir/sub/f = 2", "old = 1", "run = #!/bin/sh mode -rwxr-xr-x"}
	for _, tt := range []struct {
		name   string
		op     plan.Git
		commit string
		want   []string
	}{
		{"default branch", plan.Git{}, second, all},
		{"branch", plan.Git{Ref: "dev"}, first, []string{"old = 1"}},
		{"full name of a branch", plan.Git{Ref: "refs/heads/dev"}, first, []string{"old = 1"}},
		{"annotated tag", plan.Git{Ref: "v1"}, first, []string{"old = 1"}},
		{"annotated tag by its own checksum", plan.Git{Ref: "v1", Checksum: annotated[:12]}, first, []string{"old = 1"}},
		{"commit that is no branch's", plan.Git{Ref: first}, first, []string{"old = 1"}},
		{"checksum", plan.Git{Ref: "main", Checksum: second[:7]}, second, all},
		{"subdirectory", plan.Git{Subdir: "/dir/sub/"}, second, []string{"f = 2"}},
		{"with .git", plan.Git{Ref: "dev", KeepGitDir: true}, first, []string{".git", "old = 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			op := tt.op
			op.Remote = r.url + "/a/.git"
			c, dir := &Client{}, t.TempDir()
			commit, err := c.Resolve(context.Background(), &op)
			if err != nil || commit != tt.commit {
				t.Fatalf("resolved to %s, %v; want %s", commit, err, tt.commit)
			}
			if err := c.Checkout(context.Background(), &op, commit, dir, nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, tree(t, dir)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSubmodules(t *testing.T) {
	t.Parallel()
	r := serve(t)
	r.commit("sub", map[string]string{"s": "sub"})
	r.commit("a", map[string]string{"f": "1"})
	r.git("a", "submodule", "add", "--", r.url+"/sub/.git", "mod")
	r.commit("a", nil)
	for _, skip := range []bool{false, true} {
		op := plan.Git{Remote: r.url + "/a/.git", SkipSubmodules: skip}
		c, dir := &Client{}, t.TempDir()
		commit, err := c.Resolve(context.Background(), &op)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Checkout(context.Background(), &op, commit, dir, nil); err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(tree(t, dir), "mod/s = sub"); got == skip {
			t.Errorf("skip %v: %q", skip, tree(t, dir))
		}
	}
}

// A repository can name a directory of the machine as its submodule.
func TestSubmoduleOfThisMachine(t *testing.T) {
	t.Parallel()
	r := serve(t)
	r.commit("secret", map[string]string{"s": "secret"})
	r.commit("a", map[string]string{"f": "1"})
	r.git("a", "submodule", "add", "--", filepath.Join(r.dir, "secret"), "mod")
	r.commit("a", nil)
	op := plan.Git{Remote: r.url + "/a/.git"}
	c := &Client{}
	commit, err := c.Resolve(context.Background(), &op)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Checkout(context.Background(), &op, commit, t.TempDir(), nil)
	if err == nil || !strings.Contains(err.Error(), "'file' not allowed") {
		t.Errorf("got %v", err)
	}
}

func TestHooksAreNotRun(t *testing.T) {
	t.Parallel()
	r := serve(t)
	commit := r.commit("a", map[string]string{"f": "1"})
	// A hook that the user has for all repositories.
	home, ran := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	hooks := filepath.Join(home, "hooks")
	if err := os.MkdirAll(hooks, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"hooks/post-checkout": "#!/bin/sh\ntouch " + ran + "\n",
		".gitconfig":          "[core]\nhooksPath = " + hooks + "\n",
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	op := plan.Git{Remote: r.url + "/a/.git"}
	c := &Client{Env: []string{"XDG_CONFIG_HOME=" + home, "HOME=" + home}}
	if err := c.Checkout(context.Background(), &op, commit, t.TempDir(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the hook ran (%v)", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	r := serve(t)
	commit := r.commit("a", map[string]string{"f": "1", "link": "-> ."})
	remote := r.url + "/a/.git"
	for _, tt := range []struct {
		name string
		op   plan.Git
		want string
	}{
		{"no such ref", plan.Git{Remote: remote, Ref: "nope"}, `repository does not contain ref nope`},
		{"no such repository", plan.Git{Remote: r.url + "/none/.git"}, "not found"},
		{"no such commit", plan.Git{Remote: remote, Ref: strings.Repeat("1", 40)}, "commit"},
		{"other checksum", plan.Git{Remote: remote, Ref: "main", Checksum: "0123"}, "expected checksum to match 0123, got " + commit},
		{"checksum that is none", plan.Git{Remote: remote, Checksum: "--x"}, "can't be a commit"},
		{"option as ref", plan.Git{Remote: remote, Ref: "--upload-pack=touch x"}, "can't be a branch"},
		{"refspec as ref", plan.Git{Remote: remote, Ref: "a:refs/heads/b"}, "can't be a branch"},
		{"option as remote", plan.Git{Remote: "--upload-pack=touch x"}, "not the URL"},
		{"program as remote", plan.Git{Remote: "ext::sh -c touch% x"}, "not the URL"},
		{"option as host", plan.Git{Remote: "ssh://-oProxyCommand=x/y"}, "not the URL"},
		{"this machine", plan.Git{Remote: "file://" + r.dir + "/a"}, "not the URL"},
		{"no such subdirectory", plan.Git{Remote: remote, Subdir: "none"}, "no directory none"},
		{"symlink as subdirectory", plan.Git{Remote: remote, Subdir: "link"}, "no directory link"},
		{"file as subdirectory", plan.Git{Remote: remote, Subdir: "f"}, "no directory f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := &Client{}
			got, err := c.Resolve(context.Background(), &tt.op)
			if err == nil {
				err = c.Checkout(context.Background(), &tt.op, got, t.TempDir(), nil)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	r := serve(t)
	r.commit("a", map[string]string{"f": "1"})
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(why)
	_, err := (&Client{}).Resolve(ctx, &plan.Git{Remote: r.url + "/a/.git"})
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}
