package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/internal/shortname"
	"github.com/strake-build/strake/layers/blob"
)

// Bundle is what an archive holds under some names: an image, or an index and
// its images.
type Bundle struct {
	Desc   ocispec.Descriptor // of the manifest or index
	Raw    []byte
	Images []*Packed
	Names  []string // normalised; there may be none
}

// Single is a bundle of one image.
func Single(p *Packed, names ...string) Bundle {
	return Bundle{Desc: p.Desc, Raw: p.Manifest, Images: []*Packed{p}, Names: names}
}

// Annotations of the entries of index.json.
const (
	annotationTag  = ocispec.AnnotationRefName  // the tag, or whatever a tool calls the image
	annotationName = "io.containerd.image.name" // the full name
)

// WriteOCI writes an OCI layout as a tar stream. Equal bundles give equal bytes.
func WriteOCI(ctx context.Context, w io.Writer, bundles []Bundle) error {
	return (*Early)(nil).WriteOCI(ctx, w, bundles)
}

// WriteDocker writes what `docker save` writes, and `docker load`, podman and
// skopeo read: an OCI layout with Docker's manifest.json and repositories beside
// it. Bundles of an index can't be told so and are an error.
func WriteDocker(ctx context.Context, w io.Writer, bundles []Bundle) error {
	return (*Early)(nil).WriteDocker(ctx, w, bundles)
}

// dockerFiles returns the files of a Docker archive.
func dockerFiles(bundles []Bundle) ([]file, error) {
	files, err := layoutFiles(bundles)
	if err != nil {
		return nil, err
	}
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var entries []entry
	index := map[digest.Digest]int{}
	repositories := map[string]map[string]string{}
	for _, b := range bundles {
		if manifest.IsIndex(b.Desc.MediaType) || len(b.Images) != 1 {
			return nil, errors.New("docker archives can't hold images for several platforms; use an OCI archive")
		}
		img := b.Images[0]
		i, ok := index[img.Config.Desc.Digest]
		if !ok {
			i = len(entries)
			index[img.Config.Desc.Digest] = i
			e := entry{Config: blobPath(img.Config.Desc.Digest), Layers: []string{}}
			for _, l := range img.Layers {
				e.Layers = append(e.Layers, blobPath(l.Desc.Digest))
			}
			entries = append(entries, e)
		}
		for _, n := range b.Names {
			named, err := reference.ParseNormalizedNamed(n)
			if err != nil {
				return nil, fmt.Errorf("image name %q: %w", n, err)
			}
			tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
			if !ok {
				continue // only a digest: nothing that docker would load
			}
			short := shortname.Of(tagged.String())
			entries[i].RepoTags = append(entries[i].RepoTags, short)
			if len(img.Layers) > 0 {
				repo := strings.TrimSuffix(short, ":"+tagged.Tag())
				if repositories[repo] == nil {
					repositories[repo] = map[string]string{}
				}
				repositories[repo][tagged.Tag()] = img.Layers[len(img.Layers)-1].Desc.Digest.Encoded()
			}
		}
	}
	rawEntries, err := json.Marshal(entries)
	if err != nil {
		return nil, err
	}
	rawRepositories, err := json.Marshal(repositories)
	if err != nil {
		return nil, err
	}
	return append(files, memory("manifest.json", rawEntries), memory("repositories", rawRepositories)), nil
}

// file is a file of an archive or layout.
type file struct {
	name string
	desc ocispec.Descriptor // its digest and size
	open func(context.Context) (io.ReadCloser, error)
}

