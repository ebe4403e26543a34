package buildkitapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	gofs "io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/moby/patternmatcher"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
)

// errNotExist tells that there is no such file, or secret.
var errNotExist = gofs.ErrNotExist

// readSmall reads a small file of the store.
func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<10))
}

// view opens the result of a reference; nil if it is empty.
func (j *job) view(ref *reference) (*snapshot.View, error) {
	if ref == nil {
		return nil, nil
	}
	if err := j.evaluate(ref); err != nil {
		return nil, err
	}
	if len(ref.tree) == 0 {
		return nil, nil
	}
	return j.store.Builder.Layers.View(j.ctx, ref.tree, ref.src)
}

// find resolves a path in a result.
func (j *job) find(ref *reference, op, name string) (*snapshot.View, string, layers.Entry, error) {
	v, err := j.view(ref)
	if err != nil {
		return nil, "", layers.Entry{}, err
	}
	missing := &gofs.PathError{Op: op, Path: name, Err: errors.New("no such file or directory")}
	if v == nil {
		if path.Clean("/"+name) == "/" {
			return nil, ".", layers.Entry{Path: ".", Type: layers.Dir, Mode: 0o755}, nil
		}
		return nil, "", layers.Entry{}, notFound{missing}
	}
	p, e, err := file.Resolve(v, name, true)
	if errors.Is(err, gofs.ErrNotExist) {
		err = notFound{missing}
	}
	return v, p, e, err
}

// readFile reads length bytes of a file from offset on, or all of it if length
// is 0.
func (j *job) readFile(ref *reference, name string, offset, length int64) ([]byte, error) {
	v, p, e, err := j.find(ref, "open", name)
	if err != nil {
		return nil, err
	}
	if e.Type != layers.Regular {
		return nil, fmt.Errorf("open %s: not a regular file", name)
	}
	if offset < 0 || length < 0 {
		return nil, fmt.Errorf("invalid range for %s", name)
	}
	if length == 0 && e.Size-offset > maxBuildFile || length > maxBuildFile+1 && e.Size-offset > maxBuildFile {
		return nil, tooLarge(name)
	}
	if length == 0 {
		length = maxBuildFile
	}
	r, err := v.Open(j.ctx, p)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, offset); err != nil && err != io.EOF {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, length))
}

func (j *job) readDir(ref *reference, name, include string) ([]*fstypes.Stat, error) {
	v, p, e, err := j.find(ref, "readdir", name)
	if err != nil {
		return nil, err
	}
	if e.Type != layers.Dir {
		return nil, fmt.Errorf("readdir %s: not a directory", name)
	}
	if v == nil {
		return nil, nil
	}
	entries, err := v.ReadDir(p)
	if err != nil {
		return nil, err
	}
	var m *patternmatcher.PatternMatcher
	if include != "" {
		if m, err = patternmatcher.New([]string{include}); err != nil {
			return nil, err
		}
	}
	var out []*fstypes.Stat
	for _, e := range entries {
		if m != nil {
			ok, err := m.MatchesOrParentMatches(path.Base(e.Path))
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
		}
		out = append(out, stat(e, path.Base(e.Path), nil))
	}
	return out, nil
}

func (j *job) statFile(ref *reference, name string) (*fstypes.Stat, error) {
	_, p, e, err := j.find(ref, "lstat", name)
	if err != nil {
		return nil, err
	}
	return stat(e, path.Base(p), nil), nil
}

