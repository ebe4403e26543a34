package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
)

// Bounds of archives: what a stranger may make us remember.
const (
	maxArchiveFiles = 100_000
	maxArchivePath  = 4096
	maxArchiveSize  = 1 << 40 // decompressed
	maxImages       = 1000
)

// Load reads an archive of images (`docker save`'s, also old ones; an OCI layout
// as a tar; each compressed or not), and stores the images under the names they
// have there. Layers become blobs of the store and are unpacked when somebody
// needs them; that they have their diffIDs is checked now. It returns what was
// stored: one Name for each name, and one without Ref for an image that has
// none. An archive that is not sound in all its parts changes no name.
func (s *Store) Load(ctx context.Context, r io.Reader, snapshots *snapshot.Store) ([]Name, error) {
	a := &archive{s: s, snapshots: snapshots, files: map[string]ocispec.Descriptor{}, links: map[string]string{}, documents: map[string][]byte{}}
	if err := a.read(ctx, r); err != nil {
		return nil, err
	}
	found, err := a.images(ctx)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("the archive holds no image")
	}
	if err := a.verify(ctx, found); err != nil {
		return nil, err
	}
	var loaded []Name
	for _, f := range found {
		var images []Image
		var configs [][]byte
		for _, one := range f.images {
			img, err := a.add(one)
			if err != nil {
				return nil, err
			}
			images = append(images, img)
			configs = append(configs, one.config)
		}
		if err := s.Put(f.names, images, configs, f.index); err != nil {
			return nil, err
		}
		if len(f.names) == 0 {
			loaded = append(loaded, Name{Images: images})
		}
		for _, n := range f.names {
			loaded = append(loaded, Name{Ref: n, Images: images, Index: f.index})
		}
	}
	return loaded, nil
}

// archive is an archive that has been read. Its files are blobs of the store;
// those that belong to no image are garbage for the next prune.
type archive struct {
	s         *Store
	snapshots *snapshot.Store

	files     map[string]ocispec.Descriptor // by path; no media type
	links     map[string]string             // path → path
	documents map[string][]byte             // index.json and the like
}

// foundImages are images of one archive under their names.
type foundImages struct {
	names  []string
	index  digest.Digest
	images []foundImage
}

type foundImage struct {
	id       digest.Digest
	platform ocispec.Platform
	config   []byte
	manifest digest.Digest // empty if the archive has none
	layers   []ocispec.Descriptor
	diffIDs  []digest.Digest

	attestations []Attestation
}

// read takes in the files of the tar stream.
func (a *archive) read(ctx context.Context, r io.Reader) error {
	z, err := compress.NewReader(ctxReader{ctx, r})
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	defer z.Close()
	limited := &io.LimitedReader{R: z, N: maxArchiveSize}
	t := tar.NewReader(limited)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		if err == io.EOF && n > 0 {
			return nil
		}
		if err == io.EOF {
			return errors.New("the archive is empty")
		}
		if limited.N <= 0 {
			return fmt.Errorf("archive is larger than %d bytes", int64(maxArchiveSize))
		}
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if n >= maxArchiveFiles {
			return fmt.Errorf("archive has more than %d files", maxArchiveFiles)
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if len(name) > maxArchivePath || name == ".." || strings.HasPrefix(name, "../") {
			return fmt.Errorf("archive: name %.100q", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			// Nobody writes image archives so, and a terabyte of holes is a
			// short tar.
			for k := range h.PAXRecords {
				if strings.HasPrefix(k, "GNU.sparse.") {
					return fmt.Errorf("archive: %s is a sparse file", name)
				}
			}
			if err := a.take(name, t); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return fmt.Errorf("archive: %s: %w", name, err)
			}
		case tar.TypeSymlink:
			a.links[name] = path.Join(path.Dir(name), h.Linkname) // #nosec G305 -- the name of another member, never a path of the host
		case tar.TypeLink:
			a.links[name] = path.Clean(strings.TrimLeft(h.Linkname, "/"))
		}
	}
}

