// Package file works out what a File op makes: the entries of a new layer, on
// top of a tree and from other trees. It follows Docker's COPY and ADD rules
// and resolves every path inside the trees it is given.
//
// Nothing is copied here. The result is a list of entries whose contents stay
// where they are (see layers.Origin).
package file

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// Tree is a read-only file system: a *snapshot.View or a *source.Dir, whose
// methods say more.
type Tree interface {
	Lookup(path string) (layers.Entry, error)
	ReadDir(path string) ([]layers.Entry, error)
	Open(ctx context.Context, path string) (io.ReadCloser, error)
	Digest(ctx context.Context, path string) (digest.Digest, error)
}

// Input is a source of Copy actions.
type Input struct {
	Tree Tree // nil: empty
	// Owned: owners in this tree mean something (it is the tree of an image
	// or stage, not a directory of the user).
	Owned bool
	// Why explains to the user why a path is missing, such as by naming the
	// ignore rule that dropped it; nil is allowed.
	Why func(path string) string
}

// NeedsBase reports whether op's result depends on what is in the tree it
// starts from, judging by op alone, so that an image that nobody has unpacked
// need not be fetched. hints are absolute paths known to be directories in it
// (working directories of its configuration and history), user the image's
// user. docs/decisions/0001-lazy-base.md has the rules.
func NeedsBase(op *plan.File, inputs []Input, user string, hints []string) (bool, error) {
	panic("unwritten")
}

// Digest is the digest of all that the Copy actions of op take from input i:
// names, types, modes, links, attributes and contents, owners if the input is
// Owned; never times. It is empty if op takes nothing from it.
func Digest(ctx context.Context, op *plan.File, i int, in Input) (digest.Digest, error) {
	panic("unwritten")
}

// PathDigest is likewise the digest of the file or tree at path of in, as a
// bind mount shows it, symlinks in path followed inside the tree.
func PathDigest(ctx context.Context, in Input, path string) (digest.Digest, error) {
	panic("unwritten")
}

// Apply returns the entries of the layer that op makes, sorted by path, with
// the directories that lead to them. base is the tree it starts from, nil if it
// is empty or not needed (NeedsBase). inputs are indexed like the step's; [0]
// is not used. stage returns an empty directory for contents that come out of
// archives. All Regular entries have digests.
func Apply(ctx context.Context, op *plan.File, base Tree, inputs []Input, stage func() (string, error)) ([]layers.Entry, error) {
	panic("unwritten")
}

// User resolves user[:group], as USER and --chown take it, in a tree (nil: only
// numbers can be resolved).
func User(tree Tree, user string) (uid, gid int, groups []int, home string, err error) {
	panic("unwritten")
}
