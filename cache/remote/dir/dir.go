// Package dir keeps a remote cache in a directory, such as one that a CI system
// saves and restores.
//
//	strake/<name>        objects
//	blobs/sha256/<hex>   blobs
//
// Both are written under a temporary name and renamed. The names do not collide
// with those of an OCI layout, which BuildKit's local caches are.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/layers/blob"
)

// Scheme is that of origins: file:///path.
const Scheme = "file"

// Dir is a cache in a directory.
type Dir struct {
	path string
	text string
}

var _ remote.Backend = (*Dir)(nil)

// Open returns the cache in a directory, which is made when something is put
// there. text is what String returns.
func Open(path, text string) (*Dir, error) {
	path, err := filepath.Abs(path)
	return &Dir{path, text}, err
}

func (d *Dir) object(name string) (string, error) {
	if name == "" || len(name) > 120 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", fmt.Errorf("object name %q", name)
	}
	return filepath.Join(d.path, "strake", name), nil
}

// Get implements [remote.Backend].
func (d *Dir) Get(_ context.Context, name string) ([]byte, error) {
	path, err := d.object(name)
	if err != nil {
		return nil, err
	}
	f, err := open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errIrregular) {
		return nil, remote.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, remote.MaxObject+1))
	if err == nil && len(data) > remote.MaxObject {
		err = remote.ErrNotFound // it is none of ours
	}
	return data, err
}

// Has implements [remote.Backend].
func (d *Dir) Has(_ context.Context, name string) (bool, error) {
	path, err := d.object(name)
	if err != nil {
		return false, err
	}
	_, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Put implements [remote.Backend].
func (d *Dir) Put(ctx context.Context, name string, object []byte, blobs []blob.Ref, damaged bool) error {
	path, err := d.object(name)
	if err != nil {
		return err
	}
	tmp := filepath.Join(d.path, "tmp")
	for _, p := range []string{tmp, filepath.Dir(path)} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
	}
	d.sweep(tmp)
	store, err := blob.Open(filepath.Join(d.path, "blobs"), blob.TempIn(tmp))
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if err := put(ctx, store, b, damaged); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(tmp, "object-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(object)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func put(ctx context.Context, store *blob.Store, b blob.Ref, damaged bool) error {
	if n, err := store.Stat(b.Desc.Digest); err == nil && n == b.Desc.Size {
		if !damaged {
			return nil
		}
		if r, err := store.Reader(b.Desc.Digest, b.Desc.Size); err == nil {
			_, err = io.Copy(io.Discard, r) // a damaged one is removed
			if err = errors.Join(err, r.Close()); err == nil {
				return nil
			}
		}
	}
	r, err := b.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	_, _, err = store.Put(r, b.Desc.Digest, b.Desc.Size)
	return err
}

// sweep removes what killed processes left.
func (d *Dir) sweep(tmp string) {
	entries, _ := os.ReadDir(tmp)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(filepath.Join(tmp, e.Name()))
		}
	}
}

// Origin implements [remote.Backend].
func (d *Dir) Origin() string { return (&url.URL{Scheme: Scheme, Path: d.path}).String() }

// String implements [remote.Backend].
func (d *Dir) String() string { return d.text }

// Blob opens a blob of an origin.
func Blob(_ context.Context, origin *url.URL, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, err
	}
	return open(filepath.Join(origin.Path, "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
}

var errIrregular = errors.New("no regular file")

// open opens a file of the directory, where others may have put a pipe that
// nobody writes to.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(&fs.PathError{Op: "open", Path: path, Err: errIrregular}, err, f.Close())
	}
	return f, nil
}
