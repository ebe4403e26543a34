package buildkitapi

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/internal/manifest"
)

// maxDocument bounds manifests, indexes and configurations.
const maxDocument = 8 << 20

// layout takes an image out of an OCI layout of the client into the store.
func (j *job) layout(ctx context.Context, sessionID, store, dgst string, p ocispec.Platform) (builder.Base, error) {
	fail := func(err error) (builder.Base, error) {
		return builder.Base{}, fmt.Errorf("oci-layout://%s@%s: %w", store, dgst, err)
	}
	d, err := digest.Parse(dgst)
	if err != nil {
		return fail(err)
	}
	if sessionID == "" {
		sessionID = j.session
	}
	c, err := j.s.caller(ctx, sessionID)
	if err != nil {
		return fail(err)
	}
	cs := sessioncontent.NewCallerStore(c, "oci:"+store)
	fetch := func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) { return document(ctx, cs, desc) }
	desc := ocispec.Descriptor{Digest: d}
	raw, err := fetch(ctx, desc)
	if err != nil {
		return fail(err)
	}
	desc.Size = int64(len(raw))
	if desc.MediaType, err = manifest.Type(raw, ""); err != nil {
		return fail(err)
	}
	img, err := manifest.Choose(ctx, desc, raw, p, fetch)
	if err != nil {
		return fail(err)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeImage(ctx, w, cs, img)) }()
	b := j.s.o.Builder
	names, err := b.Images.Load(ctx, r, b.Layers)
	r.CloseWithError(errors.New("not wanted any more")) // ends the writer
	if err != nil {
		return fail(err)
	}
	if len(names) == 0 || len(names[0].Images) == 0 {
		return fail(errors.New("no image was taken over"))
	}
	return b.Stored(names[0].Images[0], "oci-layout://"+store, p)
}

// document reads a small blob of the client and checks it.
func document(ctx context.Context, cs content.Provider, desc ocispec.Descriptor) ([]byte, error) {
	ra, err := cs.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	if ra.Size() > maxDocument {
		return nil, fmt.Errorf("%s: larger than %d MiB", desc.Digest, maxDocument>>20)
	}
	data := make([]byte, ra.Size())
	if _, err := ra.ReadAt(data, 0); err != nil && err != io.EOF {
		return nil, err
	}
	if digest.FromBytes(data) != desc.Digest {
		return nil, fmt.Errorf("%s: the content does not have this digest", desc.Digest)
	}
	return data, nil
}

// writeImage writes an image of the client as an OCI archive.
func writeImage(ctx context.Context, w io.Writer, cs content.Provider, img *manifest.Image) error {
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{img.Desc},
	})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	file := func(name string, size int64, r io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		_, err := io.Copy(tw, r)
		return err
	}
	for name, data := range map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index,
	} {
		if err := file(name, int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	seen := map[digest.Digest]bool{}
	for _, desc := range append([]ocispec.Descriptor{img.Desc, img.Manifest.Config}, img.Manifest.Layers...) {
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		ra, err := cs.ReaderAt(ctx, desc)
		if err != nil {
			return fmt.Errorf("%s: %w", desc.Digest, err)
		}
		err = file("blobs/"+desc.Digest.Algorithm().String()+"/"+desc.Digest.Encoded(), ra.Size(), io.NewSectionReader(ra, 0, ra.Size()))
		if err := errors.Join(err, ra.Close()); err != nil {
			return fmt.Errorf("%s: %w", desc.Digest, err)
		}
	}
	return tw.Close()
}

// sendLayout gives the blobs of an OCI layout to the client, which makes its
// index itself.
func (j *job) sendLayout(dir string) error {
	c, err := j.caller()
	if err != nil {
		return err
	}
	cs := sessioncontent.NewCallerStore(c, "export")
	root := filepath.Join(dir, "blobs", "sha256")
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := sendBlob(j.ctx, cs, filepath.Join(root, e.Name()), digest.NewDigestFromEncoded(digest.SHA256, e.Name())); err != nil {
			return fmt.Errorf("sha256:%s: %w", e.Name(), err)
		}
	}
	return nil
}

func sendBlob(ctx context.Context, cs content.Ingester, name string, d digest.Digest) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return content.WriteBlob(ctx, cs, "strake-"+d.Encoded(), f, ocispec.Descriptor{Digest: d, Size: fi.Size()})
}
