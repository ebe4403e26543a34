package buildkitapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/parser/ignore"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state"
)

// A directory of the client is copied into the store before a build reads it,
// into contexts/<hash>/<n>/fs: the hash is that of the key which the client
// gives to what is likely to be the same directory each time, so that only
// changes are sent. n counts builds of the same directory at the same time,
// none of which may see it change.

// contexts are the copies of clients' directories.
type contexts struct {
	root *state.Root
	mu   sync.Mutex
	used map[string]bool // by path
}

// localSpec says which directory of a client is wanted, and what of it.
type localSpec struct {
	session string
	name    string // as the client knows it
	hint    string // tells directories of one name apart
	include []string
	exclude []string
	follow  []string
	// always: contents are sent even of files that look unchanged.
	always     bool
	ignoreFile string // where exclude comes from
}

func (l localSpec) key() string {
	return fmt.Sprintf("%q", []any{l.session, l.name, l.hint, l.include, l.exclude, l.follow, l.always})
}

// take reserves a directory until it is given back.
func (c *contexts) take(ctx context.Context, key string) (dir string, release func(), err error) {
	sum := sha256.Sum256([]byte(key))
	hash := hex.EncodeToString(sum[:16])
	for n := 0; ; n++ {
		dir = c.root.Path("contexts", hash, strconv.Itoa(n), "fs")
		c.mu.Lock()
		if c.used == nil {
			c.used = map[string]bool{}
		}
		busy := c.used[dir]
		c.used[dir] = true
		c.mu.Unlock()
		if busy {
			continue
		}
		free := func() {
			c.mu.Lock()
			delete(c.used, dir)
			c.mu.Unlock()
		}
		unlock, err := c.lock(ctx, hash+"-"+strconv.Itoa(n))
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			free()
			continue // another process has it
		}
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		if err == nil {
			// Tells when it was used.
			now := time.Now()
			err = os.Chtimes(filepath.Dir(dir), now, now)
		}
		if err != nil {
			free()
			return "", nil, err
		}
		return dir, func() { unlock(); free() }, nil
	}
}

func (c *contexts) lock(ctx context.Context, name string) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	return c.root.Lock(ctx, "context-"+name, true)
}

// caller returns a session of the client, waiting for it a little.
func (s *Server) caller(ctx context.Context, id string) (session.Caller, error) {
	if id == "" {
		return nil, errors.New("the client has no session")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, jobWait, fmt.Errorf("no active session for %s: %w", id, context.DeadlineExceeded))
	defer cancel()
	c, err := s.sessions.Get(ctx, id, false)
	return c, ended(ctx, err)
}

// local is a directory of the client in this job, copied once.
type local struct {
	once sync.Once
	spec localSpec
	dir  string
	l    builder.Local
	err  error
}

// local returns the local of a spec. The name is what plan.Local ops call it.
func (j *job) local(spec localSpec) (name string, l *local) {
	key := spec.key()
	j.mu.Lock()
	defer j.mu.Unlock()
	if l, ok := j.locals[key]; ok {
		return key, l
	}
	l = &local{spec: spec}
	j.locals[key] = l
	return key, l
}

// sync copies what has changed, once, and opens the copy.
func (j *job) sync(l *local, vertex string, internal bool) error {
	l.once.Do(func() {
		id := "local " + l.spec.key()
		report := j.board.event
		report(progress.Event{Kind: progress.Start, Vertex: id, Name: vertex, Internal: internal})
		l.err = j.transfer(l, func(size int, last bool) {
			e := progress.Event{Kind: progress.Status, Vertex: id, ID: "transferring " + l.spec.name + ":", Action: "transferring", Current: int64(size)}
			if last {
				e.Total = int64(size)
			}
			report(e)
		})
		done := progress.Event{Kind: progress.Done, Vertex: id}
		if l.err != nil {
			done.Error = l.err.Error()
		}
		report(done)
	})
	return l.err
}

func (j *job) transfer(l *local, sent func(int, bool)) error {
	ctx := j.ctx
	caller, err := j.s.caller(ctx, l.spec.session)
	if err != nil {
		return err
	}
	dir, release, err := j.s.contexts.take(ctx, fmt.Sprintf("%q", []string{caller.SharedKey(), l.spec.name, l.spec.hint}))
	if err != nil {
		return err
	}
	j.onClose(func() error { release(); return nil })
	opt := filesync.FSSendRequestOpt{
		Name: l.spec.name, IncludePatterns: l.spec.include, ExcludePatterns: l.spec.exclude, FollowPaths: l.spec.follow,
		DestDir: dir, ProgressCb: sent,
		// Owners mean nothing in a context, and names that would leave the
		// directory are refused by the receiver.
		Filter: func(_ string, st *fstypes.Stat) bool {
			st.Uid, st.Gid = 0, 0
			return true
		},
	}
	if l.spec.always {
		opt.Differ = fsutil.DiffNone
	}
	if err := filesync.FSSync(ctx, caller, opt); err != nil {
		return ended(ctx, err)
	}
	l.dir = dir
	d, err := source.OpenDir(dir, source.DirOptions{Index: j.store.Builder.Index})
	if err != nil {
		return err
	}
	j.onClose(d.Close)
	l.l = builder.Local{Dir: d, Why: whyIgnored(l.spec.exclude, l.spec.ignoreFile)}
	return nil
}

// whyIgnored explains which pattern dropped a file; nil if there are none.
func whyIgnored(patterns []string, file string) func(string) string {
	if len(patterns) == 0 {
		return nil
	}
	m, err := ignore.New(patterns)
	if err != nil {
		return nil
	}
	return func(p string) string {
		if rule := m.Rule(strings.TrimPrefix(path.Clean("/"+p), "/")); rule != "" {
			return fmt.Sprintf("excluded by %q in %s", rule, file)
		}
		return ""
	}
}

// maxBuildFile bounds the files that say how to build.
const maxBuildFile = 16 << 20

// readLocal reads a file of a directory that was copied. ok tells that it is
// there.
func readLocal(l *local, name string) (data []byte, ok bool, err error) {
	root, err := os.OpenRoot(l.dir)
	if err != nil {
		return nil, false, err
	}
	defer root.Close()
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	fi, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if !fi.Mode().IsRegular() {
		return nil, false, fmt.Errorf("%s: not a regular file", name)
	}
	if fi.Size() > maxBuildFile {
		return nil, true, tooLarge(name)
	}
	data, err = root.ReadFile(name)
	return data, true, err
}

func tooLarge(name string) error {
	return fmt.Errorf("%s exceeds maximum allowed size of %d bytes", name, maxBuildFile)
}
