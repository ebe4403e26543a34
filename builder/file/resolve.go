package file

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/strake-build/strake/layers"
)

const (
	// maxLinks bounds the symlinks on the way to one path.
	maxLinks = 255
	// maxPath is how long a path may be, in bytes: what Linux has in one
	// system call.
	maxPath = 4096
)

// Resolve follows the symlinks in path, and one at its end if followFinal is
// set, as a process with the tree as its root would: no link leads out of it.
// It returns where path leads, without symlinks, and what is there. If nothing
// is, the error is fs.ErrNotExist and the path is where it would be.
func Resolve(tree Tree, path string, followFinal bool) (string, layers.Entry, error) {
	p, e, err := resolve(tree, "", path, followFinal)
	if err == nil && e.Type == 0 {
		err = notExist("lookup", p)
	}
	return p, e, err
}

type looker interface {
	Lookup(path string) (layers.Entry, error)
}

// resolve is Resolve with the directory root of tree as the root, whatever is
// above it; the path that it returns is one of tree. It is no error if nothing
// is there: the entry's type is 0 then.
func resolve(tree looker, root, path string, followFinal bool) (string, layers.Entry, error) {
	var (
		done  []string // resolved, below root
		todo  = split(path)
		entry layers.Entry
		links int
	)
	if len(path) > maxPath {
		return "", entry, errLongPath(path)
	}
	at := func() string {
		p := strings.Join(done, "/")
		switch {
		case root == "" || root == ".":
			if p == "" {
				return "."
			}
			return p
		case p == "":
			return root
		}
		return root + "/" + p
	}
	lookup := func() error {
		var err error
		entry, err = tree.Lookup(at())
		if errors.Is(err, fs.ErrNotExist) {
			entry, err = layers.Entry{}, nil
		}
		return err
	}
	if len(todo) == 0 {
		err := lookup()
		return at(), entry, err
	}
	exists := true
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			if len(done) > 0 {
				done = done[:len(done)-1]
			}
			exists = true
			if len(todo) == 0 {
				if err := lookup(); err != nil {
					return "", entry, err
				}
			}
			continue
		}
		done = append(done, name)
		if !exists {
			continue // nothing can be below what isn't there
		}
		if err := lookup(); err != nil {
			return "", entry, err
		}
		if entry.Type == layers.Symlink && (followFinal || len(todo) > 0) {
			if links++; links > maxLinks {
				return "", entry, fmt.Errorf("%s: too many symbolic links", abs(clean(path)))
			}
			done = done[:len(done)-1]
			if strings.HasPrefix(entry.Link, "/") {
				done = done[:0]
			}
			todo = append(split(entry.Link), todo...)
			if len(todo) == 0 { // a link to "/" or "."
				if err := lookup(); err != nil {
					return "", entry, err
				}
			}
			continue
		}
		exists = entry.Type == layers.Dir
		if !exists && len(todo) > 0 {
			entry = layers.Entry{}
		}
	}
	return at(), entry, nil
}

func errLongPath(p string) error {
	return fmt.Errorf("%.50s…: a path of %d bytes is longer than %d", p, len(p), maxPath)
}

// split returns the components of a path that are more than "." and "".
func split(p string) []string {
	parts := strings.Split(p, "/")
	names := parts[:0]
	for _, s := range parts {
		if s != "" && s != "." {
			names = append(names, s)
		}
	}
	return names
}
