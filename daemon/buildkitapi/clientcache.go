package buildkitapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/cache/remote/connect"
	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
)

// A cache of type local is a directory of the client, an OCI layout, of which we
// see the blobs only: the client keeps the index, and tells the digest of what
// it has a name for. So that is a manifest of all that is in the cache: its
// configuration names the objects, and its layers are the objects and the blobs
// that these need. The directory's next manifest has what the one that was
// imported from it had, and more.

// The types of that manifest.
const (
	typeClientCache = "application/vnd.strake.cache.v1"
	typeObjects     = "application/vnd.strake.cache.objects.v1+json"
	typeObject      = "application/vnd.strake.cache.object.v1"
)

// clientScheme is that of origins of a client's directories.
const clientScheme = "client"

// responseCache is the key of a Solve's response with the descriptor of the
// manifest, as JSON.
const responseCache = "cache.manifest"

// clientCache is a cache in a directory of the client.
type clientCache struct {
	cs   content.Store
	path string
	text string

	mu      sync.Mutex
	objects map[string]object
	blobs   map[digest.Digest]ocispec.Descriptor
	changed bool
	foreign []byte // manifest that is none of ours
}

// object is where an object is, and which blobs it needs.
type object struct {
	Digest digest.Digest   `json:"digest"`
	Size   int64           `json:"size"`
	Blobs  []digest.Digest `json:"blobs,omitempty"`
}

var _ connect.LocalCache = (*clientCache)(nil)

// clientCache opens the cache of a spec, once for each directory.
func (j *job) clientCache(s remote.Spec) (connect.LocalCache, error) {
	path := s.Attrs["src"]
	if path == "" {
		path = s.Attrs["dest"]
	}
	c := j.clientCaches[path]
	if c == nil {
		caller, err := j.caller()
		if err != nil {
			return nil, err
		}
		c = &clientCache{
			cs: sessioncontent.NewCallerStore(caller, "local:"+path), path: path, text: s.String(),
			objects: map[string]object{}, blobs: map[digest.Digest]ocispec.Descriptor{},
		}
		j.clientCaches[path] = c
	}
	if d := s.Attrs["digest"]; d != "" {
		if err := c.read(j.ctx, digest.Digest(d)); err != nil {
			return nil, fmt.Errorf("%s@%s: %w", path, d, err)
		}
	}
	return c, nil
}

// read reads what the manifest d tells of. One of another program is kept for
// BuildKit.
func (c *clientCache) read(ctx context.Context, d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return err
	}
	data, err := document(ctx, c.cs, ocispec.Descriptor{Digest: d})
	if err != nil {
		return err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	if m.ArtifactType != typeClientCache {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.foreign = data
		return nil
	}
	if err := m.Config.Digest.Validate(); err != nil {
		return err
	}
	if data, err = document(ctx, c.cs, m.Config); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range m.Layers {
		c.blobs[l.Digest] = l
	}
	return json.Unmarshal(data, &c.objects)
}

// BuildKit returns the cache of BuildKit's that the directory has.
func (c *clientCache) BuildKit(ctx context.Context, _, _ string) ([]*buildkit.Manifest, error) {
	c.mu.Lock()
	raw := c.foreign
	c.mu.Unlock()
	if raw == nil {
		return nil, nil
	}
	mediaType, err := manifest.Type(raw, "")
	if err != nil {
		return nil, err
	}
	list, err := buildkit.Read(ctx, ocispec.Descriptor{MediaType: mediaType}, raw, func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
		return document(ctx, c.cs, desc)
	})
	if err == nil && len(list) == 0 {
		err = errors.New("it was not written by strake, nor by BuildKit")
	}
	return list, err
}

// Get implements [remote.Backend].
func (c *clientCache) Get(ctx context.Context, name string) ([]byte, error) {
	c.mu.Lock()
	o, ok := c.objects[name]
	c.mu.Unlock()
	if !ok || o.Digest.Validate() != nil {
		return nil, remote.ErrNotFound
	}
	data, err := document(ctx, c.cs, ocispec.Descriptor{Digest: o.Digest})
	if errdefs.IsNotFound(err) || errors.Is(err, errDamaged) || err == nil && len(data) > remote.MaxObject {
		return nil, remote.ErrNotFound
	}
	return data, err
}

// Has implements [remote.Backend].
func (c *clientCache) Has(_ context.Context, name string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.objects[name]
	return ok, nil
}

