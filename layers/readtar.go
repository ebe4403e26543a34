package layers

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// ReadTar yields the entries of a tar stream as they stand in it, whiteouts
// told as such, names cleaned; names that leave the root are an error. That the
// root, ".", is a directory is not checked. The content of the entry just
// yielded is read from body until the next one.
//
// An opaque mark is a Whiteout of its own, with Opaque set: what lower layers
// have in the directory Path is removed, but not Path itself. Of extended
// attributes security.capability and those of the namespace "user" are given,
// less overlayfs's and our own. An error ends the entries.
func ReadTar(r io.Reader) (entries iter.Seq2[Entry, error], body io.Reader) {
	tr := tar.NewReader(r)
	return func(yield func(Entry, error) bool) {
		for {
			h, err := tr.Next()
			if err == io.EOF {
				return
			}
			// The names are checked here, not by a setting of GODEBUG.
			if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
				yield(Entry{}, fmt.Errorf("read tar: %w", err))
				return
			}
			e, skip, err := entryOf(h)
			if skip && err == nil {
				continue
			}
			if err != nil {
				err = fmt.Errorf("tar entry %.200q: %w", h.Name, err)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}, tr
}

// maxPath bounds names and links; it is the kernel's limit, without the NUL.
const maxPath = 4095

// entryOf turns a header into an entry. skip is set for headers that are none.
func entryOf(h *tar.Header) (e Entry, skip bool, err error) {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // defaults of other archivers; a volume label
		return e, true, nil
	}
	if len(h.Name) > maxPath || len(h.Linkname) > maxPath {
		return e, false, errors.New("name too long")
	}
	p, err := cleanName(h.Name)
	if err != nil {
		return e, false, err
	}
	what, opaque, skip, err := parseMark(p)
	if err != nil || skip {
		return e, skip, err
	}
	if what != "" {
		return Entry{Path: what, Type: Whiteout, Opaque: opaque, ModTime: h.ModTime}, false, nil
	}
	e = Entry{
		Path:    p,
		Mode:    uint32(h.Mode & 0o7777),
		UID:     h.Uid,
		GID:     h.Gid,
		ModTime: h.ModTime,
		Xattrs:  xattrsOf(h),
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		e.Type, e.Size = Regular, h.Size
	case tar.TypeDir:
		e.Type = Dir
	case tar.TypeSymlink:
		e.Type, e.Link = Symlink, h.Linkname
		if strings.IndexByte(e.Link, 0) >= 0 || e.Link == "" {
			return e, false, fmt.Errorf("symbolic link to %q", e.Link)
		}
	case tar.TypeLink:
		e.Type = Hardlink
		if e.Link, err = cleanName(h.Linkname); err != nil {
			return e, false, fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
		}
	case tar.TypeChar, tar.TypeBlock:
		e.Type = Type(h.Typeflag)
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > 1<<21 || h.Devminor > 1<<21 {
			return e, false, fmt.Errorf("device %d:%d", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
		if e.Type == Char && e.Major == 0 && e.Minor == 0 {
			// It is one as soon as it is in a layer directory.
			return Entry{Path: p, Type: Whiteout, ModTime: h.ModTime}, false, nil
		}
	case tar.TypeFifo:
		e.Type = Fifo
	default:
		return e, false, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	return e, false, check(&e)
}

// xattrsOf returns the extended attributes that belong to a layer.
func xattrsOf(h *tar.Header) map[string]string {
	var m map[string]string
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || !keepXattr(name) {
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		m[name] = v
	}
	return m
}
