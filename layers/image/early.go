package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
)

// Early is an archive file that begins before there are manifests: layers are
// written to it while they are packed. Layers come first in an archive, in the
// order of the manifests, so that a layer's place is known as soon as those
// before it are complete. Its header, which has digest and size, is filled in
// last.
//
// What comes of that is a head start and nothing else. What could not be written
// early, WriteOCI and WriteDocker write, and the bytes are the same in any case.
type Early struct {
	layers []layers.ID
	create func() (*os.File, error)
	cancel context.CancelFunc
	done   chan struct{} // closed when no layer is written any more

	mu      sync.Mutex
	changed sync.Cond
	over    bool // nothing more is told
	making  map[layers.ID]*blob.Follower
	packed  map[layers.ID]blob.Ref

	// Until done they belong to the goroutine that writes.
	file  *os.File // nil before there is something to write
	tar   *tarWriter
	blobs []earlyBlob

	given bool // the file is another's
}

// earlyBlob is a layer that is in the file.
type earlyBlob struct {
	digest digest.Digest
	end    int64 // where the next file begins
}

// A file is only begun for a layer that gets larger than this, in bytes.
const earlySize = 4 << 20

// NewEarly begins an archive of images with these layers: those of the first
// image, then those of the second, and so on. The archive is written to the file
// that create opens, which must be empty. It may never be called: not if all
// layers are there, as the archive may be then, too. Follow and Packed are for
// PackOptions. Close must be called.
func NewEarly(ctx context.Context, ids []layers.ID, create func() (*os.File, error)) *Early {
	e := &Early{layers: ids, create: create, done: make(chan struct{}), making: map[layers.ID]*blob.Follower{}, packed: map[layers.ID]blob.Ref{}}
	e.changed.L = &e.mu
	ctx, e.cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, e.end)
	go func() {
		defer close(e.done)
		defer stop()
		defer e.end()
		// Who writes the rest of the archive runs into the same error.
		_ = e.run(ctx)
	}()
	return e
}

// Follow takes a layer that is being made, and closes f.
func (e *Early) Follow(id layers.ID, f *blob.Follower) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, packed := e.packed[id]
	if e.over || packed || e.making[id] != nil {
		f.Close()
		return
	}
	e.making[id] = f
	e.changed.Broadcast()
}

// Packed takes a layer that is complete.
func (e *Early) Packed(id layers.ID, ref blob.Ref) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.making[id]; f != nil {
		f.Close() // nobody has begun to read it
		delete(e.making, id)
	}
	e.packed[id] = ref
	e.changed.Broadcast()
}

// end ends all waiting for layers.
func (e *Early) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	for id, f := range e.making {
		f.Close()
		delete(e.making, id)
	}
	e.changed.Broadcast()
}

// File returns the file with what could be written early, once all layers have
// been told of; it is the caller's then. It is nil if none was begun.
func (e *Early) File() *os.File {
	if e == nil {
		return nil
	}
	e.end()
	<-e.done
	e.given = e.file != nil
	return e.file
}

// Close ends what is still being done, and removes the file unless File has given
// it away.
func (e *Early) Close() error {
	e.cancel()
	if e.given || e.File() == nil {
		return nil
	}
	return errors.Join(e.file.Close(), os.Remove(e.file.Name()))
}

