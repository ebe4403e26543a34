package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/internal/manifest"
)

// WriteLayout writes bundles into the OCI layout at dir, which is made if it is
// missing. What is there stays, but a bundle takes the place of one with the
// same tag. The index changes last, in one step; several processes may write to
// one layout.
func WriteLayout(ctx context.Context, dir string, bundles []Bundle) error {
	files, err := blobFiles(bundles)
	if err != nil {
		return err
	}
	entries, err := layoutEntries(bundles)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range files {
		if fi, err := root.Stat(f.name); err == nil && fi.Mode().IsRegular() && fi.Size() == f.desc.Size {
			continue
		}
		if err := writeFile(ctx, root, f); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}

	lock, err := root.Open(".")
	if err != nil {
		return err
	}
	defer lock.Close() // and so unlocks
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	var old ocispec.Index
	if _, err := root.Stat(ocispec.ImageIndexFile); err == nil {
		if old, err = readIndex(root); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	index, err := marshalLayoutIndex(mergeEntries(old.Manifests, entries))
	if err != nil {
		return err
	}
	if err := writeFile(ctx, root, memory(ocispec.ImageLayoutFile, layoutVersion)); err != nil {
		return err
	}
	return writeFile(ctx, root, memory(ocispec.ImageIndexFile, index))
}

// mergeEntries adds entries to an index; they take the places of those with the
// same tag, or without one and with the same digest.
func mergeEntries(old, entries []ocispec.Descriptor) []ocispec.Descriptor {
	merged := slices.Clone(old)
	for _, e := range entries {
		merged = slices.DeleteFunc(merged, func(o ocispec.Descriptor) bool {
			if tag := o.Annotations[annotationTag]; tag != "" {
				return tag == e.Annotations[annotationTag]
			}
			return o.Digest == e.Digest
		})
	}
	return append(merged, entries...)
}

// writeFile writes a file under a temporary name first.
func writeFile(ctx context.Context, root *os.Root, f file) error {
	dir := path.Dir(f.name)
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp := path.Join(dir, ".strake-"+rand.Text())
	out, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = f.copy(ctx, out, make([]byte, 256<<10))
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(temp, f.name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(temp))
	}
	return nil
}

// Layout is an OCI layout in a directory, read-only. Symlinks in it lead nowhere
// outside.
type Layout struct {
	dir  string
	root *os.Root
}

// OpenLayout opens the OCI layout at dir.
func OpenLayout(dir string) (*Layout, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	l := &Layout{dir: dir, root: root}
	if _, err := root.Stat(ocispec.ImageIndexFile); err != nil {
		root.Close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is no OCI layout: it has no %s", dir, ocispec.ImageIndexFile)
		}
		return nil, err
	}
	return l, nil
}

// Close closes the layout. Blobs that are open can be read on.
func (l *Layout) Close() error { return l.root.Close() }

// Resolve finds an image for a platform. ref is a tag, a full name, a digest, or
// empty: the image tagged "latest", else the only one.
func (l *Layout) Resolve(ctx context.Context, ref string, platform ocispec.Platform) (*manifest.Image, error) {
	index, err := readIndex(l.root)
	if err != nil {
		return nil, fmt.Errorf("OCI layout %s: %w", l.dir, err)
	}
	desc, err := pick(index.Manifests, ref)
	if err != nil {
		return nil, fmt.Errorf("OCI layout %s: %w", l.dir, err)
	}
	img, err := l.choose(ctx, desc, platform)
	if err != nil {
		return nil, fmt.Errorf("OCI layout %s: %w", l.dir, err)
	}
	return img, nil
}

func (l *Layout) choose(ctx context.Context, desc ocispec.Descriptor, platform ocispec.Platform) (*manifest.Image, error) {
	fetch := func(_ context.Context, d ocispec.Descriptor) ([]byte, error) { return l.small(d) }
	raw, err := l.small(desc)
	if err != nil {
		return nil, err
	}
	if err := manifest.Verify(desc, raw); err != nil {
		return nil, err
	}
	if desc.MediaType, err = manifest.Type(raw, desc.MediaType); err != nil {
		return nil, err
	}
	return manifest.Choose(ctx, desc, raw, platform, fetch)
}

// pick finds the entry that ref means.
func pick(entries []ocispec.Descriptor, ref string) (ocispec.Descriptor, error) {
	want := ref
	if want == "" {
		want = "latest"
	}
	full := ""
	if named, err := reference.ParseNormalizedNamed(want); err == nil {
		full = reference.TagNameOnly(named).String()
	}
	for _, d := range entries {
		if d.Annotations[annotationTag] == want || d.Annotations[annotationName] == want || full != "" && d.Annotations[annotationName] == full ||
			d.Digest == digest.Digest(want) {
			return d, nil
		}
	}
	if ref == "" && len(entries) == 1 {
		return entries[0], nil
	}
	if d := digest.Digest(ref); d.Validate() == nil { // of something that an entry refers to
		return ocispec.Descriptor{Digest: d}, nil
	}
	var have []string
	for _, d := range entries {
		if t := d.Annotations[annotationTag]; t != "" {
			have = append(have, t)
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image %q; there are %d, with the tags %v", want, len(entries), have)
}

// Blob opens a blob, which is verified as it is read.
func (l *Layout) Blob(desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, err
	}
	f, err := openRegular(l.root, blobPath(desc.Digest))
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && desc.Size > 0 && fi.Size() != desc.Size {
		err = fmt.Errorf("blob %s has %d bytes instead of %d", desc.Digest, fi.Size(), desc.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &verified{f: f, left: fi.Size(), want: desc.Digest, v: desc.Digest.Verifier()}, nil
}

func (l *Layout) small(desc ocispec.Descriptor) ([]byte, error) {
	r, err := l.Blob(desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readLimited(r)
}

func readLimited(r io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, manifest.Limit+1))
	if err == nil && len(raw) > manifest.Limit {
		err = fmt.Errorf("document is longer than %d bytes", manifest.Limit)
	}
	return raw, err
}

func readIndex(root *os.Root) (ocispec.Index, error) {
	f, err := openRegular(root, ocispec.ImageIndexFile)
	if err != nil {
		return ocispec.Index{}, err
	}
	defer f.Close()
	raw, err := readLimited(f)
	if err != nil {
		return ocispec.Index{}, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	if !json.Valid(raw) {
		return ocispec.Index{}, fmt.Errorf("%s is not valid JSON", ocispec.ImageIndexFile)
	}
	return manifest.ParseIndex(raw)
}

// openRegular opens a regular file, and does not wait for the other end of a
// pipe.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// verified is a file that must have a digest.
type verified struct {
	f    *os.File
	left int64
	want digest.Digest
	v    digest.Verifier
}

func (r *verified) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	_, _ = r.v.Write(p[:n])
	r.left -= int64(n)
	if err == io.EOF && (r.left != 0 || !r.v.Verified()) {
		err = fmt.Errorf("content of blob %s does not have its digest", r.want)
	}
	return n, err
}

func (r *verified) Close() error { return r.f.Close() }
