package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/progress"
)

// Mount is the object of a cache mount's directory: a tar stream, cut by
// content into chunks, so that after a small change most of them are in the
// cache already. Unlike other objects it is replaced when the directory has
// changed: who writes last wins, as whatever is in a cache mount is good.
type Mount struct {
	Chunks []ocispec.Descriptor `json:"chunks"`
}

const chunkType = "application/vnd.strake.cache.chunk.v1+zstd"

// maxChunk bounds a chunk, unpacked.
const maxChunk = 8 << 20

const mountPrefix = schema + "c-"

// IsMutable reports whether the object of a name may change.
func IsMutable(name string) bool { return strings.HasPrefix(name, mountPrefix) }

// Mount writes the directory of a cache mount, in the background, if that was
// asked for. lock keeps steps from changing it meanwhile.
func (e *Exporter) Mount(id, dir string, lock func(context.Context) (unlock func(), err error)) {
	if !e.o.Mounts {
		return
	}
	name := mountPrefix + id
	e.background(name, func(ctx context.Context) error {
		unlock, err := lock(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		err = e.mount(ctx, name, dir)
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("cache mount %.12s: %w", id, err)
		}
		return err
	})
}

func (e *Exporter) mount(ctx context.Context, name, dir string) (err error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	defer enc.Close()
	root, err := os.OpenRoot(dir) // steps may have put links anywhere
	if err != nil {
		return err
	}
	defer root.Close()
	var m Mount
	var blobs []blob.Ref
	defer func() {
		for _, b := range blobs { // they are of no use here
			err = errors.Join(err, e.packer.Blobs.Remove(b.Desc.Digest))
		}
	}()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		open := func(entry layers.Entry) (io.ReadCloser, error) {
			return root.OpenFile(entry.Path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
		}
		w.CloseWithError(layers.WriteTar(ctx, w, layers.Walk(dir), open, layers.TarOptions{NoWhiteouts: true}))
	}()
	search := e.o.Pack.Guard.Search()
	err = compress.Cut(r, func(segment []byte) error {
		if search != nil {
			_, _ = search.Write(segment)
		}
		d, size, err := e.packer.Blobs.Put(bytes.NewReader(enc.EncodeAll(segment, nil)), "", -1)
		if err != nil {
			return err
		}
		desc := ocispec.Descriptor{MediaType: chunkType, Digest: d, Size: size}
		m.Chunks = append(m.Chunks, desc)
		blobs = append(blobs, blob.Ref{Desc: desc, Open: func(context.Context) (io.ReadCloser, error) { return e.packer.Blobs.Reader(d, size) }})
		return nil
	})
	r.CloseWithError(errors.New("not wanted any more"))
	<-done
	if found, ok := search.Found(); ok {
		return &image.LeakError{Secret: found.Secret, Form: found.Form, Part: "what steps keep in a cache mount"}
	}
	if err != nil {
		return err
	}
	object, err := encode(m)
	if err != nil {
		return err
	}
	if have, err := e.backend.Get(ctx, name); err == nil && bytes.Equal(have, object) {
		return nil
	}
	e.o.Progress(progress.Event{Time: time.Now(), Kind: progress.Status, Vertex: e.vertex, Action: fmt.Sprintf("cache mount in %d chunks", len(blobs))})
	return e.put(ctx, name, object, blobs, false)
}

// Mount returns the content of a cache mount as a tar stream, if the cache has
// it and was asked for it. fetch opens a blob, verified.
func (im *Importer) Mount(ctx context.Context, id string, fetch func(ctx context.Context, origin string, desc ocispec.Descriptor) (io.ReadCloser, error)) (io.ReadCloser, bool) {
	if !im.Mounts {
		return nil, false
	}
	data, ok := im.get(ctx, mountPrefix+id)
	var m Mount
	if !ok || decode(data, &m) != nil {
		return nil, false
	}
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(func() error {
			dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxChunk), zstd.WithDecoderConcurrency(1))
			if err != nil {
				return err
			}
			defer dec.Close()
			for _, desc := range m.Chunks {
				if desc.Size < 0 || desc.Size > maxChunk {
					return fmt.Errorf("chunk of %d bytes", desc.Size)
				}
				b, err := fetch(ctx, im.backend.Origin(), desc)
				if err != nil {
					return err
				}
				packed, err := io.ReadAll(b)
				if err := errors.Join(err, b.Close()); err != nil {
					return err
				}
				chunk, err := dec.DecodeAll(packed, nil)
				if err != nil {
					return err
				}
				if _, err := w.Write(chunk); err != nil {
					return err
				}
			}
			return nil
		}())
	}()
	return r, true
}
