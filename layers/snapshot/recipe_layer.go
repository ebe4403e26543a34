package snapshot

import (
	"io/fs"
	"sort"
	"strings"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot/internal/layerdir"
)

// Stat implements merge.Layer.
func (r *recipe) Stat(path string) (layers.Entry, error) {
	i, ok := r.find(path)
	if ok {
		e := r.entries[i]
		if e.Type != layers.Hardlink {
			return e, nil
		}
		// The target is an earlier entry, and no link itself.
		if j, ok := r.find(e.Link); ok && r.entries[j].Type != layers.Hardlink {
			target := r.entries[j]
			target.Path = path
			return target, nil
		}
	} else if path == "." || i < len(r.entries) && strings.HasPrefix(r.entries[i].Path, path+"/") {
		return layerdir.Implied(path), nil
	}
	return layers.Entry{}, &fs.PathError{Op: "look up", Path: path, Err: fs.ErrNotExist}
}

// Names implements merge.Layer.
func (r *recipe) Names(path string) ([]string, error) {
	prefix := path + "/"
	if path == "." {
		prefix = ""
	}
	i, ok := r.find(path)
	if ok {
		i++ // the directory itself
	}
	var names []string
	for i < len(r.entries) && strings.HasPrefix(r.entries[i].Path, prefix) {
		name, _, _ := strings.Cut(r.entries[i].Path[len(prefix):], "/")
		names = append(names, name)
		// What is below it follows it.
		child := prefix + name
		rest := r.entries[i:]
		i += sort.Search(len(rest), func(n int) bool {
			return rest[n].Path != child && !strings.HasPrefix(rest[n].Path, child+"/")
		})
	}
	return names, nil
}
