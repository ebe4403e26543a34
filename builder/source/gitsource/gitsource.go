// Package gitsource gets trees out of git repositories, by running git.
//
// Nothing of a repository is trusted: no hook, file system monitor or
// configuration of it or of the user is used, its submodules come from the
// network only, and names are checked before they become arguments.
//
//	commit, err := c.Resolve(ctx, op)             // for the key of the step
//	err := c.Checkout(ctx, op, commit, dir, nil)  // on a miss
//	entries, err := source.Staged(ctx, dir)
package gitsource

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/strake-build/strake/internal/lazyregexp"
	"github.com/strake-build/strake/plan"
)

// Client runs git. The zero value is ready.
type Client struct {
	// Git is the program; empty: git of PATH.
	Git string
	// Env is what git's environment has besides what it is always given:
	// PATH, proxies, SSH_AUTH_SOCK, certificates.
	Env []string
	// SSHKnownHosts is the file of known host keys for ssh remotes; empty: no
	// host is known.
	SSHKnownHosts string
	// Token returns a secret: that of plan.Git.AuthToken, or one of those that
	// give access to a host. The error is fs.ErrNotExist if there is none of
	// the name. nil: there are none.
	Token func(ctx context.Context, id string) ([]byte, error)
	// Offline: no repository is asked.
	Offline bool
	// AllowFile allows repositories of this machine (file://), for tests.
	AllowFile bool

	log io.Writer // what git says of checkouts; nil: it is quiet
}

// A scheme, or user@host:path.
var remoteURL = lazyregexp.New(`^(https?|ssh|git|file)://[^\s]+$|^[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:[^\s]+$`)

func (c *Client) check(op *plan.Git) error {
	if !remoteURL().MatchString(op.Remote) || strings.HasPrefix(op.Remote, "file:") && !c.AllowFile {
		return fmt.Errorf("%q: not the URL of a git repository", redacted(op.Remote))
	}
	if u, err := url.Parse(op.Remote); err == nil && strings.HasPrefix(u.Hostname(), "-") {
		return fmt.Errorf("%q: not the URL of a git repository", redacted(op.Remote))
	}
	// What git check-ref-format refuses, and what could be taken for an
	// option or a refspec.
	if r := op.Ref; r != "" && (strings.HasPrefix(r, "-") || strings.HasPrefix(r, "+") || strings.Contains(r, "..") || strings.Contains(r, "@{") ||
		strings.ContainsAny(r, " ~^:?*[\\\x7f") || strings.ContainsFunc(r, func(c rune) bool { return c < ' ' })) {
		return fmt.Errorf("%q can't be a branch, tag or commit", r)
	}
	if op.Checksum != "" && strings.Trim(op.Checksum, "0123456789abcdef") != "" {
		return fmt.Errorf("%q can't be a commit", op.Checksum)
	}
	return nil
}

// Resolve returns the commit that op's ref is now, and checks it against op's
// checksum. A ref that is a commit is not asked for.
func (c *Client) Resolve(ctx context.Context, op *plan.Git) (commit string, err error) {
	if err := c.check(op); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("git repository %s: %w", redacted(op.Remote), err)
		}
	}()
	if plan.IsCommit(op.Ref) {
		return op.Ref, checksum(op, op.Ref)
	}
	if c.Offline {
		return "", fmt.Errorf("nothing is asked offline: which commit %q is must be in a lock file", op.Ref)
	}
	ref := op.Ref
	if ref == "" {
		ref = "HEAD"
	}
	g, err := c.run(ctx, op, "/", "GIT_DIR="+os.DevNull) // no repository
	if err != nil {
		return "", err
	}
	out, err := g("ls-remote", "--", op.Remote, ref, ref+"^{}")
	if err != nil {
		return "", err
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		if id, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok {
			found[name] = id
		}
	}
	// The order is git checkout's: a branch goes before a tag. An annotated
	// tag stands for its commit.
	tag := "refs/tags/" + strings.TrimPrefix(ref, "refs/tags/")
	names := []string{
		"refs/" + strings.TrimPrefix(ref, "refs/"), "refs/heads/" + strings.TrimPrefix(ref, "refs/heads/"),
		tag + "^{}", tag,
	}
	if op.Ref == "" {
		names = []string{"HEAD"}
	}
	for _, name := range names {
		id := found[name]
		if id == "" {
			continue
		}
		if peeled := found[name+"^{}"]; peeled != "" {
			id = peeled
		}
		if !plan.IsCommit(id) {
			return "", fmt.Errorf("%s is %q", name, id)
		}
		if op.Checksum != "" && name == tag+"^{}" && strings.HasPrefix(found[tag], op.Checksum) {
			return id, nil // the tag itself was meant
		}
		return id, checksum(op, id)
	}
	if op.Ref == "" {
		return "", errors.New("it is empty")
	}
	return "", fmt.Errorf("repository does not contain ref %s: no branch or tag has this name", op.Ref)
}

