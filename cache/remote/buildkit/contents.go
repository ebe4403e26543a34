package buildkit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
)

// The digests of contents that records have.
//
// A file is hashed with a header: mode, owner, size, type, link and extended
// attributes, not its name or time. A directory is the names and digests of what
// is in it, after its own header. What filters select is a list of paths and
// digests of files and headers. Symlinks on the way to a path are followed within
// the tree.

// Tree is a file system to be hashed. Paths are relative and clean, "." is the
// root; Lookup follows no symlinks, and fails with fs.ErrNotExist; ReadDir is
// sorted by name.
type Tree struct {
	Files interface {
		Lookup(path string) (layers.Entry, error)
		ReadDir(path string) ([]layers.Entry, error)
		Open(ctx context.Context, path string) (io.ReadCloser, error)
	}
	// Owned: owners and the header of the root mean something. They do not in a
	// directory of the user.
	Owned bool
}

// errUnhashable: the digest would not be the one that BuildKit has.
var errUnhashable = errors.New("not known how BuildKit hashes it")

// contentDigest is the digest of what selectors name in a tree; nil: all.
func contentDigest(ctx context.Context, t Tree, selectors []selector) (digest.Digest, error) {
	if len(selectors) == 0 {
		selectors = []selector{{path: "/"}}
	}
	h := hasher{ctx: ctx, t: t, buf: make([]byte, 64<<10)}
	var list []string
	for _, s := range selectors {
		var d digest.Digest
		var err error
		if p := path.Join("/", s.path); s.filtered() {
			d, err = h.filtered(p, s)
		} else {
			d, err = h.path(p, s.follow)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", s.path, err)
		}
		list = append(list, d.String())
	}
	return digest.FromString(strings.Join(list, "\x00")), nil
}

type hasher struct {
	ctx context.Context
	t   Tree
	buf []byte
}

// key is a path as it is hashed: with NUL for slashes, so that what is in a
// directory sorts right after it. The root is empty.
func key(p string) string { return strings.ReplaceAll(p, "/", "\x00") }

// path is the digest of a file, or of all of a directory.
func (h *hasher) path(p string, follow bool) (digest.Digest, error) {
	at, e, err := h.resolve(p, follow)
	if err != nil {
		return "", err
	}
	return h.whole(at, e)
}

func (h *hasher) whole(at string, e layers.Entry) (digest.Digest, error) {
	if h.ctx.Err() != nil {
		return "", context.Cause(h.ctx)
	}
	if e.Type != layers.Dir {
		return h.entry(at, e)
	}
	sum := sha256.New()
	head, err := h.entry(at, e)
	if err != nil {
		return "", err
	}
	io.WriteString(sum, "\x00"+head.String())
	list, err := h.t.Files.ReadDir(at)
	if err != nil {
		return "", err
	}
	for _, child := range list {
		name := path.Base(child.Path)
		if name[0] == 0xff {
			return "", errUnhashable // BuildKit counts it to the directory above
		}
		d, err := h.whole(child.Path, child)
		if err != nil {
			return "", err
		}
		io.WriteString(sum, "\x00"+name+d.String())
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

// entry is the digest of one file with its header, or of the header of a
// directory.
func (h *hasher) entry(at string, e layers.Entry) (digest.Digest, error) {
	sum := sha256.New()
	if at != "." || h.t.Owned {
		h.header(sum, e)
	}
	if e.Type == layers.Regular && e.Size > 0 {
		f, err := h.t.Files.Open(h.ctx, at)
		if err != nil {
			return "", err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, h.buf)
		if err = errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

// header writes what of a tar header is hashed, as Docker has always done it.
func (h *hasher) header(sum hash.Hash, e layers.Entry) {
	var size int64
	if e.Type == layers.Regular {
		size = e.Size
	}
	if !h.t.Owned {
		e.UID, e.GID = 0, 0
	}
	if e.Type == layers.Symlink {
		e.Mode |= 0o777
	}
	fields := [][2]string{
		{"name", ""}, {"mode", strconv.FormatUint(uint64(e.Mode), 10)}, {"uid", strconv.Itoa(e.UID)}, {"gid", strconv.Itoa(e.GID)},
		{"size", strconv.FormatInt(size, 10)}, {"typeflag", string(rune(e.Type))}, {"linkname", e.Link}, {"uname", ""}, {"gname", ""},
		{"devmajor", strconv.FormatUint(uint64(e.Major), 10)}, {"devminor", strconv.FormatUint(uint64(e.Minor), 10)},
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		if name == "security.capability" || !strings.HasPrefix(name, "security.") && !strings.HasPrefix(name, "system.") {
			fields = append(fields, [2]string{name, e.Xattrs[name]})
		}
	}
	for _, f := range fields {
		io.WriteString(sum, f[0]+f[1])
	}
}

// maxLinks bounds the symlinks on the way to one path.
const maxLinks = 255

// resolve follows the symlinks in an absolute path.
func (h *hasher) resolve(p string, follow bool) (string, layers.Entry, error) {
	at, rest := ".", strings.TrimPrefix(p, "/")
	e, err := h.t.Files.Lookup(at)
	for links := 0; rest != "" && err == nil; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		next := path.Join("/", at, part)[1:]
		if next == "" {
			next = "."
		}
		if e, err = h.t.Files.Lookup(next); err != nil {
			break
		}
		if e.Type != layers.Symlink || !follow && rest == "" {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", e, errUnhashable
		}
		if rest = strings.TrimSuffix(e.Link+"/"+rest, "/"); path.IsAbs(e.Link) {
			at, rest = ".", strings.TrimLeft(rest, "/")
		}
	}
	if err == nil && e.Type == layers.Symlink && follow {
		err = fs.ErrNotExist
	}
	if err == nil {
		e, err = h.t.Files.Lookup(at) // a link may have ended in its own directory
	}
	return at, e, err
}
