package buildkitapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/opencontainers/go-digest"
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
	b := j.store.Builder
	stored, err := b.Images.LoadOne(ctx, img, func(desc ocispec.Descriptor) (io.ReadCloser, error) { return clientBlob(ctx, cs, desc) }, b.Layers)
	if err != nil {
		return fail(err)
	}
	return b.Stored(stored, "oci-layout://"+store, p)
}

// clientBlob opens a blob of the client.
func clientBlob(ctx context.Context, cs content.Provider, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ra, err := cs.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, 0, ra.Size()), ra}, nil
}

var errDamaged = errors.New("the content does not have this digest")

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
		return nil, fmt.Errorf("%s: %w", desc.Digest, errDamaged)
	}
	return data, nil
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