func checksum(op *plan.Git, id string) error {
	if !strings.HasPrefix(id, op.Checksum) {
		return fmt.Errorf("%q: expected checksum to match %s, got %s", op.Ref, op.Checksum, id)
	}
	return nil
}

// Time is when the commit was made that op's ref is now. dir is an empty
// directory to work in.
func (c *Client) Time(ctx context.Context, op *plan.Git, dir string) (time.Time, error) {
	commit, err := c.Resolve(ctx, op)
	if err != nil {
		return time.Time{}, err
	}
	fail := func(err error) (time.Time, error) {
		return time.Time{}, fmt.Errorf("git repository %s: time of %s: %w", redacted(op.Remote), commit, err)
	}
	g, err := c.run(ctx, op, dir)
	if err != nil {
		return fail(err)
	}
	format := "sha1"
	if len(commit) == 64 {
		format = "sha256"
	}
	if _, err := g("init", "--quiet", "--template=", "--object-format="+format, "-b", "master"); err != nil {
		return fail(err)
	}
	if _, err := g("remote", "add", "--", "origin", op.Remote); err != nil {
		return fail(err)
	}
	if err := fetch(g, op, commit); err != nil {
		return fail(err)
	}
	out, err := g("show", "--no-patch", "--format=%ct", commit)
	if err != nil {
		return fail(err)
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return fail(err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// HeadTime is when the commit was made that the work tree around the directory
// dir has checked out, and the zero time if there is no work tree, no commit or
// no git. The repository is the user's: nothing of it is run, and nothing is
// fetched for it.
func (c *Client) HeadTime(ctx context.Context, dir string) time.Time {
	offline := *c
	offline.Token, offline.AllowFile = nil, false
	g, err := offline.run(ctx, &plan.Git{}, dir, "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none", "GIT_OPTIONAL_LOCKS=0")
	if err != nil {
		return time.Time{}
	}
	// No porcelain: it could run what the repository's configuration names.
	commit, err := g("cat-file", "commit", "HEAD")
	if err != nil {
		return time.Time{}
	}
	head, _, _ := strings.Cut(commit, "\n\n")
	for line := range strings.Lines(head) {
		// committer NAME <ADDRESS> SECONDS ZONE
		if who, ok := strings.CutPrefix(line, "committer "); ok {
			fields := strings.Fields(who[strings.LastIndexByte(who, '>')+1:])
			if len(fields) != 2 {
				break
			}
			if seconds, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				return time.Unix(seconds, 0).UTC()
			}
		}
	}
	return time.Time{}
}

// Checkout puts the tree of a commit that Resolve returned into the empty
// directory dir. What git tells people about the checkout is written to log,
// unless that is nil.
func (c *Client) Checkout(ctx context.Context, op *plan.Git, commit, dir string, log io.Writer) (err error) {
	if err := c.check(op); err != nil {
		return err
	}
	if !plan.IsCommit(commit) {
		return fmt.Errorf("%q is no commit", commit)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("git repository %s: %w", redacted(op.Remote), err)
		}
	}()
	if c.Offline {
		return fmt.Errorf("commit %s is not in the store, and nothing is fetched offline", commit)
	}
	talking := *c
	talking.log = log
	g, err := talking.run(ctx, op, dir)
	if err != nil {
		return err
	}
	format := "sha1"
	if len(commit) == 64 {
		format = "sha256"
	}
	// An empty template has no hooks.
	if _, err := g("init", "--quiet", "--template=", "--object-format="+format, "-b", "master"); err != nil {
		return err
	}
	if _, err := g("remote", "add", "--", "origin", op.Remote); err != nil {
		return err
	}
	if err := fetch(g, op, commit); err != nil {
		return err
	}
	checkout := []string{"checkout", "--force", commit}
	if log == nil {
		checkout = []string{"checkout", "--quiet", "--force", "--detach", commit}
	}
	if _, err := g(checkout...); err != nil {
		return err
	}
	if !op.SkipSubmodules {
		if _, err := os.Lstat(filepath.Join(dir, ".gitmodules")); err == nil {
			_, err := g("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
			if err != nil && ctx.Err() == nil { // not every server gives shallow clones
				_, err = g("submodule", "--quiet", "update", "--init", "--recursive")
			}
			if err != nil {
				return fmt.Errorf("submodules: %w", err)
			}
		}
	}
	if op.KeepGitDir {
		if err := tidy(g, op, dir); err != nil {
			return err
		}
	} else if err := removeGit(dir); err != nil {
		return err
	}
	if err := subdir(op, dir); err != nil {
		return err
	}
	return modes(dir)
}

// fetch gets the commit without its history: by itself where the server gives
// commits, else by the ref's name; a server that does neither gives everything.
func fetch(g runner, op *plan.Git, commit string) error {
	_, err := g("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--", "origin", commit)
	if err == nil {
		return nil
	}
	has := func() bool {
		_, err := g("cat-file", "-e", commit+"^{commit}")
		return err == nil
	}
	if op.Ref != "" && !plan.IsCommit(op.Ref) {
		if _, rerr := g("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--", "origin", op.Ref); rerr == nil && has() {
			return nil
		}
	}
	_, ferr := g("fetch", "--quiet", "--tags", "--no-recurse-submodules", "--", "origin", "+refs/heads/*:refs/remotes/origin/*")
	if ferr != nil {
		return errors.Join(err, ferr)
	}
	if !has() {
		return fmt.Errorf("it does not have commit %s", commit)
	}
	return nil
}

// tidy makes a .git directory that people can use, and that is the same each
// time as far as git allows.
func tidy(g runner, op *plan.Git, dir string) error {
	if op.Ref != "" && !plan.IsCommit(op.Ref) {
		branch := strings.TrimPrefix(op.Ref, "refs/heads/")
		if !strings.HasPrefix(branch, "refs/") {
			if _, err := g("checkout", "--quiet", "-B", branch); err != nil {
				return err
			}
		}
	}
	if _, err := g("remote", "set-url", "origin", redacted(op.Remote)); err != nil {
		return err
	}
	if _, err := g("reflog", "expire", "--all", "--expire=now"); err != nil {
		return err
	}
	for _, name := range []string{"FETCH_HEAD", "ORIG_HEAD", "logs"} {
		if err := os.RemoveAll(filepath.Join(dir, ".git", name)); err != nil {
			return err
		}
	}
	return nil
}

// removeGit removes the .git directory, and the .git files of submodules.
func removeGit(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == ".git" && d.Type().IsRegular() {
			return root.Remove(p)
		}
		return err
	})
}

