// Package compress compresses and decompresses layer streams, in parallel and
// deterministically: the bytes depend on the input, the algorithm, the level
// and Version, never on the number of processors or on what is cached.
//
// gzip output is one member: the stream is cut at content-defined places into
// segments of 256 KiB to 4 MiB, each deflated on its own with the 32 KiB before
// it as dictionary (RFC 1951 allows back references across blocks), and joined.
// zstd output is a sequence of frames (RFC 8878 section 3), one a segment.
package compress

import "io"

// Version changes whenever the same input gives other compressed bytes.
const Version = 1

// Algorithm is a compression by the name it has on the command line.
type Algorithm string

// The algorithms.
const (
	None Algorithm = "uncompressed"
	Gzip Algorithm = "gzip"
	Zstd Algorithm = "zstd"
)

// Options says how to compress. The zero value is gzip at its default level.
type Options struct {
	Algorithm Algorithm // "" is Gzip
	Level     int       // 0 is the algorithm's default
	Workers   int       // segments compressed at once; 0 is GOMAXPROCS
	// Segments caches compressed segments by content; nil for none.
	Segments *SegmentCache
}

// SegmentCache is a directory of compressed segments.
type SegmentCache struct{ dir string }

// OpenSegments opens the segment cache at dir and makes it if missing.
func OpenSegments(dir string) (*SegmentCache, error) { panic("unwritten") }

// NewWriter compresses to w. Memory is bounded by Workers × the segment size.
// Close flushes and ends the stream; it does not close w.
func NewWriter(w io.Writer, o Options) (io.WriteCloser, error) { panic("unwritten") }

// NewReader decompresses gzip, zstd, bzip2, xz or nothing, as the first bytes
// tell. Read-ahead runs in parallel.
func NewReader(r io.Reader) (io.ReadCloser, error) { panic("unwritten") }

// Detect names the compression by the first bytes (at least 6 where there are
// so many): "gzip", "zstd", "bzip2", "xz" or "".
func Detect(head []byte) string { panic("unwritten") }

// MediaType is the OCI media type of a layer compressed by a.
func (a Algorithm) MediaType() string { panic("unwritten") }