func (a *archive) take(name string, r io.Reader) error {
	switch name {
	case ocispec.ImageIndexFile, "manifest.json":
		raw, err := readLimited(r)
		a.documents[name] = raw
		return err
	case ocispec.ImageLayoutFile, "repositories":
		return nil
	}
	want := digest.Digest("")
	if parts := strings.Split(name, "/"); len(parts) == 3 && parts[0] == "blobs" {
		want = digest.Digest(parts[1] + ":" + parts[2])
		if want.Validate() != nil || want.Algorithm() != digest.SHA256 {
			want = ""
		}
	}
	d, size, err := a.s.blobs.Put(r, want, -1)
	if err != nil {
		return err
	}
	a.files[name] = ocispec.Descriptor{Digest: d, Size: size}
	return a.s.Lease(d)
}

// file returns the file at name, following links of the archive.
func (a *archive) file(name string) (ocispec.Descriptor, error) {
	at := path.Clean(strings.TrimLeft(name, "/"))
	for range 16 {
		if d, ok := a.files[at]; ok {
			return d, nil
		}
		next, ok := a.links[at]
		if !ok {
			break
		}
		at = next
	}
	return ocispec.Descriptor{}, fmt.Errorf("archive has no file %q", name)
}

// blob reads a document of an OCI layout.
func (a *archive) blob(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	f, err := a.file(blobPath(desc.Digest))
	if err != nil {
		return nil, err
	}
	return a.small(f)
}

func (a *archive) small(f ocispec.Descriptor) ([]byte, error) {
	if f.Size > manifest.Limit {
		return nil, fmt.Errorf("%s has %d bytes; the limit is %d", f.Digest, f.Size, manifest.Limit)
	}
	return a.s.blobs.Bytes(f.Digest)
}

func (a *archive) images(ctx context.Context) ([]foundImages, error) {
	if raw, ok := a.documents[ocispec.ImageIndexFile]; ok {
		return a.oci(ctx, raw)
	}
	if raw, ok := a.documents["manifest.json"]; ok {
		return a.docker(raw)
	}
	return nil, errors.New("no archive of images: it has neither index.json nor manifest.json")
}

// oci finds the images of an OCI layout.
func (a *archive) oci(ctx context.Context, raw []byte) ([]foundImages, error) {
	index, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	dockerNames := a.dockerNames()
	var found []foundImages
	at := map[digest.Digest]int{}
	for _, desc := range index.Manifests {
		i, ok := at[desc.Digest]
		if !ok {
			one, err := a.ociEntry(ctx, desc)
			if err != nil {
				return nil, err
			}
			if len(one.images) == 0 {
				continue
			}
			for _, img := range one.images {
				one.names = append(one.names, dockerNames[img.id]...)
			}
			i = len(found)
			at[desc.Digest] = i
			found = append(found, one)
		}
		for _, key := range []string{annotationName, annotationTag} {
			// A tag alone is no name: other tools put whole names there.
			n := desc.Annotations[key]
			if n == "" || key == annotationTag && !strings.ContainsAny(n, "/:") {
				continue
			}
			if ref, err := normalize(n); err == nil && !slices.Contains(found[i].names, ref) {
				found[i].names = append(found[i].names, ref)
			}
		}
	}
	return found, nil
}

