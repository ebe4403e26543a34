package file

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// The rules of docs/decisions/0001-lazy-base.md, which has the reasons.

// fhs are the names at the root that mean something to distributions: what is
// there, and whether it is a directory or a symlink, differs between them.
var fhs = set("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt",
	"opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var")

// plain are directories that are root's, with mode 0755, wherever they exist.
var plain = set("etc", "home", "media", "mnt", "opt", "srv", "usr", "usr/bin", "usr/lib", "usr/local",
	"usr/local/bin", "usr/local/etc", "usr/local/lib", "usr/local/share", "usr/share", "usr/src")

func set(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

// ours reports whether a path is where images put what is their own: nobody
// else has anything there.
func ours(p string) bool {
	top, rest, _ := strings.Cut(p, "/")
	return p != "." && (!fhs[top] || rest != "" && (top == "opt" || top == "srv"))
}

// NeedsBase reports whether op's result depends on what is in the tree it
// starts from, judging by op alone, so that an image that nobody has unpacked
// need not be fetched. hints are absolute paths known to be directories in it
// (working directories of its configuration and history), user the image's
// user. docs/decisions/0001-lazy-base.md has the rules.
//
// If it is false, the base to give to Apply is Hinted(nil, hints), or with
// layers above the unread ones that are known, Hinted(known, hints).
func NeedsBase(op *plan.File, inputs []Input, user string, hints []string) (bool, error) {
	j := judge{inputs: inputs, user: user, hinted: hintSet(hints)}
	for _, action := range op.Actions {
		needed := true
		var err error
		switch action := action.(type) {
		case *plan.Copy:
			needed, err = j.copy(action)
		case *plan.Mkdir:
			needed = j.mkdir(action)
		}
		if needed || err != nil {
			return true, err
		}
	}
	return false, nil
}

// hintSet has the hints and what is above them: directories whose attributes
// are not known.
func hintSet(hints []string) map[string]bool {
	m := map[string]bool{}
	for _, h := range hints {
		for p := clean(h); p != "."; p = path.Dir(p) {
			m[p] = true
		}
	}
	return m
}

type judge struct {
	inputs []Input
	user   string
	hinted map[string]bool
}

// made reports whether a directory that op makes on the way to something would
// be the same if it were there already.
func (j *judge) made(p string) bool {
	return plain[p] || ours(p) && !j.hinted[p]
}

// chain is judged for the directories from the root to p: nobody needs to look
// at the base for them if they are made as root's with mode 0755, or if there
// is only one, which then has no business to be there.
func (j *judge) chain(p string, odd bool) bool {
	for dir := p; dir != "."; dir = path.Dir(dir) {
		if !j.made(dir) || odd && (plain[dir] || strings.Contains(dir, "/")) {
			return false
		}
	}
	return true
}

func named(id string) bool {
	_, err := parseID(id)
	return id != "" && id != "root" && err != nil
}

// oddOwner reports whether new files belong to somebody else than root; unknown
// whether that can't be told without the base.
func oddOwner(o *plan.Owner) (odd, unknown bool) {
	if o == nil {
		return false, false
	}
	if named(o.User) || named(o.Group) {
		return true, true
	}
	own, err := resolveOwner(context.Background(), nil, o)
	return own != ids{}, err != nil
}

func (j *judge) mkdir(m *plan.Mkdir) (needed bool) {
	odd, unknown := oddOwner(m.Owner)
	if unknown || !m.Parents || m.Mode != 0o755 || j.user != "" && named(strings.TrimSuffix(j.user, ":")) && m.Owner == nil {
		return true
	}
	p := clean(m.Path)
	return !j.hinted[p] && !j.chain(p, odd)
}

func (j *judge) copy(c *plan.Copy) (needed bool, err error) {
	mode, err := parseMode(c.Mode)
	if err != nil {
		return true, err
	}
	odd, unknown := oddOwner(c.Owner)
	if unknown || !c.CreateParents || c.Input < 1 || c.Input >= len(j.inputs) {
		return true, nil
	}
	odd = odd || mode.octal && mode.bits&0o777 != 0o755
	dst := clean(c.Dest)
	asDir := isDirPath(c.Dest) || dst == "."
	chain := dst
	if !asDir {
		chain = path.Dir(dst)
	}
	if !j.chain(chain, odd) {
		return true, nil
	}
	ctx := context.Background()
	in := j.inputs[c.Input]
	matches, err := find(ctx, in, c)
	if err != nil {
		return true, err
	}
	for _, m := range matches {
		isDir := m.entry.Type == layers.Dir
		switch {
		case asDir:
		case isDir && (!c.ContentsOnly || !j.chain(dst, odd)):
			return true, nil
		case !isDir && (j.hinted[dst] || !ours(dst) && (plain[dst] || !strings.Contains(dst, "/"))):
			return true, nil
		case !isDir && path.Ext(dst) == "" && path.Base(dst) != m.name:
			return true, nil // perhaps it is a directory
		}
		if c.Unpack && !ours(dst) && !isDir {
			k := copier{applier: &applier{ctx: ctx}, in: in}
			if m.entry.Size > 0 && m.entry.Type == layers.Regular {
				if ok, err := k.isArchive(m.entry.Path); ok || err != nil {
					return true, err
				}
			}
		}
		at := dst
		if asDir && !(isDir && c.ContentsOnly) {
			at = clean(join(dst, m.name))
		}
		if ok, err := j.tree(ctx, in, c, m, at, odd); !ok || err != nil {
			return true, err
		}
	}
	return false, nil
}

// tree judges what a source puts at dst and below.
func (j *judge) tree(ctx context.Context, in Input, c *plan.Copy, m match, dst string, odd bool) (bool, error) {
	if len(c.Include) == 0 && ours(dst) {
		// Its directories have the source's attributes in any case.
		return true, nil
	}
	safe := true
	err := walk(ctx, in, c, m, func(it *item) error {
		p := dst
		if it.rel != "." {
			p = join(dst, it.rel)
		}
		isDir := it.entry.Type == layers.Dir
		switch {
		case it.rel == "." && isDir:
		case it.parent && !(j.made(p) && !(odd && plain[p])),
			isDir && !plain[p] && !ours(p), // perhaps it is a symlink
			!isDir && !ours(p) && (plain[p] || !strings.Contains(p, "/")):
			safe = false
		}
		return nil
	})
	return safe, err
}

// Hinted is base (nil: empty) with the directories hints in it, and what leads
// to them, where it has none: a stand-in for a tree that nobody has read.
func Hinted(base Tree, hints []string) Tree {
	if base == nil {
		base = empty{}
	}
	return hintedTree{base, hintSet(hints)}
}

type hintedTree struct {
	Tree
	dirs map[string]bool
}

func (t hintedTree) Lookup(p string) (layers.Entry, error) {
	e, err := t.Tree.Lookup(p)
	if errors.Is(err, fs.ErrNotExist) && t.dirs[p] {
		e = rootDir
		e.Path = p
		return e, nil
	}
	return e, err
}

func (t hintedTree) ReadDir(p string) ([]layers.Entry, error) {
	entries, err := t.Tree.ReadDir(p)
	if err != nil && !(errors.Is(err, fs.ErrNotExist) && t.dirs[p]) {
		return nil, err
	}
	for d := range t.dirs {
		if path.Dir(d) == p && !slices.ContainsFunc(entries, func(e layers.Entry) bool { return e.Path == d }) {
			e := rootDir
			e.Path = d
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b layers.Entry) int { return strings.Compare(a.Path, b.Path) })
	return entries, nil
}