func memory(name string, data []byte) file {
	return file{name, ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

func blobPath(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

func blobFile(r blob.Ref) file { return file{blobPath(r.Desc.Digest), r.Desc, r.Open} }

// blobFiles returns the blobs of bundles, each once: the layers of all images as
// their manifests have them, which are there first, and then the documents.
func blobFiles(bundles []Bundle) ([]file, error) {
	var files []file
	seen := map[digest.Digest]bool{}
	add := func(r blob.Ref) {
		if !seen[r.Desc.Digest] {
			seen[r.Desc.Digest] = true
			files = append(files, blobFile(r))
		}
	}
	document := func(desc ocispec.Descriptor, raw []byte) error {
		if err := manifest.Verify(desc, raw); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		add(blob.Ref{Desc: ocispec.Descriptor{Digest: desc.Digest, Size: int64(len(raw))}, Open: memory("", raw).open})
		return nil
	}
	for _, b := range bundles {
		for _, img := range b.Images {
			for _, l := range img.Layers {
				add(l)
			}
		}
	}
	for _, b := range bundles {
		for _, img := range b.Images {
			add(img.Config)
			if err := document(img.Desc, img.Manifest); err != nil {
				return nil, err
			}
		}
		if err := document(b.Desc, b.Raw); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// layoutFiles returns the files of an OCI layout.
func layoutFiles(bundles []Bundle) ([]file, error) {
	files, err := blobFiles(bundles)
	if err != nil {
		return nil, err
	}
	entries, err := layoutEntries(bundles)
	if err != nil {
		return nil, err
	}
	index, err := marshalLayoutIndex(entries)
	if err != nil {
		return nil, err
	}
	return append(files, memory(ocispec.ImageIndexFile, index), memory(ocispec.ImageLayoutFile, layoutVersion)), nil
}

var layoutVersion = []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)

// layoutEntries are the entries of index.json: one for each name.
func layoutEntries(bundles []Bundle) ([]ocispec.Descriptor, error) {
	var entries []ocispec.Descriptor
	for _, b := range bundles {
		if len(b.Names) == 0 {
			entries = append(entries, b.Desc)
		}
		for _, n := range b.Names {
			named, err := reference.ParseNormalizedNamed(n)
			if err != nil {
				return nil, fmt.Errorf("image name %q: %w", n, err)
			}
			named = reference.TagNameOnly(named)
			desc := b.Desc
			desc.Annotations = map[string]string{annotationName: named.String()}
			for k, v := range b.Desc.Annotations {
				desc.Annotations[k] = v
			}
			if t, ok := named.(reference.Tagged); ok {
				desc.Annotations[annotationTag] = t.Tag()
			}
			entries = append(entries, desc)
		}
	}
	return entries, nil
}

func marshalLayoutIndex(entries []ocispec.Descriptor) ([]byte, error) {
	if entries == nil {
		entries = []ocispec.Descriptor{}
	}
	return json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: entries,
	})
}

// copy writes the file's content to w, and fails if it is not what it should be.
func (f file) copy(ctx context.Context, w io.Writer, buffer []byte) error {
	if f.open == nil {
		return errors.New("content is not at hand")
	}
	r, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if file := blob.File(r, f.desc.Digest); file != nil {
		return f.copyFile(ctx, w, file)
	}
	var v digest.Verifier // nil if r verifies what it gives
	if !blob.Verifies(r, f.desc.Digest) {
		v = f.desc.Digest.Verifier()
	}
	var n int64
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		got, err := r.Read(buffer)
		if n += int64(got); n > f.desc.Size {
			return fmt.Errorf("content is longer than %d bytes", f.desc.Size)
		}
		if v != nil {
			_, _ = v.Write(buffer[:got])
		}
		if _, werr := w.Write(buffer[:got]); werr != nil {
			return werr
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if n != f.desc.Size || v != nil && !v.Verified() {
		return fmt.Errorf("content of %d bytes is not that of %s with %d bytes", n, f.desc.Digest, f.desc.Size)
	}
	return nil
}

// copyFile is copy for content that needs no verification: the kernel copies it
// if w is a file.
func (f file) copyFile(ctx context.Context, w io.Writer, from *os.File) error {
	const piece = 64 << 20
	for left := f.desc.Size; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(w, from, min(left, piece))
		if left -= n; err == io.EOF {
			err = fmt.Errorf("content ends %d bytes early", left)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
