package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/internal/flight"
	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/layers/snapshot"
)

// Packer packs layers. Users who want the same layer at the same time share the
// work.
type Packer struct {
	Layers   *snapshot.Store
	Blobs    *blob.Store
	Segments *compress.SegmentCache
	// Workers is how many segments of layers are compressed at once; 0 is
	// GOMAXPROCS.
	Workers int

	flights flight.Group[packed]
}

// PackOptions says what form packed layers have.
type PackOptions struct {
	Compression compress.Algorithm `json:"compression,omitempty"` // "" is gzip
	Level       int                `json:"level,omitempty"`
	// Force compresses layers anew that exist in another compression, those
	// of base images among them.
	Force bool `json:"force,omitempty"`
	// ModTime is the time of the files of layers made here; zero is
	// layers.DefaultModTime. Layers that came as blobs are as they are.
	ModTime time.Time `json:"modTime,omitzero"`
	// Docker: Docker media types instead of OCI's.
	Docker bool `json:"docker,omitempty"`
	// Blobs are the blobs that the manifest of a base image names. They win
	// over others that are known of a layer (the same layer may be in another
	// image in other packing), unless Force wants another compression. Without
	// them the manifest of an image depends on what else is in the store.
	Blobs map[layers.ID]ocispec.Descriptor `json:"blobs,omitempty"`
	// Fields are more fields of the configuration, in JSON.
	Fields map[string]json.RawMessage `json:"-"`
	// Guard knows the secrets that must not be in layers made here, nor in
	// configurations and manifests: a LeakError tells of one. nil: nothing is
	// searched.
	Guard *leak.Guard `json:"-"`
	// Follow is given a reader of each blob that is made here, while it is
	// made, of a layer that was never pushed. It must close it and not wait
	// for it. The blob may come to nothing. What can be read has been searched:
	// nothing of a value that Guard knows is in it. nil: nobody reads.
	Follow func(layers.ID, *blob.Follower) `json:"-"`
	// Packed is told of each layer of an image as soon as it is packed, in any
	// order; nil: nobody is.
	Packed func(layers.ID, blob.Ref) `json:"-"`
}

func (o PackOptions) algorithm() compress.Algorithm {
	if o.Compression == "" {
		return compress.Gzip
	}
	return o.Compression
}

// times is the part of the options that the diffID depends on, as a key; empty
// for the usual.
func (o PackOptions) times() string {
	if o.ModTime.IsZero() || o.ModTime.Equal(layers.DefaultModTime) {
		return ""
	}
	return "mtime=" + o.ModTime.UTC().Format(time.RFC3339Nano)
}

// variant is the part of the options that the blob of one compression depends
// on, as a key of snapshot.Layer.Variants; empty for the usual.
func (o PackOptions) variant() string {
	v := o.times()
	if o.Compression == compress.Estargz {
		v += ",estargz"
	}
	if o.Level != 0 {
		v += fmt.Sprintf(",level=%d", o.Level)
	}
	return strings.TrimPrefix(v, ",")
}

// indexed reports whether the layer gets an index of its files, which is part of
// what its diffID is the digest of.
func (o PackOptions) indexed() bool { return o.Compression == compress.Estargz }

func (o PackOptions) tar() layers.TarOptions {
	t := layers.TarOptions{ModTime: o.ModTime}
	if t.ModTime.IsZero() {
		t.ModTime = layers.DefaultModTime
	}
	return t
}

// packed is a layer's blob, without the way to it.
type packed struct {
	desc   ocispec.Descriptor
	diffID digest.Digest
	marks  []string      // of values that it was searched for
	tar    digest.Digest // of the stream that was packed: the diffID, but for an indexed layer
	made   *blob.Made    // nil if an equal blob was there
}

// pulled reports whether a layer came as a blob: it is named by its diffID then,
// and file times are as they came.
func pulled(l snapshot.Layer) bool {
	return !l.Cached && l.DiffID != "" && l.DiffID.Validate() == nil && string(l.ID) == l.DiffID.Encoded()
}

// reachable reports whether a blob is in the store, or a cache that the layer
// came from has it.
func (p *Packer) reachable(l snapshot.Layer, desc ocispec.Descriptor) bool {
	return p.have(desc) || l.Cached && len(l.Origins) > 0
}

// known is what is remembered of the layer under a key of
// snapshot.Layer.Variants.
func known(l snapshot.Layer, variant string) snapshot.Packed {
	if variant == "" {
		return snapshot.Packed{DiffID: l.DiffID, Blobs: l.Blobs}
	}
	return l.Variants[variant]
}

