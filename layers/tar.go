package layers

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"path"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// TarOptions says how WriteTar writes.
type TarOptions struct {
	// ModTime is the time that every entry gets; zero keeps the entries' own,
	// and gives DefaultModTime to those that have none.
	ModTime time.Time
	// NoWhiteouts: whiteouts and opaque marks are left out (a whole tree is
	// written, not a layer).
	NoWhiteouts bool
}

// WriteTar writes entries as a tar stream whose bytes depend on the entries
// alone: numeric owners, whole seconds, no access and change times, PAX records
// only where the USTAR fields can't hold a value. Entries come in their order
// (Walk and recipes are sorted). open returns the content of a Regular that is
// not Inline; content of another size than Size, or another digest than Digest
// if there is one, is an error that names the path.
//
// Contents are read ahead: open is called from several goroutines at once, for
// entries that come after the one being written, and entries runs in a
// goroutine of its own. All have ended when WriteTar returns. Memory is bounded,
// whatever the number and sizes of the files.
//
// A file whose name would be taken for a whiteout is an error, unless whiteouts
// are left out.
func WriteTar(ctx context.Context, w io.Writer, entries iter.Seq2[Entry, error], open func(Entry) (io.ReadCloser, error), o TarOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := tarWriter{
		w:     bufio.NewWriterSize(w, 128<<10),
		o:     o,
		open:  open,
		queue: make(chan *tarItem, readAhead),
		jobs:  make(chan *tarItem, readAhead),
	}
	var wg sync.WaitGroup
	wg.Go(func() { t.produce(ctx, entries) })
	for range min(readers, 2*runtime.GOMAXPROCS(0)) {
		wg.Go(func() { t.read(ctx) })
	}
	err := t.write(ctx)
	cancel(err)
	wg.Wait()
	return err
}

const (
	readAhead = 128      // entries taken ahead of the one being written
	readers   = 8        // files being read at once
	chunkSize = 64 << 10 // of content; smaller files are read at once
)

type tarWriter struct {
	w    *bufio.Writer
	o    TarOptions
	open func(Entry) (io.ReadCloser, error)

	queue chan *tarItem // all entries in order
	jobs  chan *tarItem // those whose content is to be read
	items sync.Pool     // of *tarItem
	bufs  sync.Pool     // of *[chunkSize]byte
	head  []byte        // the headers being written
}

// tarItem is an entry on its way.
type tarItem struct {
	Entry
	err error
	// chunks are the content. Its capacity bounds what is read ahead of a
	// file.
	chunks chan chunk
}

type chunk struct {
	buf *[chunkSize]byte
	n   int
	err error
}

func (t *tarWriter) buf() *[chunkSize]byte {
	if b, ok := t.bufs.Get().(*[chunkSize]byte); ok {
		return b
	}
	return new([chunkSize]byte)
}