// ociEntry returns the images of a manifest or an index. Of an index the images
// that the archive lacks are passed over, as it may hold some platforms only.
func (a *archive) ociEntry(ctx context.Context, desc ocispec.Descriptor) (foundImages, error) {
	raw, err := a.blob(ctx, desc)
	if err != nil {
		return foundImages{}, err
	}
	if err := manifest.Verify(desc, raw); err != nil {
		return foundImages{}, err
	}
	mediaType, err := manifest.Type(raw, desc.MediaType)
	if err != nil {
		return foundImages{}, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	desc.MediaType = mediaType
	leaves := []ocispec.Descriptor{desc}
	var attested []Attestation
	var found foundImages
	if manifest.IsIndex(mediaType) {
		found.index = desc.Digest
		if leaves, attested, err = a.leaves(ctx, raw, 0); err != nil {
			return foundImages{}, err
		}
	}
	for _, leaf := range leaves {
		// With a single manifest Choose takes it as it is, and checks it.
		raw, err := a.blob(ctx, leaf)
		if err != nil {
			return foundImages{}, err
		}
		if leaf.MediaType, err = manifest.Type(raw, leaf.MediaType); err != nil {
			return foundImages{}, fmt.Errorf("%s: %w", leaf.Digest, err)
		}
		chosen, err := manifest.Choose(ctx, leaf, raw, ocispec.Platform{}, a.blob)
		if err != nil {
			return foundImages{}, err
		}
		img, err := a.found(chosen.Config)
		if err != nil {
			return foundImages{}, err
		}
		img.manifest = leaf.Digest
		for _, one := range attested {
			if manifest.Attested(one.Desc) == leaf.Digest && len(img.attestations) < MaxAttestations {
				img.attestations = append(img.attestations, one)
			}
		}
		for _, l := range chosen.Manifest.Layers {
			f, err := a.file(blobPath(l.Digest))
			if err != nil {
				return foundImages{}, err
			}
			if f.Size != l.Size {
				return foundImages{}, fmt.Errorf("layer %s has %d bytes instead of %d", l.Digest, f.Size, l.Size)
			}
			img.layers = append(img.layers, ocispec.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
		}
		found.images = append(found.images, img)
	}
	return found, nil
}

// leaves returns the image manifests of an index that the archive has, and the
// attestations.
func (a *archive) leaves(ctx context.Context, raw []byte, depth int) (leaves []ocispec.Descriptor, attested []Attestation, err error) {
	if depth > 3 {
		return nil, nil, errors.New("indexes are nested too deep")
	}
	x, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range x.Manifests {
		if _, err := a.file(blobPath(d.Digest)); err != nil {
			continue
		}
		switch {
		case d.Platform != nil && d.Platform.OS == "unknown":
			if manifest.Attested(d) == "" {
				continue
			}
			one, ok, err := a.attestation(ctx, d)
			if err != nil {
				return nil, nil, fmt.Errorf("attestation %s: %w", d.Digest, err)
			}
			if ok {
				attested = append(attested, one)
			}
		case manifest.IsIndex(d.MediaType):
			inner, err := a.blob(ctx, d)
			if err != nil {
				return nil, nil, err
			}
			more, said, err := a.leaves(ctx, inner, depth+1)
			if err != nil {
				return nil, nil, err
			}
			leaves, attested = append(leaves, more...), append(attested, said...)
		case manifest.IsManifest(d.MediaType):
			leaves = append(leaves, d)
		}
		if len(leaves) > maxImages || len(attested) > maxImages {
			return nil, nil, fmt.Errorf("archive has more than %d images", maxImages)
		}
	}
	return leaves, attested, nil
}

// attestation reads one; ok is false if the archive does not have all of it.
func (a *archive) attestation(ctx context.Context, d ocispec.Descriptor) (one Attestation, ok bool, err error) {
	raw, err := a.blob(ctx, d)
	if err != nil {
		return one, false, err
	}
	if one, err = ReadAttestation(d, raw); err != nil {
		return one, false, err
	}
	for _, b := range one.Blobs {
		if f, err := a.file(blobPath(b.Digest)); err != nil || f.Size != b.Size {
			return one, false, nil
		}
	}
	return one, true, nil
}

// dockerEntry is an image in Docker's manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerNames are the names of manifest.json by image ID: some OCI layouts have
// them only there.
func (a *archive) dockerNames() map[digest.Digest][]string {
	var entries []dockerEntry
	if json.Unmarshal(a.documents["manifest.json"], &entries) != nil {
		return nil
	}
	names := map[digest.Digest][]string{}
	for _, e := range entries {
		if f, err := a.file(e.Config); err == nil {
			for _, n := range e.RepoTags {
				if ref, err := normalize(n); err == nil {
					names[f.Digest] = append(names[f.Digest], ref)
				}
			}
		}
	}
	return names
}

// docker finds the images of Docker's own format.
func (a *archive) docker(raw []byte) ([]foundImages, error) {
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(entries) > maxImages {
		return nil, fmt.Errorf("archive has more than %d images", maxImages)
	}
	var found []foundImages
	for _, e := range entries {
		f, err := a.file(e.Config)
		if err != nil {
			return nil, err
		}
		config, err := a.small(f)
		if err != nil {
			return nil, err
		}
		img, err := a.found(config)
		if err != nil {
			return nil, err
		}
		if len(e.Layers) != len(img.diffIDs) {
			return nil, fmt.Errorf("image %s has %d layers for %d diffIDs", img.id, len(e.Layers), len(img.diffIDs))
		}
		for _, name := range e.Layers {
			l, err := a.file(name)
			if err != nil {
				return nil, err
			}
			if l.MediaType, err = a.sniff(l); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			img.layers = append(img.layers, l)
		}
		one := foundImages{images: []foundImage{img}}
		for _, n := range e.RepoTags {
			ref, err := normalize(n)
			if err != nil {
				return nil, err
			}
			if !slices.Contains(one.names, ref) {
				one.names = append(one.names, ref)
			}
		}
		found = append(found, one)
	}
	return found, nil
}

// sniff tells a layer's media type by its first bytes.
func (a *archive) sniff(f ocispec.Descriptor) (string, error) {
	r, err := a.s.blobs.Reader(f.Digest, f.Size)
	if err != nil {
		return "", err
	}
	defer r.Close()
	head := make([]byte, 16)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return "", err
	}
	switch kind := compress.Detect(head[:n]); kind {
	case "":
		return ocispec.MediaTypeImageLayer, nil
	case "gzip":
		return ocispec.MediaTypeImageLayerGzip, nil
	case "zstd":
		return ocispec.MediaTypeImageLayerZstd, nil
	default:
		return "", fmt.Errorf("layer is compressed by %s, which images don't have", kind)
	}
}

// found reads an image configuration.
func (a *archive) found(config []byte) (foundImage, error) {
	var img ocispec.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return foundImage{}, fmt.Errorf("image configuration: %w", err)
	}
	for _, d := range img.RootFS.DiffIDs {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return foundImage{}, fmt.Errorf("image configuration: diffID %q is not a SHA-256 digest", d)
		}
	}
	return foundImage{id: digest.FromBytes(config), platform: img.Platform, config: config, diffIDs: img.RootFS.DiffIDs}, nil
}

