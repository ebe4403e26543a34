package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state"
)

// mount adds mount i of the op to the sandbox.
func (e *execution) mount(ctx context.Context, i int, m plan.Mount) error {
	switch m.Type {
	case plan.MountBind:
		e.stub(m.Target)
		return e.bind(ctx, i, m)
	case plan.MountTmpfs:
		e.stub(m.Target)
		opts := []string{"nosuid", "nodev"}
		if m.Size > 0 {
			opts = append(opts, fmt.Sprintf("size=%d", m.Size))
		}
		e.config.Mounts = append(e.config.Mounts, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: m.Target, Options: opts})
		return nil
	case plan.MountCache:
		e.stub(m.Target)
		dir, err := e.cacheDir(ctx, m)
		if err != nil {
			return err
		}
		e.config.Mounts = append(e.config.Mounts, bindMount(dir, m.Target, m.Readonly))
		return nil
	case plan.MountSecret:
		return e.secret(ctx, m)
	case plan.MountSSH:
		return e.ssh(m)
	}
	return fmt.Errorf("unknown type %q", m.Type)
}

func bindMount(source, target string, readonly bool) specs.Mount {
	mode := "rw"
	if readonly {
		mode = "ro"
	}
	return specs.Mount{Type: "bind", Source: source, Destination: target, Options: []string{"rbind", mode}}
}

// bind shows a part of another tree. What is written to it is forgotten, unless
// it is an output.
func (e *execution) bind(ctx context.Context, i int, m plan.Mount) error {
	tm := sandbox.TreeMount{Source: m.Source, Target: m.Target, Readonly: m.Readonly}
	if m.Readonly && m.Output <= 0 {
		if len(e.input(m)) == 0 {
			dir, err := e.bd.b.Root.TempDir("empty-")
			if err != nil {
				return err
			}
			e.cleanup = append(e.cleanup, func() error { return os.Remove(dir) })
			tm.Root.Bind = dir
		} else {
			lower, err := e.bd.b.Layers.Ensure(ctx, e.input(m), e.bd.sources())
			if err != nil {
				return err
			}
			tm.Root = sandbox.Root{Lower: lower, UserXattr: e.process.Root.UserXattr}
		}
	} else {
		active, err := e.bd.b.Layers.Prepare(ctx, e.input(m), e.bd.sources())
		if err != nil {
			return err
		}
		e.cleanup = append(e.cleanup, active.Discard)
		e.actives[i] = active
		tm.Root = sandboxRoot(active.Mount)
	}
	e.process.Trees = append(e.process.Trees, tm)
	return nil
}

func (e *execution) secret(ctx context.Context, m plan.Mount) error {
	if e.bd.r.Secret == nil {
		if m.Required {
			return fmt.Errorf("secret %s: not found (give it by --secret id=%s,…)", m.ID, m.ID)
		}
		return nil
	}
	data, err := e.bd.r.Secret(ctx, m.ID)
	if err != nil {
		if !m.Required && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("secret %s: %w", m.ID, err)
	}
	e.bd.r.Guard.Add(m.ID, data)
	if mark := leak.Mark(data); mark != "" {
		e.given = append(e.given, mark)
	}
	if m.Env != "" {
		e.config.Env = append(e.config.Env, m.Env+"="+string(data))
	}
	if m.Target != "" {
		e.addFile(sandbox.File{Path: m.Target, Data: data, Mode: m.Mode, UID: m.UID, GID: m.GID})
	}
	return nil
}

func (e *execution) ssh(m plan.Mount) error {
	if e.bd.r.SSH == nil {
		if m.Required {
			return fmt.Errorf("ssh %s: no agent was given (give it by --ssh %s)", m.ID, m.ID)
		}
		return nil
	}
	socket, err := e.bd.r.SSH(m)
	if err != nil {
		if !m.Required {
			return nil
		}
		return err
	}
	e.stub(m.Target)
	e.config.Mounts = append(e.config.Mounts, bindMount(socket, m.Target, false))
	e.config.Env = append(e.config.Env, "SSH_AUTH_SOCK="+m.Target)
	return nil
}

// cacheDir returns the directory of a cache mount, locked as its sharing says
// until the step has ended. cachemounts/<hash>/ holds it as "fs" and its id in
// "meta.json"; the hash is that of the id and of what the directory was made
// as: its owner and mode where they are given, and the files that it began with.
func (e *execution) cacheDir(ctx context.Context, m plan.Mount) (string, error) {
	from := e.input(m)
	ident := m.ID
	if m.Mode != 0 {
		ident += fmt.Sprintf("\x00%o %d:%d", m.Mode, m.UID, m.GID)
	}
	if len(from) > 0 {
		ids, err := e.bd.identities(ctx, e.v)
		if err != nil {
			return "", err
		}
		ident += "\x00" + ids[m.Input] + "\x00" + m.Source
	}
	for n := 0; ; n++ {
		id := ident
		if n > 0 {
			id = fmt.Sprintf("%s#%d", ident, n)
		}
		sum := sha256.Sum256([]byte(id))
		name := hex.EncodeToString(sum[:16])
		// As in BuildKit, where a directory with an owner is made by a step of
		// its own, which runs again. Nobody else may be using the old one.
		anew := m.Mode != 0 && e.v.noCache && !e.bd.r.verify && e.bd.anew(name)
		sharing := m.Sharing
		if anew {
			sharing = plan.SharingLocked
		}
		unlock, err := e.lockCacheDir(ctx, name, sharing)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			continue // private and in use
		}
		if err != nil {
			return "", err
		}
		e.cleanup = append(e.cleanup, func() error { unlock(); return nil })
		dir := e.bd.b.Root.Path("cachemounts", name)
		if anew {
			if err := state.RemoveAll(dir); err != nil {
				return "", err
			}
		}
		if err := e.makeCacheDir(ctx, dir, m, from); err != nil {
			return "", err
		}
		e.exportCacheDir(name, dir)
		fs := filepath.Join(dir, "fs")
		if m.Source == "" || m.Source == "/" || len(from) > 0 {
			return fs, nil
		}
		return subdirOf(fs, m.Source)
	}
}