// subdir moves what is in op's subdirectory to the top, and removes the rest.
func subdir(op *plan.Git, dir string) error {
	sub := path.Clean("/" + op.Subdir)[1:]
	if sub == "" {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// No symlink of the repository leads anywhere: each part of the path
	// must be a directory.
	for i := 0; i <= len(sub); i++ {
		if i < len(sub) && sub[i] != '/' {
			continue
		}
		st, err := root.Lstat(sub[:i])
		if err != nil || !st.IsDir() {
			return fmt.Errorf("it has no directory %s", op.Subdir)
		}
	}
	top, _, _ := strings.Cut(sub, "/")
	old := ".strake-checkout"
	if err := root.Mkdir(old, 0o700); err != nil {
		return err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Name() == old || n.Name() != top && n.Name() == ".git" && op.KeepGitDir {
			continue
		}
		if err := root.Rename(n.Name(), old+"/"+n.Name()); err != nil {
			return err
		}
	}
	inside, err := os.ReadDir(filepath.Join(dir, old, sub))
	if err != nil {
		return err
	}
	for _, n := range inside {
		if err := root.Rename(old+"/"+sub+"/"+n.Name(), n.Name()); err != nil {
			return err
		}
	}
	return root.RemoveAll(old)
}

// modes gives files the modes they would have with the umask 022, since the
// user's must not be part of the result.
func modes(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 || p == "." {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		own := st.Mode().Perm() >> 6
		mode := own<<6 | own&5<<3 | own&5
		if mode == st.Mode().Perm() {
			return nil
		}
		return root.Chmod(p, mode)
	})
}

