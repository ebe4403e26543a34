// Package export delivers what was built: to the image store, a registry, an
// archive, a directory.
//
// An export packs what its output wants and no more: an image in the store is
// hashed but not compressed, a directory neither. Nothing half-written is left
// at the destination when an export fails or is canceled: files are written
// under a temporary name and renamed, directories filled beside their place.
//
//	e := &export.Exporter{Packer: packer, Images: images, Layers: layers, Registry: client}
//	response, err := e.Export(ctx, built, export.Output{Type: "oci", Dest: "app.tar"})
package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/registry/transfer"
)

// Image is one image to be delivered.
type Image struct {
	Target  plan.Target
	Tree    layers.Tree
	Sources snapshot.Sources
	// Blobs are what the manifests of base images name for layers of Tree.
	Blobs map[layers.ID]ocispec.Descriptor
	// Fields returns more fields of the configuration of an image with a tree;
	// nil: there are none. Its layers are packed as the options say.
	Fields func(context.Context, layers.Tree, image.PackOptions) (map[string]json.RawMessage, error)
	// Attestations are what is said of it.
	Attestations []attest.Attestation
}

// Exporter delivers images.
type Exporter struct {
	Packer   *image.Packer
	Images   *image.Store
	Layers   *snapshot.Store
	Registry *registry.Client
	// Stdout is what the destination "-" means.
	Stdout   io.Writer
	Progress progress.Func
}

// Export delivers images (one for each platform) to an output. The response
// has the keys of buildx's --metadata-file: "containerimage.digest" (of the
// manifest or index, or of the configuration of an image that was only stored),
// "containerimage.config.digest" (of a single image), "image.name" and
// "containerimage.descriptor". Nothing half-written is left at the destination
// when it fails.
func (e *Exporter) Export(ctx context.Context, images []Image, o Output) (response map[string]any, err error) {
	if err := o.check(len(images)); err != nil || o.Type == TypeNone {
		return nil, err
	}
	if o.RewriteTimes && o.Epoch == nil {
		return nil, fmt.Errorf("-o type=%s: rewrite-timestamp needs SOURCE_DATE_EPOCH", o.Type)
	}
	x := &run{Exporter: e, o: o, images: images, created: layers.DefaultModTime}
	if o.Epoch != nil {
		x.created = *o.Epoch
	}
	if o.RewriteTimes {
		x.o.Pack.ModTime = *o.Epoch
	}
	x.id = "export " + o.Type + " " + o.Dest + " " + strings.Join(o.Names, ",")
	x.event(progress.Event{Kind: progress.Start, Name: x.title()})
	defer func() {
		done := progress.Event{Kind: progress.Done}
		if err != nil {
			done.Error = err.Error()
			if ctx.Err() != nil {
				done.Error, err = "canceled", context.Cause(ctx)
			}
		}
		x.event(done)
	}()
	switch o.Type {
	case TypeImage, TypeRegistry:
		return x.image(ctx)
	case TypeOCI, TypeDocker:
		return x.archive(ctx)
	case TypeLocal:
		return nil, x.local(ctx)
	default:
		return nil, x.tar(ctx)
	}
}

// run is one Export.
type run struct {
	*Exporter
	o       Output
	images  []Image
	created time.Time
	id      string // of the vertex
	// early is the push to the first name.
	early *registry.Early
	// begun is the archive to which layers are written early; nil: none.
	begun *image.Early
	// place renames a finished archive to its destination and closes it; nil
	// for nothing special.
	place func(f *os.File, dest string) error
}

func (x *run) title() string {
	switch x.o.Type {
	case TypeImage:
		return "exporting to image"
	case TypeRegistry:
		return "exporting to registry"
	case TypeOCI:
		return "exporting to oci image format"
	case TypeDocker:
		return "exporting to docker image format"
	case TypeTar:
		return "exporting to client tarball"
	}
	return "exporting to client directory"
}

