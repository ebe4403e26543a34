package compress

import (
	"errors"
	"hash"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// Estargz is gzip in members of at most 4 MiB of one file each, with an index
// of the files at its end: who mounts the image can fetch the files that are
// read. It is written by NewEstargz.
const Estargz Algorithm = "estargz"

// EstargzWriter writes a layer in the eStargz format
// (containerd/stargz-snapshotter, docs/estargz.md).
type EstargzWriter struct {
	w    *estargz.Writer
	in   *io.PipeWriter
	size int64
	done chan error
	toc  digest.Digest
}

// NewEstargz writes to w what a tar stream is compressed to. The level is that
// of Gzip. The stream must have no file stargz.index.json at its top, which is the
// name of the index.
func NewEstargz(w io.Writer, level int) (*EstargzWriter, error) {
	level, err := checkLevel(Options{Algorithm: Estargz, Level: level}, defaultGzip)
	if err != nil {
		return nil, err
	}
	r, in := io.Pipe()
	z := &EstargzWriter{in: in, done: make(chan error, 1)}
	z.w = estargz.NewWriterWithCompressor(w, &gzipMembers{estargz.NewGzipCompressorWithLevel(level), level, &z.size})
	go func() {
		err := z.w.AppendTarLossLess(r)
		r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		z.done <- err
	}()
	return z, nil
}

func (z *EstargzWriter) Write(p []byte) (int, error) {
	n, err := z.in.Write(p)
	z.size += int64(n)
	return n, err
}

// Close writes the index. It must be called after errors too, once.
func (z *EstargzWriter) Close() error {
	z.in.Close()
	if err := <-z.done; err != nil {
		return err
	}
	var err error
	z.toc, err = z.w.Close()
	return err
}

// DiffID is the digest of what the output decompresses to, the index among it.
// Like the others below it is there after Close.
func (z *EstargzWriter) DiffID() digest.Digest { return digest.Digest(z.w.DiffID()) }

// TOC is the digest of the index.
func (z *EstargzWriter) TOC() digest.Digest { return z.toc }

// Size is how many bytes the output decompresses to.
func (z *EstargzWriter) Size() int64 { return z.size }

// The annotations of a layer in this form: the digest of its index, and the
// number of bytes that it decompresses to.
const (
	AnnotationTOC  = estargz.TOCJSONDigestAnnotation
	AnnotationSize = estargz.StoreUncompressedSizeAnnotation
)

// gzipMembers compresses by the encoder that gzip layers have, whose bytes don't
// depend on the Go release that strake was built with.
type gzipMembers struct {
	*estargz.GzipCompressor
	level int
	size  *int64 // bytes of the index are added
}

func (c *gzipMembers) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	return gzip.NewWriterLevel(w, c.level)
}

func (c *gzipMembers) WriteTOCAndFooter(w io.Writer, off int64, toc *estargz.JTOC, diff hash.Hash) (digest.Digest, error) {
	return c.GzipCompressor.WriteTOCAndFooter(w, off, toc, countingHash{diff, c.size})
}

type countingHash struct {
	hash.Hash
	n *int64
}

func (h countingHash) Write(p []byte) (int, error) {
	*h.n += int64(len(p))
	return h.Hash.Write(p)
}
