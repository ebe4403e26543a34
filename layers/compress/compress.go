// Package compress compresses and decompresses layer streams, in parallel and
// deterministically: the bytes depend on the input, the algorithm, the level
// and Version, never on the number of processors, on the sizes of writes or on
// what is cached.
//
// The stream is cut at content-defined places into segments of 256 KiB to 4
// MiB, which are compressed on their own. gzip output is one member: its
// segments are series of DEFLATE blocks that end at a byte (RFC 1951 section
// 3.2.4), joined. zstd output is a sequence of frames (RFC 8878 section 3), one
// a segment.
//
// Segments don't refer to the ones before them. With the last 32 KiB as
// dictionary gzip gets 0.1 % smaller and 3 % slower, and a change costs one more
// segment.
package compress

import (
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Version changes whenever the same input gives other compressed bytes: with
// the places of cuts, the encoders' parameters, or a new release of the encoders
// that compresses otherwise (TestGolden tells).
const Version = 1

// Algorithm is a compression by the name it has on the command line.
type Algorithm string

// The algorithms.
const (
	None Algorithm = "uncompressed"
	Gzip Algorithm = "gzip"
	Zstd Algorithm = "zstd"
)

// MediaType is the OCI media type of a layer compressed by a, or "" if there is
// none.
func (a Algorithm) MediaType() string {
	switch a {
	case None:
		return ocispec.MediaTypeImageLayer
	case Gzip, Estargz, "":
		return ocispec.MediaTypeImageLayerGzip
	case Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ""
}

// MaxLevel is the highest level of a, 0 if it has none.
func (a Algorithm) MaxLevel() int {
	switch a {
	case None:
		return 0
	case Zstd:
		return 22
	}
	return 9
}

// Options says how to compress. The zero value is gzip at its default level.
type Options struct {
	Algorithm Algorithm // "" is Gzip
	// Level is 1 to 9 for gzip, 1 to 22 for zstd, of which the encoder knows
	// four steps; 0 is the algorithm's default, 5 or 3, and LevelZero the
	// level of that number.
	Level   int
	Workers int // segments compressed at once; 0 is GOMAXPROCS; at most 16 count
	// Segments caches compressed segments by content; nil for none.
	Segments *SegmentCache
}

// The default of gzip is about as small as gzip -6 (3 % larger on a Debian
// root) at four times its speed on one processor.
const (
	defaultGzip = 5
	defaultZstd = 3
)

// maxWorkers is where more processors don't help: cutting the stream keeps up
// with that many.
const maxWorkers = 16

// NewWriter compresses to w; the result is a *Writer, but for None. Memory is
// bounded by Workers × the segment size. Close flushes and ends the stream; it
// does not close w. It must be called after errors too.
func NewWriter(w io.Writer, o Options) (io.WriteCloser, error) {
	if o.Algorithm == "" {
		o.Algorithm = Gzip
	}
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	workers = min(workers, maxWorkers)
	switch o.Algorithm {
	case None:
		if o.Level != 0 {
			return nil, fmt.Errorf("compression level %d: %s has no levels", o.Level, None)
		}
		return plain{w}, nil
	case Gzip:
		level, err := checkLevel(o, defaultGzip)
		if err != nil {
			return nil, err
		}
		newEncoder := func() (encoder, error) { return newGzipEncoder(level) }
		return newWriter(w, &gzipFrame{}, newEncoder, workers, o.Segments, segmentID(Gzip, level)), nil
	case Zstd:
		level, err := checkLevel(o, defaultZstd)
		if err != nil {
			return nil, err
		}
		step := zstd.EncoderLevelFromZstd(level)
		newEncoder := func() (encoder, error) { return newZstdEncoder(step) }
		return newWriter(w, &zstdFrame{}, newEncoder, workers, o.Segments, segmentID(Zstd, int(step))), nil
	}
	return nil, fmt.Errorf("unknown compression %q: want %s, %s or %s", o.Algorithm, Gzip, Zstd, None)
}

// LevelZero is level 0: gzip that only wraps, the fastest zstd.
const LevelZero = -1

func checkLevel(o Options, standard int) (int, error) {
	if o.Level == 0 {
		return standard, nil
	}
	if o.Level == LevelZero {
		return 0, nil
	}
	if o.Level < 0 || o.Level > o.Algorithm.MaxLevel() {
		return 0, fmt.Errorf("compression level %d: want 0 to %d for %s", o.Level, o.Algorithm.MaxLevel(), o.Algorithm)
	}
	return o.Level, nil
}

// segmentID is what a cached segment depends on besides its content.
func segmentID(a Algorithm, level int) string {
	return fmt.Sprintf("strake segment %d %s %d\n", Version, a, level)
}

// plain is the Writer of None.
type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// encoder compresses segments. What it has compressed before has no influence.
type encoder interface {
	// encode appends the compressed form of src to dst.
	encode(dst, src []byte) ([]byte, error)
}

type gzipEncoder struct{ w *flate.Writer }

func newGzipEncoder(level int) (encoder, error) {
	w, err := flate.NewWriter(nil, level)
	return gzipEncoder{w}, err
}

func (e gzipEncoder) encode(dst, src []byte) ([]byte, error) {
	out := appender{dst}
	e.w.Reset(&out)
	if _, err := e.w.Write(src); err != nil {
		return nil, err
	}
	// Flush ends with an empty stored block, so the segment ends at a byte.
	if err := e.w.Flush(); err != nil {
		return nil, err
	}
	return out.b, nil
}

type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

type zstdEncoder struct{ e *zstd.Encoder }

func newZstdEncoder(level zstd.EncoderLevel) (encoder, error) {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(level),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(maxSegment),
		zstd.WithEncoderCRC(true))
	return zstdEncoder{e}, err
}

func (e zstdEncoder) encode(dst, src []byte) ([]byte, error) {
	return e.e.EncodeAll(src, dst), nil
}
