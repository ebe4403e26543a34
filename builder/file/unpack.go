package file

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
)

// maxArchiveEntries bounds what one archive adds to memory.
const maxArchiveEntries = 10_000_000

// stager makes files for contents that come out of archives.
type stager struct {
	dir  func() (string, error)
	path string
	n    int
}

// write keeps the content of r, of the given size, in a new file.
func (s *stager) write(ctx context.Context, r io.Reader, size int64) (name string, d digest.Digest, err error) {
	if s.path == "" {
		if s.path, err = s.dir(); err != nil {
			return "", "", err
		}
	}
	s.n++
	name = filepath.Join(s.path, strconv.Itoa(s.n))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", "", err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), contextReader{ctx, r})
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", "", err
	}
	return name, digest.NewDigest(digest.SHA256, h), nil
}

// contextReader reads until its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// unpack unpacks a source into the destination if it is a tar archive, by its
// content, compressed or not.
func (k *copier) unpack(m match) (bool, error) {
	if m.entry.Type != layers.Regular || m.entry.Size == 0 {
		return false, nil
	}
	if ok, err := k.isArchive(m.entry.Path); err != nil || !ok {
		return false, err
	}
	dst, err := k.tree.resolve(k.c.Dest)
	if err != nil {
		return false, err
	}
	attr := k.newDirs()
	attr.Mode = 0o755
	if err := k.tree.mkdirAll(dst, attr, k.own != nil); err != nil {
		return false, err
	}
	f, err := k.in.tree().Open(k.ctx, m.entry.Path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	r, err := compress.NewReader(f)
	if err != nil {
		return false, err
	}
	defer r.Close()
	entries, body := layers.ReadTar(contextReader{k.ctx, r})
	u := unpacker{copier: k, root: dst, body: body}
	n := 0
	for e, err := range entries {
		if err != nil {
			return false, err
		}
		if n++; n > maxArchiveEntries {
			return false, fmt.Errorf("more than %d entries", maxArchiveEntries)
		}
		if err := u.entry(e); err != nil {
			return false, fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	// What follows the end of the archive proper must be sound, too: a
	// checksum that is wrong is noticed at the end of the stream.
	if _, err := io.Copy(io.Discard, contextReader{k.ctx, r}); err != nil {
		return false, err
	}
	return true, nil
}

// isArchive reports whether a file begins like a tar archive, be it compressed.
func (k *copier) isArchive(p string) (bool, error) {
	f, err := k.in.tree().Open(k.ctx, p)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := bufio.NewReaderSize(f, 64<<10)
	if _, err := b.Peek(1); err != nil {
		return false, err
	}
	r, err := compress.NewReader(b)
	if err != nil {
		return false, nil
	}
	defer r.Close()
	_, err = tar.NewReader(io.LimitReader(r, 4<<20)).Next()
	return err == nil || errors.Is(err, tar.ErrInsecurePath), nil
}

// unpacker puts the entries of an archive into the directory root. As with
// Docker, symlinks in the archive and in what is there are followed as if root
// were the root of the file system, files replace what is in their place, and a
// directory over a directory gives it its attributes.
type unpacker struct {
	*copier
	root string
	body io.Reader
}

func (u *unpacker) entry(e layers.Entry) error {
	if e.Type == layers.Whiteout || e.Opaque {
		return errors.New("no image can hold a file whose name begins with \".wh.\"; it is how layers tell what they remove")
	}
	if e.Path == "." {
		return nil
	}
	dir, _, err := resolve(u.tree, u.root, path.Dir(e.Path), true)
	if err != nil {
		return err
	}
	if err := u.tree.mkdirAll(dir, dirAttr(0o755, ids{}), true); err != nil {
		return err
	}
	p := join(dir, path.Base(e.Path))
	made := layers.Entry{
		Type: e.Type, Mode: e.Mode, UID: e.UID, GID: e.GID, Link: e.Link, Major: e.Major, Minor: e.Minor,
		ModTime: layers.DefaultModTime,
	}
	if v, ok := e.Xattrs[capability]; ok {
		made.Xattrs = map[string]string{capability: v}
	}
	if u.own != nil {
		made.UID, made.GID = u.own.uid, u.own.gid
	}
	switch e.Type {
	case layers.Hardlink:
		return u.hardlink(p, e.Link, linkAttr{made.Mode, made.UID, made.GID})
	case layers.Regular:
		made.Size = e.Size
		if e.Size == 0 {
			made.Inline, made.Digest = true, digest.FromBytes(nil)
			break
		}
		if made.Origin.Staged, made.Digest, err = u.stage.write(u.ctx, u.body, e.Size); err != nil {
			return err
		}
	}
	return u.tree.set(p, made)
}

// capability is the one attribute of archives and contexts that goes into
// layers, as with BuildKit.
const capability = "security.capability"

// hardlink makes p another name of a file that is there, which gets the
// attributes that its new name comes with.
func (u *unpacker) hardlink(p, target string, attr linkAttr) error {
	dir, _, err := resolve(u.tree, u.root, path.Dir(clean(target)), true)
	if err != nil {
		return err
	}
	to := join(dir, path.Base(clean(target)))
	if to == p {
		return nil
	}
	n, err := u.tree.lookup(to)
	if err != nil {
		return err
	}
	switch {
	case n == nil:
		return fmt.Errorf("hard link to %s, which is not there", target)
	case n.entry.Type == layers.Dir:
		return fmt.Errorf("hard link to the directory %s", target)
	case !n.made:
		return fmt.Errorf("hard link to %s, which is not in the archive", target)
	}
	e := n.entry
	if e.Type != layers.Regular {
		return u.tree.set(p, e) // several names of a symlink or device are as good as several of them
	}
	if n.link == nil {
		n.link = &linked{}
	}
	l := n.link
	l.attr = &attr
	if err := u.tree.set(p, e); err != nil {
		return err
	}
	if n, err = u.tree.walk(p); err == nil {
		n.link = l
	}
	return err
}
