package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/registry"
)

// Inline is the cache in the configurations of an image, one for each platform.
// It is only read: it is written with the image.
type Inline struct {
	client *registry.Client
	ref    string
	name   string // repository
	text   string

	once    sync.Once
	mu      sync.Mutex // of what follows, when it is loaded
	root    ocispec.Descriptor
	raw     []byte
	read    map[digest.Digest][]byte // manifests and configurations
	objects map[string]string
	err     error
}

var _ remote.Backend = (*Inline)(nil)

// OpenInline returns the inline cache of an image.
func OpenInline(c *registry.Client, reference, text string) (*Inline, error) {
	ref, err := registry.Normalize(reference)
	if err != nil {
		return nil, err
	}
	name, err := registry.Repository(reference)
	return &Inline{client: c, ref: ref, name: name, text: text, objects: map[string]string{}, read: map[digest.Digest][]byte{}}, err
}

// load reads the configurations, the first time. An image that is none, or has
// no cache, is an empty one.
func (i *Inline) load(ctx context.Context) error {
	i.once.Do(func() {
		desc, raw, err := i.client.Manifest(ctx, i.ref)
		if errors.Is(err, registry.ErrNotFound) {
			return
		}
		if err == nil {
			i.root, i.raw = desc, raw
			err = i.manifest(ctx, desc, raw)
		}
		if ctx.Err() != nil && err != nil {
			err = context.Cause(ctx)
		}
		i.err = err
	})
	return i.err
}

// maxPlatforms bounds the manifests that are read of an index.
const maxPlatforms = 64

func (i *Inline) manifest(ctx context.Context, desc ocispec.Descriptor, raw []byte) error {
	if manifest.IsIndex(desc.MediaType) {
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return fmt.Errorf("%s: %w", i.ref, err)
		}
		for n, child := range index.Manifests {
			if n == maxPlatforms {
				break
			}
			if !manifest.IsManifest(child.MediaType) || child.Annotations["vnd.docker.reference.type"] != "" {
				continue
			}
			raw, err := i.document(ctx, child)
			if err != nil {
				return err
			}
			if err := i.manifest(ctx, child, raw); err != nil {
				return err
			}
		}
		return nil
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", i.ref, err)
	}
	if m.Config.MediaType != ocispec.MediaTypeImageConfig && m.Config.MediaType != manifest.DockerConfig || m.Config.Size > manifest.Limit {
		return nil
	}
	data, err := i.document(ctx, m.Config)
	if err != nil {
		return err
	}
	var config map[string]json.RawMessage
	var objects map[string]string
	if json.Unmarshal(data, &config) == nil && json.Unmarshal(config[remote.InlineField], &objects) == nil {
		for name, object := range objects {
			i.objects[name] = object
		}
	}
	return nil
}

// document fetches a manifest or configuration, once.
func (i *Inline) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if raw, ok := i.read[desc.Digest]; ok {
		return raw, nil
	}
	raw, err := i.fetch(ctx, desc)
	if err == nil {
		i.read[desc.Digest] = raw
	}
	return raw, err
}

func (i *Inline) fetch(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if manifest.IsManifest(desc.MediaType) {
		_, raw, err := i.client.Manifest(ctx, i.name+"@"+desc.Digest.String())
		return raw, err
	}
	r, err := i.client.Blob(ctx, i.name, desc, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// BuildKit returns the caches of BuildKit's that are there: at the reference, or
// in the images that it names.
func (i *Inline) BuildKit(ctx context.Context) ([]*buildkit.Manifest, error) {
	if err := i.load(ctx); err != nil || i.raw == nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return buildkit.Read(ctx, i.root, i.raw, i.document)
}

// Get implements [remote.Backend].
func (i *Inline) Get(ctx context.Context, name string) ([]byte, error) {
	if err := i.load(ctx); err != nil {
		return nil, err
	}
	object, ok := i.objects[name]
	if !ok {
		return nil, remote.ErrNotFound
	}
	return []byte(object), nil
}

// Has implements [remote.Backend].
func (i *Inline) Has(ctx context.Context, name string) (bool, error) {
	_, err := i.Get(ctx, name)
	if errors.Is(err, remote.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Put implements [remote.Backend]: it is an error.
func (i *Inline) Put(context.Context, string, []byte, []blob.Ref, bool) error {
	return errors.New("an inline cache is written with its image")
}

// Origin implements [remote.Backend].
func (i *Inline) Origin() string { return i.name }

// String implements [remote.Backend].
func (i *Inline) String() string { return i.text }