// DiffID returns the layer's diffID, and computes and remembers it if needed:
// a recipe is packed into a blob then (its contents are at hand now), a
// directory only hashed.
func (p *Packer) DiffID(ctx context.Context, id layers.ID, o PackOptions, src snapshot.Sources) (digest.Digest, error) {
	l, err := p.Layers.Layer(id)
	if err != nil {
		return "", err
	}
	if o.indexed() && (!pulled(l) || o.Force) {
		_, d, err := p.Pack(ctx, id, o, src)
		return d, err
	}
	if pulled(l) {
		return l.DiffID, nil
	}
	marks, err := unsearched(l, o.Guard)
	if err != nil {
		return "", err
	}
	if d := known(l, o.times()).DiffID; d != "" {
		if l.Dir || slices.ContainsFunc(known(l, o.times()).Blobs, func(b ocispec.Descriptor) bool { return p.reachable(l, b) }) {
			if len(marks) > 0 {
				err = p.search(ctx, l, o, src, marks)
			}
			return d, err
		}
	}
	if l.Recipe && !l.Dir {
		_, d, err := p.Pack(ctx, id, o, src)
		return d, err
	}
	key := strings.Join(append([]string{"diff", string(id), o.times()}, marks...), "\x00")
	done, err := p.flights.Do(ctx, key, func(ctx context.Context) (packed, error) {
		h := sha256.New()
		s := searchFor(o, marks)
		if err := p.writeTar(ctx, id, o, src, s.Beside(h)); err != nil {
			return packed{}, err
		}
		if err := p.judge(ctx, id, o, src, s); err != nil {
			return packed{}, err
		}
		done := packed{diffID: digest.NewDigest(digest.SHA256, h), marks: marks}
		return done, p.remember(id, o.times(), done)
	})
	if err != nil {
		return "", fmt.Errorf("hash layer %s: %w", id, err)
	}
	return done.diffID, nil
}

// Pack returns the layer as a blob, and makes it if needed. The diffID is
// computed in the same pass. A layer that came as a blob keeps that one, in
// whatever compression, unless o.Force is set or it is not compressed at all; it
// is not fetched: the Ref streams it.
func (p *Packer) Pack(ctx context.Context, id layers.ID, o PackOptions, src snapshot.Sources) (blob.Ref, digest.Digest, error) {
	l, err := p.Layers.Layer(id)
	if err != nil {
		return blob.Ref{}, "", err
	}
	variant := o.variant()
	if pulled(l) {
		variant = PackOptions{Level: o.Level, Compression: o.Compression}.variant()
	}
	marks, err := unsearched(l, o.Guard)
	if err != nil {
		return blob.Ref{}, "", err
	}
	if desc, ok := p.choose(l, o, variant); ok {
		if len(marks) > 0 {
			if err := p.search(ctx, l, o, src, marks); err != nil {
				return blob.Ref{}, "", err
			}
		}
		diffID, k := l.DiffID, known(l, variant)
		if !pulled(l) || o.indexed() && hasBlob(k.Blobs, desc.Digest) {
			diffID = k.DiffID
		}
		return p.ref(l, desc, nil, o, src), diffID, nil
	}
	key := strings.Join(append([]string{"pack", string(id), variant, string(o.algorithm())}, marks...), "\x00")
	done, err := p.flights.Do(ctx, key, func(ctx context.Context) (packed, error) {
		l, err := p.Layers.Layer(id)
		if err != nil {
			return packed{}, err
		}
		s := searchFor(o, marks)
		done, err := p.make(ctx, l, o, src, s)
		if err == nil {
			err = p.judge(ctx, id, o, src, s)
		}
		if err != nil {
			return packed{}, err
		}
		done.marks = marks
		return done, p.remember(id, variant, done)
	})
	if err != nil {
		return blob.Ref{}, "", fmt.Errorf("pack layer %s: %w", id, err)
	}
	return p.ref(l, done.desc, done.made, o, src), done.diffID, nil
}

// searchFor returns what looks for values in a layer that is packed now; nil if
// there are none.
func searchFor(o PackOptions, marks []string) *leak.Search {
	if len(marks) == 0 {
		return nil
	}
	return o.Guard.Search()
}

// choose returns the blob that serves for o, if there is one.
func (p *Packer) choose(l snapshot.Layer, o PackOptions, variant string) (ocispec.Descriptor, bool) {
	want := o.algorithm()
	k := known(l, variant)
	if !pulled(l) {
		for _, b := range k.Blobs {
			if k.DiffID != "" && algorithm(b) == want && p.reachable(l, b) {
				return b, true
			}
		}
		return ocispec.Descriptor{}, false
	}
	blobs := k.Blobs
	if variant != "" && !o.Force { // a level alone is no reason to compress anew
		blobs = append(slices.Clone(l.Blobs), blobs...)
	}
	if b, ok := o.Blobs[l.ID]; ok && (algorithm(b) == want || !o.Force && algorithm(b) != compress.None) {
		return b, true
	}
	var far *ocispec.Descriptor
	for i, b := range blobs {
		if algorithm(b) == want {
			if p.have(b) {
				return b, true
			}
			if far == nil {
				far = &blobs[i]
			}
		}
	}
	switch {
	case far != nil && len(l.Origins) > 0:
		return *far, true
	case len(blobs) == 0 || o.Force:
		return ocispec.Descriptor{}, false
	}
	// The first is the one that it came as. Archives have layers that are not
	// compressed at all; these are not meant to stay so.
	return blobs[0], algorithm(blobs[0]) != compress.None || !p.have(blobs[0])
}

