// Package layers describes what is in a layer, entry by entry, and turns layer
// directories into deterministic tar streams and back.
//
// A layer directory has the form that overlayfs reads as a lower directory: a
// removed path is a character device 0:0 (or, where device nodes can't be made,
// an empty file with the extended attribute user.overlay.whiteout), and a
// directory that hides what is below it has the extended attribute
// trusted.overlay.opaque or user.overlay.opaque with the value "y". In a tar
// stream the same is told by names beginning with ".wh." as the OCI image
// specification says (image-spec, layer.md).
package layers

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// ID names a layer in the store: 64 hex digits. A pulled layer's is the hex
// part of its diffID, others' are made at random when they are committed.
type ID string

// Tree is a file system as a list of layers, the lowest first.
type Tree []ID

// Type is the type of an entry.
type Type byte

// The types of entries. Their values are the tar type flags where there is one.
const (
	Regular  Type = '0'
	Hardlink Type = '1' // Link is the path of an earlier entry
	Symlink  Type = '2'
	Char     Type = '3'
	Block    Type = '4'
	Dir      Type = '5'
	Fifo     Type = '6'
	Whiteout Type = 'w' // Path is removed
)

// Entry is one file of a layer or tree, without its content.
type Entry struct {
	// Path is relative to the root, cleaned, with slashes and without a
	// leading one; "." is the root.
	Path string
	Type Type
	// Mode holds the permission bits and setuid, setgid and sticky (07777).
	Mode     uint32
	UID, GID int
	Size     int64  // of a Regular
	Link     string // target of a Symlink, or path of the entry a Hardlink shares
	Major    uint32
	Minor    uint32
	Xattrs   map[string]string
	ModTime  time.Time
	// Opaque: nothing of a lower layer shows through this Dir.
	Opaque bool
	// Digest is the SHA-256 digest of a Regular's content; empty if not
	// known yet.
	Digest digest.Digest
	// Data is the content, where it is small and known; Inline tells that it
	// is (an empty file has no Data).
	Data   []byte
	Inline bool
	// Origin is where the content is otherwise.
	Origin Origin
}

// Origin says where the content of an entry is to be had.
type Origin struct {
	// Input is the index of the step's input, and Path the path in it.
	Input int
	Path  string
	// Staged is the path of a file of the host that belongs to this entry
	// alone and may be moved away.
	Staged string
}

// DefaultModTime is the time that files in layers made here have unless the
// build says otherwise: a constant, so that equal trees give equal layers
// whenever they are made. It is the one that Cloud Native Buildpacks use; zip
// and other formats can't express earlier ones.
var DefaultModTime = time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)
