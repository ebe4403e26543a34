package file

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/strake-build/strake/layers"
)

// overlay is a base tree and what the actions of an op did to it so far. It
// holds in memory only what was changed or looked at.
type overlay struct {
	base  Tree
	root  *node
	nodes int // below root
}

// node is a path of an overlay.
type node struct {
	// entry tells what is there, without Path; Type 0: nothing.
	entry layers.Entry
	// made: the entry belongs to the layer.
	made bool
	// lower is the type of what base has at this path, 0 for nothing.
	lower layers.Type
	// merged: what base has below this directory shows.
	merged   bool
	children map[string]*node
	// link is shared by files that are one file.
	link *linked
}

// linked is a file that has several names.
type linked struct {
	first string
	attr  *linkAttr // nil: as the entries have it
}

// linkAttr are the attributes that the last name of a file came with.
type linkAttr struct {
	mode     uint32
	uid, gid int
}

func newOverlay(base Tree) *overlay {
	o := &overlay{base: base, root: &node{entry: rootDir}}
	if base != nil {
		o.root.merged = true
		o.root.lower = layers.Dir
		if e, err := base.Lookup("."); err == nil {
			o.root.entry = e
		}
	}
	return o
}

// child returns a node of a directory, as far as it is known or base has it;
// never nil: what is not there has an entry of type 0.
func (o *overlay) child(dir *node, dirPath, name string) (*node, error) {
	if c := dir.children[name]; c != nil {
		return c, nil
	}
	c := &node{}
	if dir.merged {
		e, err := o.base.Lookup(join(dirPath, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			c.entry, c.lower, c.merged = e, e.Type, e.Type == layers.Dir
		}
	}
	if dir.children == nil {
		dir.children = map[string]*node{}
	}
	dir.children[name] = c
	o.nodes++
	return c, nil
}

// walk goes to a path without following links. The node is nil if one of its
// parents is no directory.
func (o *overlay) walk(p string) (*node, error) {
	n := o.root
	if p == "." {
		return n, nil
	}
	for start := 0; start <= len(p); {
		end := len(p)
		if i := strings.IndexByte(p[start:], '/'); i >= 0 {
			end = start + i
		}
		if n.entry.Type != layers.Dir {
			return nil, nil
		}
		dir := "."
		if start > 0 {
			dir = p[:start-1]
		}
		var err error
		if n, err = o.child(n, dir, p[start:end]); err != nil {
			return nil, err
		}
		start = end + 1
	}
	return n, nil
}

// lookup returns the node of what is at p, nil if nothing is.
func (o *overlay) lookup(p string) (*node, error) {
	n, err := o.walk(p)
	if err != nil || n == nil || n.entry.Type == 0 {
		return nil, err
	}
	return n, nil
}

// Lookup is as Tree's.
func (o *overlay) Lookup(p string) (layers.Entry, error) {
	n, err := o.lookup(p)
	if err != nil {
		return layers.Entry{}, err
	}
	if n == nil {
		return layers.Entry{}, notExist("lookup", p)
	}
	e := n.entry
	e.Path = p
	return e, nil
}

// ReadDir is as Tree's.
func (o *overlay) ReadDir(p string) ([]layers.Entry, error) {
	n, err := o.lookup(p)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, notExist("readdir", p)
	}
	names := map[string]bool{}
	for name := range n.children {
		names[name] = true
	}
	if n.merged {
		below, err := o.base.ReadDir(p)
		if err != nil {
			return nil, err
		}
		for _, e := range below {
			names[path.Base(e.Path)] = true
		}
	}
	var entries []layers.Entry
	for _, name := range sortedKeys(names) {
		c, err := o.child(n, p, name)
		if err != nil {
			return nil, err
		}
		if c.entry.Type != 0 {
			e := c.entry
			e.Path = join(p, name)
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// resolve follows all symlinks of a path.
func (o *overlay) resolve(p string) (string, error) {
	p, _, err := resolve(o, "", clean(p), true)
	return p, err
}

// set puts an entry at p, whose parent is a directory, in place of what is
// there. A directory over a directory keeps what is in it.
func (o *overlay) set(p string, e layers.Entry) error {
	n, err := o.walk(p)
	if err != nil {
		return err
	}
	return n.set(p, e)
}

// set is overlay.set for the node that walk found at p.
func (n *node) set(p string, e layers.Entry) error {
	if len(p) > maxPath {
		return errLongPath(p)
	}
	name := path.Base(p)
	if strings.HasPrefix(name, ".wh.") {
		return fmt.Errorf("%s: no image can hold a file whose name begins with \".wh.\"; it is how layers tell what they remove", abs(p))
	}
	if e.Type == layers.Char && e.Major == 0 && e.Minor == 0 {
		return fmt.Errorf("%s: no image can hold the device 0:0; it is how overlay file systems tell what they remove", abs(p))
	}
	if n == nil {
		return fmt.Errorf("%s: not a directory", abs(path.Dir(p)))
	}
	if e.Type != layers.Dir || n.entry.Type != layers.Dir {
		n.children = nil
		n.merged = false
	}
	e.Path = ""
	n.entry, n.made, n.link = e, true, nil
	return nil
}

// remove takes away what is at p.
func (o *overlay) remove(p string) {
	n, err := o.walk(p)
	if err != nil || n == nil {
		return
	}
	*n = node{lower: n.lower, made: n.lower != 0}
}

// inherit returns a new entry of a directory with what Linux has it take from
// one that has the set-group-ID bit (inode(7)): the bit, if it is a directory,
// and the group, if its owner is not given.
func inherit(dir, e layers.Entry, owned bool) layers.Entry {
	if dir.Mode&setGID == 0 {
		return e
	}
	if e.Type == layers.Dir {
		e.Mode |= setGID
	}
	if !owned {
		e.GID = dir.GID
	}
	return e
}

const setGID = 0o2000

// mkdirAll makes a directory and its parents, with the attributes of attr,
// where they are missing; owned: the owner is given, not the default one. p has
// no symlinks.
func (o *overlay) mkdirAll(p string, attr layers.Entry, owned bool) error {
	if p == "." {
		return nil
	}
	above := o.root.entry
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		n, err := o.lookup(p[:i])
		if err != nil {
			return err
		}
		if n == nil {
			above = inherit(above, attr, owned)
			if err := o.set(p[:i], above); err != nil {
				return err
			}
			continue
		}
		if above = n.entry; above.Type != layers.Dir {
			return fmt.Errorf("%s: not a directory", abs(p[:i]))
		}
	}
	return nil
}

// touch makes a directory of base part of the layer, as it is.
func (o *overlay) touch(p string) error {
	n, err := o.lookup(p)
	if err == nil && n != nil {
		n.made = true
	}
	return err
}

// entries lists the layer, in the order and to the extent of layers.Walk: the
// root is not in it. The overlay is of no use afterwards: its memory becomes free
// while the list grows.
func (o *overlay) entries() []layers.Entry {
	list := make([]layers.Entry, 0, o.nodes)
	for _, name := range sortedKeys(o.root.children) {
		o.collect(&list, o.root.children[name], name)
	}
	return list
}

// collect adds n and what is below it to list, if any of that was made, and
// reports whether it did.
func (o *overlay) collect(list *[]layers.Entry, n *node, p string) bool {
	e := n.entry
	e.Path = p
	switch e.Type {
	case 0:
		if n.made {
			*list = append(*list, layers.Entry{Path: p, Type: layers.Whiteout})
		}
		return n.made
	case layers.Dir:
		at := len(*list)
		e.ModTime = layers.DefaultModTime
		e.Size, e.Digest, e.Origin = 0, "", layers.Origin{}
		e.Opaque = n.lower == layers.Dir && !n.merged
		*list = append(*list, e)
		some := n.made
		for _, name := range sortedKeys(n.children) {
			if o.collect(list, n.children[name], join(p, name)) {
				some = true
			}
		}
		n.children = nil
		if !some {
			*list = (*list)[:at]
		}
		return some
	}
	if !n.made {
		return false
	}
	if n.link != nil {
		if a := n.link.attr; a != nil {
			e.Mode, e.UID, e.GID = a.mode, a.uid, a.gid
		}
		if n.link.first != "" {
			e = layers.Entry{Path: p, Type: layers.Hardlink, Link: n.link.first, Mode: e.Mode, UID: e.UID, GID: e.GID, ModTime: e.ModTime}
		} else {
			n.link.first = p
		}
	}
	*list = append(*list, e)
	return true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