// The secrets that give access to a repository where op names none: a header or
// a token, for one host or all of them.
const (
	headerSecret = "GIT_AUTH_HEADER" // #nosec G101 -- the name of one
	tokenSecret  = "GIT_AUTH_TOKEN"  // #nosec G101 -- the name of one
)

// authorization is the setting that authenticates requests to op's host, and to
// no other, without being on a command line; nil if there is no secret for it.
func (c *Client) authorization(ctx context.Context, op *plan.Git) (*[2]string, error) {
	if c.Token == nil || !strings.HasPrefix(op.Remote, "https://") {
		return nil, nil
	}
	u, err := url.Parse(op.Remote)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	names := []string{headerSecret + "." + u.Host, tokenSecret + "." + u.Host, headerSecret, tokenSecret}
	if op.AuthToken != "" {
		names = []string{op.AuthToken + "." + u.Host, op.AuthToken}
	}
	for _, name := range names {
		secret, err := c.Token(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
		value := string(bytes.TrimSpace(secret))
		if !strings.HasPrefix(name, headerSecret) {
			value = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+value))
		}
		if strings.ContainsAny(value, "\r\n") {
			return nil, fmt.Errorf("secret %s: it has several lines", name)
		}
		return &[2]string{"http." + u.Scheme + "://" + u.Host + "/.extraHeader", "Authorization: " + value}, nil
	}
	return nil, nil
}

type runner func(args ...string) (stdout string, err error)

// run returns a function that runs git in dir.
func (c *Client) run(ctx context.Context, op *plan.Git, dir string, more ...string) (runner, error) {
	settings := [][2]string{
		{"core.hooksPath", os.DevNull},
		{"core.fsmonitor", "false"},
		{"core.symlinks", "true"},
		{"core.autocrlf", "false"},
		{"core.sharedRepository", "umask"},
		{"protocol.allow", "never"},
		{"protocol.https.allow", "always"},
		{"protocol.http.allow", "always"},
		{"protocol.ssh.allow", "always"},
		{"protocol.git.allow", "always"},
		{"http.lowSpeedLimit", "1"},
		{"http.lowSpeedTime", "60"},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"advice.detachedHead", strconv.FormatBool(c.log != nil)},
		{"transfer.credentialsInUrl", "allow"},
		{"safe.directory", "*"},
	}
	if c.AllowFile {
		settings = append(settings, [2]string{"protocol.file.allow", "always"})
	}
	header, err := c.authorization(ctx, op)
	if err != nil {
		return nil, err
	}
	if header != nil {
		settings = append(settings, *header)
	}
	known := c.SSHKnownHosts
	if known == "" {
		known = os.DevNull
	}
	env := append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=" + os.DevNull,
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ASKPASS=true",
		"GIT_SSH_COMMAND=ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=" + shellQuote(known),
		"LC_ALL=C",
	}, c.Env...)
	env = append(env, more...)
	env = append(env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings)))
	for i, s := range settings {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, s[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, s[1]))
	}
	program := c.Git
	if program == "" {
		program = "git"
	}
	return func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir, cmd.Env = dir, env
		// git starts helpers; they end with it.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = 5 * time.Second
		var stdout bytes.Buffer
		stderr := &tail{limit: 8 << 10}
		cmd.Stdout, cmd.Stderr = &stdout, stderr
		if c.log != nil && args[0] == "checkout" {
			cmd.Stderr = io.MultiWriter(stderr, c.log)
		}
		err := cmd.Run()
		switch {
		case err == nil:
			return stdout.String(), nil
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case errors.Is(err, exec.ErrNotFound):
			return "", errors.New("the program git is needed and was not found; install it")
		}
		text := strings.TrimSpace(string(stderr.b))
		if text == "" {
			text = err.Error()
		}
		return "", fmt.Errorf("git %s: %s", args[0], strings.ReplaceAll(text, op.Remote, redacted(op.Remote)))
	}, nil
}

// tail keeps the end of what is written.
type tail struct {
	limit int
	b     []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - t.limit; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// redacted is a remote without the password in it.
func redacted(remote string) string {
	if u, err := url.Parse(remote); err == nil && u.User != nil && u.Scheme != "ssh" {
		if _, has := u.User.Password(); has {
			return u.Redacted()
		}
	}
	return remote
}