// run writes layers until there are none, or one can't be written.
func (e *Early) run(ctx context.Context) error {
	var before []file // those before the first that is large
	for _, id := range e.layers {
		f, ref, err := e.next(id)
		if err != nil {
			return err
		}
		if f == nil && e.file == nil {
			before = append(before, blobFile(ref))
			continue
		}
		if err := e.begin(ctx, before); err != nil {
			return err
		}
		if f != nil {
			err = e.follow(ctx, f)
		} else {
			err = e.write(ctx, blobFile(ref))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errOver = errors.New("the layer was not packed")

// next waits until a layer is complete, or is being made and large enough.
func (e *Early) next(id layers.ID) (*blob.Follower, blob.Ref, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		if ref, ok := e.packed[id]; ok {
			return nil, ref, nil
		}
		f := e.making[id]
		switch {
		case e.over:
			return nil, blob.Ref{}, errOver
		case f == nil:
			e.changed.Wait()
			continue
		}
		e.mu.Unlock()
		large := f.Wait(earlySize)
		e.mu.Lock()
		if e.making[id] != f {
			continue // somebody has closed it
		}
		delete(e.making, id)
		if large {
			return f, blob.Ref{}, nil
		}
		f.Close()
	}
}

// begin makes the file, with the layers before, unless there is one.
func (e *Early) begin(ctx context.Context, before []file) (err error) {
	if e.file != nil {
		return nil
	}
	if e.file, err = e.create(); err != nil {
		return err
	}
	e.tar = newTarWriter(e.file)
	for _, f := range before {
		if err := e.write(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// write writes a layer that is complete.
func (e *Early) write(ctx context.Context, f file) error {
	if e.has(f.desc.Digest) {
		return nil
	}
	if err := e.tar.file(ctx, f); err != nil {
		return err
	}
	return e.wrote(f.desc.Digest)
}

// follow writes a layer that is being made.
func (e *Early) follow(ctx context.Context, from *blob.Follower) error {
	defer from.Close()
	defer context.AfterFunc(ctx, func() { from.Close() })()
	if err := e.tar.parents(blobPath(digest.Canonical.FromString(""))); err != nil {
		return err
	}
	if err := e.tar.w.Flush(); err != nil {
		return err
	}
	start, err := e.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := e.file.Seek(headerSize, io.SeekCurrent); err != nil {
		return err
	}
	// The wrapper hides the file's ReadFrom, which would take a smaller buffer.
	if _, err := io.CopyBuffer(struct{ io.Writer }{e.file}, from, e.tar.buffer); err != nil {
		return err
	}
	d, size := from.Blob()
	if e.has(d) {
		_, err := e.file.Seek(start, io.SeekStart)
		return err
	}
	header, err := tarHeader(blobPath(d), size)
	if err == nil && len(header) != headerSize {
		err = fmt.Errorf("the header of %s has %d bytes", d, len(header))
	}
	if err != nil {
		return err
	}
	if _, err := e.file.WriteAt(header, start); err != nil {
		return err
	}
	if err := e.tar.pad(size); err != nil {
		return err
	}
	return e.wrote(d)
}

func (e *Early) has(d digest.Digest) bool {
	for _, b := range e.blobs {
		if b.digest == d {
			return true
		}
	}
	return false
}

// wrote notes that a layer is in the file, which ends with it.
func (e *Early) wrote(d digest.Digest) error {
	if err := e.tar.w.Flush(); err != nil {
		return err
	}
	end, err := e.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	e.blobs = append(e.blobs, earlyBlob{d, end})
	return nil
}

// WriteOCI is the function WriteOCI. If w is what File has returned, the layers
// that are in there are not written again; a nil Early has none.
func (e *Early) WriteOCI(ctx context.Context, w io.Writer, bundles []Bundle) error {
	files, err := layoutFiles(bundles)
	if err != nil {
		return err
	}
	return e.writeRest(ctx, w, files)
}

// WriteDocker is to the function WriteDocker what WriteOCI is to its.
func (e *Early) WriteDocker(ctx context.Context, w io.Writer, bundles []Bundle) error {
	files, err := dockerFiles(bundles)
	if err != nil {
		return err
	}
	return e.writeRest(ctx, w, files)
}

// writeRest writes the files of an archive that w does not have yet.
func (e *Early) writeRest(ctx context.Context, w io.Writer, files []file) error {
	t := newTarWriter(w)
	begun := e != nil && e.given && w == io.Writer(e.file)
	if begun {
		n, end := e.common(files)
		if _, err := e.file.Seek(end, io.SeekStart); err != nil {
			return err
		}
		for _, f := range files[:n] {
			t.enter(f.name)
		}
		files = files[n:]
	}
	for _, f := range files {
		if err := t.file(ctx, f); err != nil {
			return err
		}
	}
	if err := t.close(); err != nil || !begun {
		return err
	}
	// More may have been written early than was wanted.
	end, err := e.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	return e.file.Truncate(end)
}

// common returns how many of the files have been written, and where they end.
func (e *Early) common(files []file) (n int, end int64) {
	for n < min(len(e.blobs), len(files)) && e.blobs[n].digest == files[n].desc.Digest {
		end = e.blobs[n].end
		n++
	}
	return n, end
}
