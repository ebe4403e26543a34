package layers

import (
	"context"
	"io"
	"iter"
	"time"
)

// TarOptions says how WriteTar writes.
type TarOptions struct {
	// ModTime is the time that every entry gets; zero keeps the entries' own.
	ModTime time.Time
	// Clamp: only entries later than ModTime get it.
	Clamp bool
	// NoWhiteouts: whiteouts and opaque marks are left out (a whole tree is
	// written, not a layer).
	NoWhiteouts bool
}

// WriteTar writes entries as a tar stream whose bytes depend on the entries
// alone: numeric owners, no access and change times, PAX records only where the
// USTAR fields can't hold a value. Entries come in their order (Walk and
// recipes are sorted). open returns the content of a Regular that is not
// Inline; content of another size than Size, or another digest than Digest if
// there is one, is an error that names the path.
func WriteTar(ctx context.Context, w io.Writer, entries iter.Seq2[Entry, error], open func(Entry) (io.ReadCloser, error), o TarOptions) error {
	panic("unwritten")
}

// Apply unpacks a layer's tar stream (not compressed) into the empty layer
// directory dir. Names are resolved inside dir only, whatever links the stream
// makes; missing parents are made with mode 0755. See ApplyOptions for what is
// bounded.
func Apply(ctx context.Context, dir string, r io.Reader, o ApplyOptions) error { panic("unwritten") }

// ApplyOptions says how Apply unpacks.
type ApplyOptions struct {
	// UserXattr: opaque marks go to user.overlay.opaque (rootless).
	UserXattr bool
	// RecordOwners: owners that can't be set are recorded in the extended
	// attribute OwnerXattr instead (a user namespace with a single id).
	RecordOwners bool
	MaxEntries   int64 // 0 is 10 million
	MaxSize      int64 // bytes of content; 0 for no limit
}

// OwnerXattr holds "uid:gid:mode" of an entry whose owner the file system can't
// hold; see ApplyOptions.RecordOwners.
const OwnerXattr = "user.strake.owner"

// ReadTar yields the entries of a tar stream as they stand in it, whiteouts
// told as such, names cleaned; names that leave the root are an error. The
// content of the entry just yielded is read from body until the next one.
func ReadTar(r io.Reader) (entries iter.Seq2[Entry, error], body io.Reader) { panic("unwritten") }

// Walk yields the entries of the layer directory dir, sorted by path, with
// parents before children, hard links within dir told as such, and overlayfs's
// own attributes turned into Whiteout and Opaque. Recorded owners are given as
// the entries' owners.
func Walk(dir string) iter.Seq2[Entry, error] { panic("unwritten") }
