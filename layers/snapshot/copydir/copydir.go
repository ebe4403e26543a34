// Package copydir makes writable file systems by copying: the merged tree of
// the layers below is copied to a directory, which is compared with what it was
// when a step has run. It needs neither mounts nor root, and gives the same
// layers as package overlay.
//
// Blocks are shared with the layers where the file system can do that.
package copydir

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
	"github.com/strake-build/strake/layers/snapshot/internal/merge"
)

// Driver is the snapshot.Driver. The zero value is for root.
type Driver struct {
	// UserXattr and RecordOwners: see layers.ApplyOptions. Who isn't root
	// sets both.
	UserXattr, RecordOwners bool
}

// Name is "copydir".
func (d *Driver) Name() string { return "copydir" }

// The names in the work directory.
const (
	rootDir   = "root"
	indexFile = "index"
)

// stamp is what identifies a file and its state: any change of the file changes
// it.
type stamp struct {
	Ino            uint64
	Born, Changed  int64 // nanoseconds; Born is 0 where unknown
	Modified, Size int64
	Mode           uint32
}

// index holds the stamps of all files that were copied.
type index map[string]stamp

func (d *Driver) options() layerdir.Options {
	return layerdir.Options{UserXattr: d.UserXattr, RecordOwners: d.RecordOwners}
}

// Prepare copies the merged tree to work/root, hard links as such, and notes
// the state of each file in work/index.
func (d *Driver) Prepare(ctx context.Context, lower *merge.Stack, work string) (snapshot.Mount, error) {
	root, err := lower.Lookup(".")
	if err != nil {
		return snapshot.Mount{}, err
	}
	c := copier{below: lower, sources: map[string]string{}, first: map[inode]string{}}
	c.entries = append(c.entries, root.Entry)
	if err := c.list(ctx, "."); err != nil {
		return snapshot.Mount{}, err
	}
	dir := filepath.Join(work, rootDir)
	m := layerdir.Maker{
		Dir:     dir,
		Options: d.options(),
		Slots:   make(chan struct{}, runtime.GOMAXPROCS(0)),
		File: func(ctx context.Context, e layers.Entry, host string) (bool, error) {
			return true, layerdir.Copy(host, c.sources[e.Path])
		},
	}
	if err := m.Make(ctx, c.entries); err != nil {
		return snapshot.Mount{}, err
	}
	x := index{}
	for _, e := range c.entries {
		s, err := stampOf(filepath.Join(dir, e.Path))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a device that we may not make
		}
		if err != nil {
			return snapshot.Mount{}, err
		}
		x[e.Path] = s
	}
	return snapshot.Mount{Bind: dir}, x.save(filepath.Join(work, indexFile))
}

type inode struct {
	layer    int
	dev, ino uint64
}

// copier lists what is to be copied.
type copier struct {
	below   *merge.Stack
	entries []layers.Entry
	sources map[string]string // host's paths of regular files
	first   map[inode]string  // paths where files with several links were met first
}

func (c *copier) list(ctx context.Context, dir string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	found, err := c.below.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range found {
		e := f.Entry
		e.Opaque = false
		if e.Type != layers.Dir {
			src := c.below.Path(f)
			st, err := layerdir.Stat(src)
			if err != nil {
				return err
			}
			n := inode{f.Layer, st.Dev, st.Ino}
			switch first, ok := c.first[n]; {
			case ok:
				e = layers.Entry{Path: e.Path, Type: layers.Hardlink, Link: first}
			case st.Links > 1:
				c.first[n] = e.Path
			}
			if e.Type == layers.Regular {
				c.sources[e.Path] = src
			}
		}
		c.entries = append(c.entries, e)
		if e.Type == layers.Dir {
			if err := c.list(ctx, e.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// stampOf takes the stamp of the file at path.
func stampOf(path string) (stamp, error) {
	var st unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, mask, &st); err != nil {
		return stamp{}, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	s := stamp{
		Ino:      st.Ino,
		Changed:  nanoseconds(st.Ctime),
		Modified: nanoseconds(st.Mtime),
		Size:     int64(st.Size),
		Mode:     uint32(st.Mode),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		s.Born = nanoseconds(st.Btime)
	}
	return s, nil
}

func nanoseconds(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// sameFile reports whether two stamps are of one file: inode numbers are used
// again.
func (s stamp) sameFile(t stamp) bool {
	return s.Ino == t.Ino && s.Born == t.Born && s.Mode&unix.S_IFMT == t.Mode&unix.S_IFMT
}

// stamped is a line of the file of an index. Paths need not be UTF-8, which JSON
// texts are.
type stamped struct {
	Path []byte
	stamp
}

func (x index) save(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for p, s := range x {
		if err = enc.Encode(stamped{[]byte(p), s}); err != nil {
			break
		}
	}
	return errors.Join(err, w.Flush(), f.Close())
}

func loadIndex(path string) (index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	x := index{}
	for dec := json.NewDecoder(f); ; {
		var s stamped
		switch err := dec.Decode(&s); err {
		case nil:
			x[string(s.Path)] = s.stamp
		case io.EOF:
			return x, nil
		default:
			return nil, err
		}
	}
}