// make packs a layer: from one of its blobs, or from its files.
func (p *Packer) make(ctx context.Context, l snapshot.Layer, o PackOptions, src snapshot.Sources, s *leak.Search) (packed, error) {
	from := known(l, o.times())
	if pulled(l) {
		from = known(l, "")
	}
	blobs := slices.Clone(from.Blobs)
	// One that is here before one that must be fetched.
	slices.SortStableFunc(blobs, func(a, b ocispec.Descriptor) int { return order(p.have(b)) - order(p.have(a)) })
	if len(blobs) > 0 && (p.reachable(l, blobs[0]) || pulled(l)) {
		done, err := p.compress(ctx, l, o, s, func(w io.Writer) error { return p.writeBlob(ctx, l, blobs[0], src, w) })
		if err == nil && done.tar != from.DiffID && done.tar != "" {
			return packed{}, fmt.Errorf("blob %s has the diffID %s instead of %s", blobs[0].Digest, done.tar, from.DiffID)
		}
		return done, err
	}
	return p.compress(ctx, l, o, s, func(w io.Writer) error { return p.writeTar(ctx, l.ID, o, src, w) })
}

func order(b bool) int {
	if b {
		return 1
	}
	return 0
}

// compress makes a blob of the tar stream that write writes, and shows it to s.
func (p *Packer) compress(ctx context.Context, l snapshot.Layer, o PackOptions, s *leak.Search, write func(io.Writer) error) (packed, error) {
	w, err := p.Blobs.Create()
	if err != nil {
		return packed{}, err
	}
	defer w.Close()
	h := sha256.New()
	c, err := p.compressor(w, o)
	if err != nil {
		return packed{}, err
	}
	if o.Follow != nil && len(l.Origins) == 0 {
		if f, err := w.Follow(); err == nil {
			o.Follow(l.ID, f)
		}
	}
	gate := s.Gate(io.MultiWriter(h, c))
	buffered := bufio.NewWriterSize(gate, 128<<10)
	err = write(buffered)
	if err == nil {
		err = errors.Join(buffered.Flush(), gate.Close())
	}
	if cerr := c.Close(); err == nil { // ends the compressor's goroutines in any case
		err = cerr
	}
	if err != nil {
		return packed{}, err
	}
	if ctx.Err() != nil {
		return packed{}, context.Cause(ctx)
	}
	if _, found := s.Found(); found {
		return packed{}, nil // not to be kept
	}
	d, size, err := w.Commit()
	if err != nil {
		return packed{}, err
	}
	if z, ok := c.(*compress.Writer); ok {
		z.Keep(d.Encoded())
	}
	done := packed{
		desc: ocispec.Descriptor{MediaType: o.algorithm().MediaType(), Digest: d, Size: size},
		tar:  digest.NewDigest(digest.SHA256, h),
		made: w.Made(),
	}
	done.diffID = done.tar
	if z, ok := c.(*compress.EstargzWriter); ok {
		done.diffID = z.DiffID()
		done.desc.Annotations = map[string]string{
			compress.AnnotationTOC:  z.TOC().String(),
			compress.AnnotationSize: strconv.FormatInt(z.Size(), 10),
		}
	}
	return done, nil
}

func (p *Packer) compressor(w io.Writer, o PackOptions) (io.WriteCloser, error) {
	if o.indexed() {
		return compress.NewEstargz(w, o.Level)
	}
	return compress.NewWriter(w, compress.Options{
		Algorithm: o.algorithm(), Level: o.Level, Workers: p.workers(), Segments: p.Segments,
	})
}

func (p *Packer) writeTar(ctx context.Context, id layers.ID, o PackOptions, src snapshot.Sources, w io.Writer) error {
	open := func(e layers.Entry) (io.ReadCloser, error) { return p.Layers.OpenEntry(ctx, id, e, src) }
	return layers.WriteTar(ctx, w, p.Layers.Entries(ctx, id, src), open, o.tar())
}

func (p *Packer) writeBlob(ctx context.Context, l snapshot.Layer, desc ocispec.Descriptor, src snapshot.Sources, w io.Writer) error {
	r, err := p.open(ctx, l, desc, src)
	if err != nil {
		return err
	}
	defer r.Close()
	z, err := compress.NewReader(r)
	if err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	defer z.Close()
	if _, err := io.Copy(w, z); err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	// To the end, where the digest is checked.
	_, err = io.Copy(io.Discard, r)
	return err
}

