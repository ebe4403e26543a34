package layers

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Names in tar streams that begin with whPrefix stand for removed files; those
// that begin with whMeta are marks of their own, of which only whOpaque is used
// today (the others come from aufs).
const (
	whPrefix = ".wh."
	whMeta   = ".wh..wh."
	whOpaque = ".wh..wh..opq"
)

// ComparePaths orders cleaned paths as a walk meets them: parents before
// children, siblings by the bytes of their names. It is not the order of the
// strings: "a/b" comes before "a-b".
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		switch {
		case a == ".":
			return -1
		case b == ".":
			return 1
		case x == '/':
			return -1
		case y == '/':
			return 1
		case x < y:
			return -1
		}
		return 1
	}
	switch {
	case len(a) == len(b):
		return 0
	case a == ".":
		return -1
	case b == ".":
		return 1
	}
	return len(a) - len(b)
}

var errEscapes = errors.New("leaves the root")

// cleanName makes an Entry.Path of a name in a tar stream. Absolute names are
// meant relative to the root.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("a name with a zero byte")
	}
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", errEscapes
	}
	return p, nil
}

// splitPath returns the parent and the last name of a cleaned path.
func splitPath(p string) (dir, base string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return ".", p
}

// joinPath is the path of name in the directory dir.
func joinPath(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// parseMark tells what a name in a tar stream says about lower layers: it
// removes what, or makes the directory what opaque. skip is set for names that
// say nothing we know; what is empty for plain names.
func parseMark(p string) (what string, opaque, skip bool, err error) {
	if !strings.Contains(p, whPrefix) {
		return "", false, false, nil
	}
	dir, base := splitPath(p)
	for c := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(c, whMeta) {
			return "", false, true, nil
		}
		if strings.HasPrefix(c, whPrefix) {
			return "", false, false, fmt.Errorf("a whiteout (%s) is used as a directory", c)
		}
	}
	if base == whOpaque {
		return dir, true, false, nil
	}
	if strings.HasPrefix(base, whMeta) {
		return "", false, true, nil
	}
	name, ok := strings.CutPrefix(base, whPrefix)
	if !ok {
		return "", false, false, nil
	}
	if name == "" || name == "." || name == ".." {
		return "", false, false, fmt.Errorf("a whiteout of %q", name)
	}
	return joinPath(dir, name), false, false, nil
}