// stat is an entry in BuildKit's form. With an epoch, that is its time.
func stat(e layers.Entry, name string, epoch *time.Time) *fstypes.Stat {
	m := os.FileMode(e.Mode & 0o777)
	for bit, flag := range map[uint32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if e.Mode&bit != 0 {
			m |= flag
		}
	}
	st := &fstypes.Stat{Path: name, Uid: uint32(e.UID), Gid: uint32(e.GID)}
	switch e.Type {
	case layers.Dir:
		m |= os.ModeDir
	case layers.Symlink:
		m |= os.ModeSymlink
		m |= 0o777
		st.Linkname, st.Size = e.Link, int64(len(e.Link))
	case layers.Fifo:
		m |= os.ModeNamedPipe
	case layers.Char:
		m |= os.ModeDevice | os.ModeCharDevice
	case layers.Block:
		m |= os.ModeDevice
	default:
		st.Size = e.Size
	}
	if e.Type == layers.Char || e.Type == layers.Block {
		st.Devmajor, st.Devminor = int64(e.Major), int64(e.Minor)
	}
	st.Mode = uint32(m)
	t := e.ModTime
	if t.IsZero() {
		t = layers.DefaultModTime
	}
	if epoch != nil {
		t = *epoch
	}
	st.ModTime = t.UnixNano()
	for k, v := range e.Xattrs {
		if st.Xattrs == nil {
			st.Xattrs = map[string][]byte{}
		}
		st.Xattrs[k] = []byte(v)
	}
	return st
}

// viewFS is a result as clients copy it: an fsutil.FS.
type viewFS struct {
	ctx   context.Context
	v     *snapshot.View // nil: empty
	epoch *time.Time
}

// links finds the names that share a file.
type links map[[2]uint64]string

// first returns the first name of the file at an entry's path, if that is
// another.
func (l links) first(v *snapshot.View, e layers.Entry) string {
	if e.Type != layers.Regular || e.Inline {
		return ""
	}
	host, err := v.HostPath(e.Path)
	if err != nil || host == "" {
		return ""
	}
	var st syscall.Stat_t
	if syscall.Lstat(host, &st) != nil || st.Nlink < 2 {
		return ""
	}
	id := [2]uint64{st.Dev, st.Ino}
	if p, ok := l[id]; ok {
		return p
	}
	l[id] = e.Path
	return ""
}

func (f viewFS) Open(name string) (io.ReadCloser, error) {
	if f.v == nil {
		return nil, &gofs.PathError{Op: "open", Path: name, Err: gofs.ErrNotExist}
	}
	return f.v.Open(f.ctx, strings.TrimPrefix(path.Clean("/"+name), "/"))
}

func (f viewFS) Walk(ctx context.Context, target string, fn gofs.WalkDirFunc) error {
	if f.v == nil {
		return nil
	}
	dir := strings.TrimPrefix(path.Clean("/"+target), "/")
	if dir == "" {
		dir = "."
	}
	err := f.walk(ctx, dir, links{}, fn)
	if errors.Is(err, gofs.SkipAll) || errors.Is(err, gofs.SkipDir) {
		return nil
	}
	return err
}

func (f viewFS) walk(ctx context.Context, dir string, l links, fn gofs.WalkDirFunc) error {
	entries, err := f.v.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		st := stat(e, e.Path, f.epoch)
		if first := l.first(f.v, e); first != "" {
			st.Linkname, st.Size = first, 0
		}
		err := fn(e.Path, statEntry{st}, nil)
		switch {
		case errors.Is(err, gofs.SkipDir) && e.Type == layers.Dir:
			continue
		case errors.Is(err, gofs.SkipDir):
			return nil // the rest of this directory
		case err != nil:
			return err
		}
		if e.Type == layers.Dir {
			if err := f.walk(ctx, e.Path, l, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// statEntry is a stat as an fs.DirEntry and fs.FileInfo.
type statEntry struct{ st *fstypes.Stat }

func (s statEntry) Name() string                 { return path.Base(s.st.Path) }
func (s statEntry) IsDir() bool                  { return s.Mode().IsDir() }
func (s statEntry) Type() gofs.FileMode          { return s.Mode().Type() }
func (s statEntry) Info() (gofs.FileInfo, error) { return s, nil }
func (s statEntry) Size() int64                  { return s.st.Size }
func (s statEntry) Mode() gofs.FileMode          { return gofs.FileMode(s.st.Mode) }
func (s statEntry) ModTime() time.Time           { return time.Unix(0, s.st.ModTime) }
func (s statEntry) Sys() any                     { return s.st }