// verify checks that layers have the diffIDs that the configurations claim:
// layers are known by them in the whole store, so that a false claim would
// spoil an honest image.
func (a *archive) verify(ctx context.Context, found []foundImages) error {
	type claim struct{ blob, diffID digest.Digest }
	done := map[claim]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, f := range found {
		for _, img := range f.images {
			for i, desc := range img.layers {
				c := claim{desc.Digest, img.diffIDs[i]}
				if done[c] || algorithm(desc) == compress.None && c.blob == c.diffID || a.trusted(c.diffID, c.blob) {
					continue
				}
				done[c] = true
				g.Go(func() error {
					got, err := a.diffID(gctx, desc)
					if err == nil && got != c.diffID {
						err = fmt.Errorf("content has the diffID %s instead of %s", got, c.diffID)
					}
					if err != nil {
						return fmt.Errorf("layer %s: %w", desc.Digest, err)
					}
					return nil
				})
			}
		}
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// trusted reports whether the store has the layer unpacked, so verified, from
// this very blob.
func (a *archive) trusted(diffID, d digest.Digest) bool {
	l, err := a.snapshots.Layer(layers.ID(diffID.Encoded()))
	return err == nil && l.Dir && len(l.Blobs) == 1 && l.Blobs[0].Digest == d
}

func (a *archive) diffID(ctx context.Context, desc ocispec.Descriptor) (digest.Digest, error) {
	r, err := a.s.blobs.Reader(desc.Digest, desc.Size)
	if err != nil {
		return "", err
	}
	defer r.Close()
	z, err := compress.NewReader(ctxReader{ctx, r})
	if err != nil {
		return "", err
	}
	defer z.Close()
	h := sha256.New()
	if _, err := io.Copy(h, z); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// add makes layers of an image's blobs.
func (a *archive) add(f foundImage) (Image, error) {
	img := Image{ID: f.id, Platform: f.platform, Manifest: f.manifest, Tree: layers.Tree{}, Attestations: f.attestations}
	for i, desc := range f.layers {
		id, err := a.snapshots.AddBlob(f.diffIDs[i], desc)
		if err != nil {
			return Image{}, fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
		img.Tree = append(img.Tree, id)
	}
	return img, nil
}

// ctxReader ends with ctx.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