// Put implements [remote.Backend].
func (c *clientCache) Put(ctx context.Context, name string, data []byte, blobs []blob.Ref, damaged bool) error {
	o := object{Digest: digest.FromBytes(data), Size: int64(len(data))}
	for _, b := range blobs {
		if err := c.put(ctx, b, damaged); err != nil {
			return fmt.Errorf("%s: %w", b.Desc.Digest, err)
		}
		o.Blobs = append(o.Blobs, b.Desc.Digest)
	}
	desc := ocispec.Descriptor{MediaType: typeObject, Digest: o.Digest, Size: o.Size}
	if err := c.write(ctx, desc, bytes.NewReader(data)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blobs {
		c.blobs[b.Desc.Digest] = b.Desc
	}
	c.blobs[o.Digest], c.objects[name], c.changed = desc, o, true
	return nil
}

// put writes a blob, unless it is there.
func (c *clientCache) put(ctx context.Context, b blob.Ref, damaged bool) error {
	info, err := c.cs.Info(ctx, b.Desc.Digest)
	if err == nil && info.Size == b.Desc.Size && !damaged {
		return nil
	}
	if err == nil {
		if err := c.cs.Delete(ctx, b.Desc.Digest); err != nil {
			return err
		}
	}
	r, err := b.Open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(c.write(ctx, b.Desc, r), r.Close())
}

func (c *clientCache) write(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	err := content.WriteBlob(ctx, c.cs, "strake-cache-"+desc.Digest.Encoded(), r, ocispec.Descriptor{Digest: desc.Digest, Size: desc.Size})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Origin implements [remote.Backend].
func (c *clientCache) Origin() string {
	return (&url.URL{Scheme: clientScheme, Path: "/" + c.path}).String()
}

// String implements [remote.Backend].
func (c *clientCache) String() string { return c.text }

// Blob opens a blob.
func (c *clientCache) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return clientBlob(ctx, c.cs, desc)
}

// finish writes the manifest of what is in the cache now, and returns its
// descriptor.
func (c *clientCache) finish(ctx context.Context) (ocispec.Descriptor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: typeClientCache}
	used := map[digest.Digest]bool{}
	for _, o := range c.objects {
		used[o.Digest] = true
		for _, d := range o.Blobs {
			used[d] = true
		}
	}
	for _, d := range slices.Sorted(maps.Keys(used)) {
		if desc, ok := c.blobs[d]; ok {
			m.Layers = append(m.Layers, desc)
		}
	}
	objects, err := json.Marshal(c.objects)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	m.Config = ocispec.Descriptor{MediaType: typeObjects, Digest: digest.FromBytes(objects), Size: int64(len(objects))}
	if err := c.write(ctx, m.Config, bytes.NewReader(objects)); err != nil {
		return ocispec.Descriptor{}, err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(data) > maxDocument || len(objects) > maxDocument {
		return ocispec.Descriptor{}, errors.New("too much for one cache: write it to another directory")
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, c.write(ctx, desc, bytes.NewReader(data))
}

// finishCaches waits for the remote caches, and tells the client what it has to
// keep of those in its directories.
func (j *job) finishCaches(response map[string]string) (map[string]string, error) {
	err := j.caches.Finish(j.ctx)
	for _, path := range slices.Sorted(maps.Keys(j.clientCaches)) {
		c := j.clientCaches[path]
		if !c.changed {
			continue
		}
		desc, ferr := c.finish(j.ctx)
		if ferr != nil {
			j.warn(fmt.Errorf("cache %s is not written: %w", c, ferr))
			continue
		}
		data, ferr := json.Marshal(desc)
		if response == nil {
			response = map[string]string{}
		}
		response[responseCache] = string(data)
		err = errors.Join(err, ferr)
	}
	return response, err
}

// keepImported takes layers of results that are in the client's directories into
// the store: they can't be fetched later, when the client has gone.
func (j *job) keepImported(refs []*reference) error {
	if len(j.clientCaches) == 0 {
		return nil
	}
	store := j.store.Builder.Layers
	for _, r := range refs {
		if r == nil {
			continue
		}
		for _, id := range r.tree {
			l, err := store.Layer(id)
			if err != nil {
				return err
			}
			atClient := func(origin string) bool { return strings.HasPrefix(origin, clientScheme+":") }
			if !slices.ContainsFunc(l.Origins, atClient) {
				continue
			}
			if _, err := store.Ensure(j.ctx, layers.Tree{id}, r.src); err != nil {
				return err
			}
		}
	}
	return nil
}