// remember records a layer's diffID and blob.
func (p *Packer) remember(id layers.ID, variant string, done packed) error {
	var differs digest.Digest
	err := p.Layers.Update(id, func(l *snapshot.Layer) {
		k := known(*l, variant)
		if k.DiffID != "" && k.DiffID != done.diffID {
			differs = k.DiffID
			return
		}
		k.DiffID = done.diffID
		l.AddSearched(done.marks)
		if done.desc.Digest != "" && !hasBlob(k.Blobs, done.desc.Digest) {
			k.Blobs = append(k.Blobs, done.desc)
		}
		if variant == "" {
			l.DiffID, l.Blobs = k.DiffID, k.Blobs
			return
		}
		if l.Variants == nil {
			l.Variants = map[string]snapshot.Packed{}
		}
		l.Variants[variant] = k
	})
	if err == nil && differs != "" {
		return fmt.Errorf("layer %s has the diffID %s now, and had %s: its files have been changed", id, done.diffID, differs)
	}
	return err
}

// annotationRewritten tells of a layer that its times are this one, in seconds
// since 1970; BuildKit's name for it.
const annotationRewritten = "buildkit/rewritten-timestamp"

// ref gives the way to a layer's blob, which has just been made if made is not
// nil.
func (p *Packer) ref(l snapshot.Layer, desc ocispec.Descriptor, made *blob.Made, o PackOptions, src snapshot.Sources) blob.Ref {
	stored := desc
	if o.Docker {
		desc.MediaType = manifest.DockerType(desc.MediaType)
	} else {
		desc.MediaType = manifest.OCIType(desc.MediaType)
	}
	desc.URLs = nil
	if !o.ModTime.IsZero() && !pulled(l) {
		desc.Annotations = maps.Clone(desc.Annotations)
		if desc.Annotations == nil {
			desc.Annotations = map[string]string{}
		}
		desc.Annotations[annotationRewritten] = strconv.FormatInt(o.ModTime.Unix(), 10)
	}
	return blob.Ref{
		Desc: desc,
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			if made != nil {
				if r, err := made.Open(); err == nil {
					return r, nil
				}
			}
			return p.open(ctx, l, stored, src)
		},
		Origins: l.Origins,
	}
}

// open opens a layer's blob, in the store or where the sources have it.
func (p *Packer) open(ctx context.Context, l snapshot.Layer, desc ocispec.Descriptor, src snapshot.Sources) (io.ReadCloser, error) {
	r, err := p.Blobs.Reader(desc.Digest, desc.Size)
	if errors.Is(err, blob.ErrNotFound) && src.Blob != nil {
		return src.Blob(ctx, l, desc)
	}
	return r, err
}

func (p *Packer) have(desc ocispec.Descriptor) bool {
	size, err := p.Blobs.Stat(desc.Digest)
	return err == nil && size == desc.Size
}

func (p *Packer) workers() int {
	if p.Workers > 0 {
		return p.Workers
	}
	return runtime.GOMAXPROCS(0)
}

// Layers packed at once: enough to read one while another is compressed. Each
// may use all processors, since often only one layer is large, and has so many
// segments in memory.
const packsAtOnce = 2

// packAll packs the layers of a tree.
func (p *Packer) packAll(ctx context.Context, t layers.Tree, o PackOptions, src snapshot.Sources) ([]blob.Ref, []digest.Digest, error) {
	refs := make([]blob.Ref, len(t))
	diffIDs := make([]digest.Digest, len(t))
	err := p.each(ctx, t, func(ctx context.Context, i int) (err error) {
		refs[i], diffIDs[i], err = p.Pack(ctx, t[i], o, src)
		if err == nil && o.Packed != nil {
			o.Packed(t[i], refs[i])
		}
		return err
	})
	return refs, diffIDs, err
}

func (p *Packer) each(ctx context.Context, t layers.Tree, fn func(ctx context.Context, i int) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(packsAtOnce, p.workers()))
	for i := range t {
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			return fn(gctx, i)
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func hasBlob(blobs []ocispec.Descriptor, d digest.Digest) bool {
	return slices.ContainsFunc(blobs, func(b ocispec.Descriptor) bool { return b.Digest == d })
}

// algorithm is the compression that a layer's descriptor tells.
func algorithm(desc ocispec.Descriptor) compress.Algorithm {
	mediaType := desc.MediaType
	switch {
	case desc.Annotations[compress.AnnotationTOC] != "":
		return compress.Estargz
	case strings.HasSuffix(mediaType, "gzip"):
		return compress.Gzip
	case strings.HasSuffix(mediaType, "zstd"):
		return compress.Zstd
	}
	return compress.None
}