// produce fills the queues.
func (t *tarWriter) produce(ctx context.Context, entries iter.Seq2[Entry, error]) {
	defer close(t.queue)
	defer close(t.jobs)
	for e, err := range entries {
		it, ok := t.items.Get().(*tarItem)
		if !ok {
			it = &tarItem{chunks: make(chan chunk, 2)}
		}
		it.Entry, it.err = e, err
		select {
		case t.queue <- it:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
		if e.Type != Regular || e.Inline {
			continue
		}
		select {
		case t.jobs <- it:
		case <-ctx.Done():
			return
		}
	}
}

// read reads the contents of entries. Jobs are taken in order, so the content
// that write waits for is always being read.
func (t *tarWriter) read(ctx context.Context) {
	h := sha256.New()
	for it := range t.jobs {
		if ctx.Err() != nil {
			return
		}
		if err := t.readItem(ctx, it, h); err != nil {
			select {
			case it.chunks <- chunk{err: err}:
			case <-ctx.Done():
				return
			}
		}
	}
}

// readItem sends as many chunks as write wants: those of Size bytes, at least
// one. The last is only sent when size and digest are right, and nothing is done
// with the item afterwards, since write gives it away then.
func (t *tarWriter) readItem(ctx context.Context, it *tarItem, h hash.Hash) error {
	r, err := t.open(it.Entry)
	if err != nil {
		return err
	}
	h.Reset()
	for left := it.Size; ; {
		b := t.buf()
		n, err := readFull(r, b[:min(left, chunkSize)])
		left -= int64(n)
		if err == io.EOF {
			err = fmt.Errorf("%d bytes instead of %d", it.Size-left, it.Size)
		}
		if err == nil && it.Digest != "" {
			h.Write(b[:n])
		}
		last := left == 0
		if err == nil && last {
			err = checkEnd(r, it, h)
		}
		if err != nil || last {
			err = errors.Join(err, r.Close())
		}
		if err != nil {
			return err
		}
		select {
		case it.chunks <- chunk{buf: b, n: n}:
		case <-ctx.Done():
			if !last {
				r.Close()
			}
			return nil
		}
		if last {
			return nil
		}
	}
}

// checkEnd checks that r ends here and had the right content.
func checkEnd(r io.Reader, it *tarItem, h hash.Hash) error {
	var b [1]byte
	switch _, err := readFull(r, b[:]); err {
	case io.EOF:
	case nil:
		return fmt.Errorf("more than %d bytes", it.Size)
	default:
		return err
	}
	if it.Digest == "" {
		return nil
	}
	return checkDigest(it.Digest, h)
}

func checkDigest(want digest.Digest, h hash.Hash) error {
	var sum [sha256.Size]byte
	var text [len("sha256:") + 2*sha256.Size]byte // no string, as there are many
	if got := hex.AppendEncode(append(text[:0], "sha256:"...), h.Sum(sum[:0])); string(got) != string(want) {
		return fmt.Errorf("content has digest %s, not %s", got, want)
	}
	return nil
}

// readFull fills p or returns io.EOF.
func readFull(r io.Reader, p []byte) (int, error) {
	n, err := io.ReadFull(r, p)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

// write writes the entries as they come.
func (t *tarWriter) write(ctx context.Context) error {
	for {
		var it *tarItem
		select {
		case it = <-t.queue:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if it == nil {
			break
		}
		if it.err != nil {
			return it.err
		}
		if err := t.writeEntry(ctx, it); err != nil {
			return fmt.Errorf("%s: %w", it.Path, err)
		}
		it.Entry = Entry{}
		t.items.Put(it)
	}
	if ctx.Err() != nil { // the queue was closed for that
		return context.Cause(ctx)
	}
	t.w.Write(zeroBlock[:])
	t.w.Write(zeroBlock[:])
	return t.w.Flush()
}

func (t *tarWriter) writeEntry(ctx context.Context, it *tarItem) error {
	e := &it.Entry
	h := header{
		name:   e.Path,
		flag:   byte(e.Type),
		mode:   e.Mode & 0o7777,
		uid:    e.UID,
		gid:    e.GID,
		mtime:  t.o.time(e.ModTime),
		xattrs: e.Xattrs,
	}
	switch e.Type {
	case Regular:
		h.size = e.Size
	case Dir:
		h.name += "/"
	case Symlink, Hardlink:
		h.link = e.Link
	case Char, Block:
		h.major, h.minor = e.Major, e.Minor
	case Fifo:
	case Whiteout:
		if t.o.NoWhiteouts {
			return nil
		}
		if e.Opaque {
			return t.writeMark(e.Path, whOpaque, h.mtime)
		}
		dir, base := splitPath(e.Path)
		return t.writeMark(dir, whPrefix+base, h.mtime)
	default:
		return fmt.Errorf("unknown type %q", e.Type)
	}
	if err := check(e); err != nil {
		return err
	}
	if !t.o.NoWhiteouts && isMark(e.Path) {
		return errors.New("a layer can't have a file of this name: it stands for a removed one")
	}
	if err := t.writeHeader(&h); err != nil {
		return err
	}
	switch {
	case e.Type == Regular && e.Inline:
		return t.writeInline(e)
	case e.Type == Regular:
		return t.writeContent(ctx, it)
	case e.Type == Dir && e.Opaque && !t.o.NoWhiteouts:
		return t.writeMark(e.Path, whOpaque, h.mtime)
	}
	return nil
}

// check refuses what tar streams or kernels can't hold.
func check(e *Entry) error {
	const maxDevice = 1<<21 - 1
	switch {
	case e.Size < 0:
		return fmt.Errorf("size %d", e.Size)
	case e.UID < 0 || e.GID < 0 || int64(e.UID) > maxID || int64(e.GID) > maxID:
		return fmt.Errorf("owner %d:%d", e.UID, e.GID)
	case e.Major > maxDevice || e.Minor > maxDevice:
		return fmt.Errorf("device %d:%d", e.Major, e.Minor)
	}
	return nil
}

// maxID is the largest user and group ID. The next one means "none".
const maxID = 1<<32 - 2

// isMark tells whether any name of the path begins like a whiteout.
func isMark(p string) bool {
	return strings.HasPrefix(p, whPrefix) || strings.Contains(p, "/"+whPrefix)
}

// time is the time in a header, in seconds.
func (o *TarOptions) time(m time.Time) int64 {
	if m.IsZero() {
		m = DefaultModTime
	}
	if !o.ModTime.IsZero() {
		m = o.ModTime
	}
	return m.Unix()
}

// writeMark writes the empty file name that says something of the directory
// dir.
func (t *tarWriter) writeMark(dir, name string, mtime int64) error {
	return t.writeHeader(&header{name: path.Join(dir, name), flag: byte(Regular), mtime: mtime})
}

func (t *tarWriter) writeHeader(h *header) (err error) {
	if t.head, err = h.appendTo(t.head[:0]); err != nil {
		return err
	}
	_, err = t.w.Write(t.head)
	return err
}

func (t *tarWriter) writeInline(e *Entry) error {
	if int64(len(e.Data)) != e.Size {
		return fmt.Errorf("%d bytes instead of %d", len(e.Data), e.Size)
	}
	if e.Digest != "" {
		h := sha256.New()
		h.Write(e.Data)
		if err := checkDigest(e.Digest, h); err != nil {
			return err
		}
	}
	t.w.Write(e.Data)
	_, err := t.w.Write(zeroBlock[:padding(e.Size)])
	return err
}

func (t *tarWriter) writeContent(ctx context.Context, it *tarItem) error {
	for left := it.Size; ; {
		var c chunk
		select {
		case c = <-it.chunks:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if c.err != nil {
			return c.err
		}
		_, err := t.w.Write(c.buf[:c.n])
		t.bufs.Put(c.buf)
		if err != nil {
			return err
		}
		if left -= int64(c.n); left == 0 {
			break
		}
	}
	_, err := t.w.Write(zeroBlock[:padding(it.Size)])
	return err
}