func (x *run) event(ev progress.Event) {
	if x.Progress == nil || x.id == "" {
		return
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	ev.Vertex = x.id
	x.Progress(ev)
}

// time is when an image was made: the epoch of the output, else that of the
// build.
func (x *run) time(img Image) time.Time {
	if x.o.Epoch == nil && img.Target.Image.Created != nil {
		return *img.Target.Image.Created
	}
	return x.created
}

// status tells what is being done.
func (x *run) status(format string, args ...any) {
	x.event(progress.Event{Kind: progress.Status, Action: fmt.Sprintf(format, args...)})
}

// packOptions says how the layers of an image are packed.
func (x *run) packOptions(img Image) image.PackOptions {
	o := x.o.Pack
	o.Blobs = img.Blobs
	return o
}

// result is what an output with manifests delivers.
type result struct {
	image.Bundle
	packed []*image.Packed // the images, of which the bundle has more if it is an index
	// said are the attestation manifests of the images, nil for none.
	said []*image.Packed
	// referrers are manifests that refer to the images.
	referrers []*image.Packed
}

// fullOptions are packOptions with the fields of the configuration.
func (x *run) fullOptions(ctx context.Context, img Image) (image.PackOptions, error) {
	o := x.packOptions(img)
	if img.Fields == nil {
		return o, nil
	}
	var err error
	o.Fields, err = img.Fields(ctx, img.Tree, o)
	return o, err
}

// pack makes manifests of all images, and an index if there is more than one
// manifest to deliver.
func (x *run) pack(ctx context.Context) (*result, error) {
	alone := len(x.images) == 1
	index := !alone || x.attested() && !x.o.Referrers
	if err := x.checkAnnotations(index); err != nil {
		return nil, err
	}
	if index && x.o.Type == TypeDocker {
		return nil, errors.New("docker archives can hold one image and no attestations: use type=oci, or leave --attest out")
	}
	x.status("exporting layers")
	r := &result{}
	for _, img := range x.images {
		o, err := x.fullOptions(ctx, img)
		if err != nil {
			return nil, err
		}
		packed, err := x.Packer.Build(ctx, img.Target.Image, img.Tree, o, x.time(img), x.o.annotations(LevelManifest, &img.Target.Platform), img.Sources)
		if err != nil {
			return nil, err
		}
		packed.Desc.Annotations = x.o.annotations(LevelManifestDescriptor, &img.Target.Platform)
		x.status("exporting manifest %s", packed.Desc.Digest)
		r.packed = append(r.packed, packed)
		said, err := x.attest(ctx, img, packed, alone)
		if err != nil {
			return nil, err
		}
		r.said = append(r.said, said)
		if said != nil {
			r.referrers = append(r.referrers, said)
		}
	}
	if !index {
		r.Bundle = image.Single(r.packed[0], x.o.Names...)
		return r, nil
	}
	all := slices.Clone(r.packed)
	if !x.o.Referrers {
		all, r.referrers = append(all, r.referrers...), nil
	}
	return r, x.index(r, all)
}

// index makes the bundle an index of manifests.
func (x *run) index(r *result, all []*image.Packed) error {
	desc, raw, err := image.Index(all, x.o.Pack.Docker, x.o.annotations(LevelIndex, nil))
	if err != nil {
		return err
	}
	desc.Annotations = x.o.annotations(LevelIndexDescriptor, nil)
	x.status("exporting manifest list %s", desc.Digest)
	r.Bundle = image.Bundle{Desc: desc, Raw: raw, Images: all, Names: x.o.Names}
	return nil
}

// attested reports whether something is to be said of an image.
func (x *run) attested() bool {
	return slices.ContainsFunc(x.images, func(img Image) bool { return len(x.wanted(img, len(x.images) == 1)) > 0 })
}

// image stores the images, and pushes them where that is wanted.
func (x *run) image(ctx context.Context) (map[string]any, error) {
	push := x.o.Push || x.o.Type == TypeRegistry
	var made *result
	var configs [][]byte
	if push {
		early, err := x.Registry.Early(ctx, x.pushName(x.o.Names[0]), x.event)
		if err != nil {
			return nil, err
		}
		defer early.Close()
		x.early = early
		x.o.Pack.Follow = func(_ layers.ID, f *blob.Follower) { early.Send(f) }
	}
	// What is said of an image is said of its manifest.
	if push || x.attested() {
		var err error
		if made, err = x.pack(ctx); err != nil {
			return nil, err
		}
		for _, p := range made.packed {
			c, err := x.Packer.Blobs.Bytes(p.Config.Desc.Digest)
			if err != nil {
				return nil, err
			}
			configs = append(configs, c)
		}
	} else {
		x.status("exporting layers")
		for _, img := range x.images {
			o, err := x.fullOptions(ctx, img)
			if err != nil {
				return nil, err
			}
			c, err := x.Packer.Config(ctx, img.Target.Image, img.Tree, o, x.time(img), img.Sources)
			if err != nil {
				return nil, err
			}
			configs = append(configs, c)
		}
	}
	response := x.response(configs)
	// Storing waits for the disk, and pushing for the registry.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.store(ctx, configs, made) })
	if made != nil {
		x.describe(response, made)
	}
	if push {
		g.Go(func() error { return x.pushAll(ctx, made) })
	}
	return response, g.Wait()
}

// store puts images that were built into the image store, with what is said of
// them. made is nil if there are no manifests.
func (x *run) store(ctx context.Context, configs [][]byte, made *result) error {
	var stored []image.Image
	var index digest.Digest
	for i, img := range x.images {
		id := digest.FromBytes(configs[i])
		stored = append(stored, image.Image{ID: id, Platform: img.Target.Platform, Tree: img.Tree, Pack: x.packOptions(img), Annotations: x.o.annotations(LevelManifest, &img.Target.Platform)})
		if made != nil && made.said[i] != nil && !x.o.Referrers {
			a, err := x.Images.PutAttestation(ctx, made.said[i])
			if err != nil {
				return err
			}
			stored[i].Attestations = []image.Attestation{a}
			index = made.Desc.Digest
		}
		x.status("writing image %s", id)
	}
	if index != "" {
		if err := x.Images.Keep(index, made.Raw); err != nil {
			return err
		}
	}
	names := x.o.Names
	if x.o.ByDigest {
		names = nil
	}
	if err := x.Images.Put(names, stored, configs, index); err != nil {
		return err
	}
	for _, n := range names {
		x.status("naming to %s", n)
	}
	return nil
}

func (x *run) pushAll(ctx context.Context, r *result) error {
	for i, name := range x.o.Names {
		name = x.pushName(name)
		push := func(m *registry.Manifest) error { return x.Registry.Push(ctx, name, m, x.event) }
		if i == 0 {
			push = func(m *registry.Manifest) error { return x.early.Push(ctx, m) }
		}
		if err := x.push(ctx, name, r, push); err != nil {
			return err
		}
	}
	return nil
}

// pushName is the reference that is pushed to for a name.
func (x *run) pushName(name string) string {
	if x.o.ByDigest {
		return strings.TrimSuffix(name, ":latest")
	}
	return name
}

func (x *run) push(ctx context.Context, name string, r *result, push func(*registry.Manifest) error) error {
	x.status("pushing manifest for %s", name)
	if err := push(transfer.Manifest(r.Bundle)); err != nil {
		return err
	}
	for _, said := range r.referrers {
		x.status("pushing attestation %s", said.Desc.Digest)
		if err := x.Registry.PushReferrer(ctx, name, transfer.Manifest(image.Single(said)), x.event); err != nil {
			return err
		}
	}
	repository, err := registry.Repository(name)
	if err != nil {
		return err
	}
	for _, img := range x.images {
		if err := x.Packer.Pushed(img.Tree, repository); err != nil {
			return err
		}
	}
	return nil
}

// response are the keys that every image has. Without a manifest, the digest of
// an image is that of its configuration, as in Docker.
func (x *run) response(configs [][]byte) map[string]any {
	r := map[string]any{}
	if len(x.o.Names) > 0 {
		r["image.name"] = strings.Join(x.o.Names, ",")
	}
	if len(configs) == 1 {
		id := digest.FromBytes(configs[0]).String()
		r["containerimage.config.digest"], r["containerimage.digest"] = id, id
	}
	return r
}

// describe adds the keys of what has a manifest.
func (x *run) describe(r map[string]any, b *result) {
	r["containerimage.digest"] = b.Desc.Digest.String()
	r["containerimage.descriptor"] = b.Desc
	if len(b.packed) == 1 {
		r["containerimage.config.digest"] = b.packed[0].Config.Desc.Digest.String()
	}
	if len(b.Names) > 0 {
		r["image.name"] = strings.Join(b.Names, ",")
	}
}

// archive writes an OCI or Docker archive, or an OCI layout.
func (x *run) archive(ctx context.Context) (_ map[string]any, err error) {
	var ids []layers.ID
	for _, img := range x.images {
		ids = append(ids, img.Tree...)
	}
	if x.begin(ctx, ids) {
		defer func() { err = errors.Join(err, x.begun.Close()) }()
		x.o.Pack.Follow, x.o.Pack.Packed = x.begun.Follow, x.begun.Packed
	}
	made, err := x.pack(ctx)
	if err != nil {
		return nil, err
	}
	bundles := []image.Bundle{made.Bundle}
	for _, said := range made.referrers {
		bundles = append(bundles, image.Single(said)) // without a name
	}
	if err := x.deliver(ctx, bundles); err != nil {
		return nil, err
	}
	response := map[string]any{}
	x.describe(response, made)
	return response, nil
}

func (x *run) deliver(ctx context.Context, bundles []image.Bundle) error {
	x.status("sending tarball")
	switch {
	case x.o.Type == TypeOCI && !x.o.Tar:
		return image.WriteLayout(ctx, x.o.Dest, bundles)
	case x.o.Type == TypeOCI:
		return x.archiveFile("oci", bundles, func(w io.Writer) error { return x.begun.WriteOCI(ctx, w, bundles) })
	case x.o.Tar:
		return x.archiveFile("docker", bundles, func(w io.Writer) error { return x.begun.WriteDocker(ctx, w, bundles) })
	}
	return dir(x.o.Dest, false, func(root string) error {
		r, w := io.Pipe()
		go func() { w.CloseWithError(image.WriteDocker(ctx, w, bundles)) }()
		err := layers.Apply(ctx, root, r, layers.ApplyOptions{})
		r.CloseWithError(errors.New("not wanted any more")) // ends the writer
		return err
	})
}

// Save writes images of the store, under their names, as one archive: an output
// of type oci or docker. They keep the manifests that they came with, if any.
// For warn see image.Packer.Bundle.
func (e *Exporter) Save(ctx context.Context, names []image.Name, src snapshot.Sources, o Output, warn func(text string)) (err error) {
	if err := o.check(1); err != nil {
		return err
	}
	x := &run{Exporter: e, o: o}
	var ids []layers.ID
	for _, n := range names {
		for _, img := range n.Images {
			ids = append(ids, img.Tree...)
		}
	}
	if x.begin(ctx, ids) {
		defer func() { err = errors.Join(err, x.begun.Close()) }()
	}
	var bundles []image.Bundle
	for _, n := range names {
		if x.begun != nil {
			n.Images = slices.Clone(n.Images)
			for i := range n.Images {
				n.Images[i].Pack.Follow, n.Images[i].Pack.Packed = x.begun.Follow, x.begun.Packed
			}
		}
		b, err := e.Packer.Bundle(ctx, n, src, warn)
		if err != nil {
			return err
		}
		bundles = append(bundles, b)
	}
	return x.deliver(ctx, bundles)
}