// anew reports whether the build has not yet asked this of a cache mount.
func (bd *build) anew(name string) bool {
	bd.mu.Lock()
	defer bd.mu.Unlock()
	first := !bd.renewed[name]
	bd.renewed[name] = true
	return first
}

// subdirOf makes a directory of a cache mount and returns it. The cache is
// written by processes of images: symlinks in it lead nowhere else.
func subdirOf(dir, sub string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	sub = strings.TrimPrefix(path.Clean("/"+sub), "/")
	if err := root.MkdirAll(sub, 0o755); err != nil {
		return "", err
	}
	for p := sub; p != "."; p = path.Dir(p) {
		if fi, err := root.Lstat(p); err != nil || !fi.IsDir() {
			return "", fmt.Errorf("source=%s: not a directory of the cache", sub)
		}
	}
	return filepath.Join(dir, sub), nil
}

func (e *execution) lockCacheDir(ctx context.Context, name string, sharing plan.Sharing) (func(), error) {
	if sharing == plan.SharingPrivate {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
	}
	return e.bd.b.Root.Lock(ctx, "cachemount-"+name, sharing == plan.SharingLocked || sharing == plan.SharingPrivate)
}

// mountName is what the directory of a cache mount is known by in remote caches:
// machines of other kinds put other things there.
func (e *execution) mountName(name string) string {
	return string(hashKey("mount", name, platformKey(e.v.step)))
}

// restoreCacheDir makes the directory of a cache mount: as a remote cache has it,
// or empty.
func (e *execution) restoreCacheDir(ctx context.Context, name, dir string) error {
	for _, im := range e.bd.r.CacheFrom {
		r, ok := im.Mount(ctx, e.mountName(name), func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error) {
			return e.bd.b.Registry.Blob(ctx, origin, desc, progress.Discard)
		})
		if !ok {
			continue
		}
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			err = e.bd.b.Layers.Unpack(ctx, dir, r)
		}
		err = errors.Join(err, r.Close())
		if err == nil || ctx.Err() != nil {
			return err
		}
		e.bd.event(e.v, progress.Event{Kind: progress.Warning, Text: fmt.Sprintf("cache mount begins empty: %v", err)})
		if err := state.RemoveAll(dir); err != nil {
			return err
		}
	}
	return os.Mkdir(dir, 0o755)
}

// exportCacheDir notes that a cache mount goes to the remote caches at the end.
func (e *execution) exportCacheDir(name, dir string) {
	e.bd.mu.Lock()
	defer e.bd.mu.Unlock()
	e.bd.mounts[name] = func() {
		for _, x := range e.bd.r.CacheTo {
			x.Mount(e.mountName(name), filepath.Join(dir, "fs"), func(ctx context.Context) (func(), error) {
				return e.bd.b.Root.Lock(ctx, "cachemount-"+name, false)
			})
		}
	}
}

func (e *execution) makeCacheDir(ctx context.Context, dir string, m plan.Mount, from layers.Tree) error {
	fs := filepath.Join(dir, "fs")
	if !notExist(fs) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	tmp, err := e.bd.b.Root.TempDir("cachemount")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	newFS := filepath.Join(tmp, "fs")
	if err := e.restoreCacheDir(ctx, filepath.Base(dir), newFS); err != nil {
		return err
	}
	if len(from) > 0 {
		if err := e.bd.b.Layers.CopyOut(ctx, from, e.bd.sources(), m.Source, newFS); err != nil {
			return err
		}
	}
	if m.Mode != 0 || len(from) == 0 {
		mode := os.FileMode(m.Mode & 0o777)
		if m.Mode == 0 {
			mode = 0o755
		}
		if err := os.Chown(newFS, m.UID, m.GID); err != nil && (m.UID != 0 || m.GID != 0) {
			return err
		}
		if err := os.Chmod(newFS, mode); err != nil {
			return err
		}
	}
	meta, err := json.Marshal(map[string]any{"id": m.ID, "created": time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "meta.json"), meta, 0o600); err != nil {
		return err
	}
	err = os.Rename(tmp, dir)
	if err != nil && !notExist(fs) {
		return nil // somebody else was first
	}
	return err
}
