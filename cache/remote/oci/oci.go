// Package oci keeps a remote cache in a repository of an OCI registry.
//
// An object is an artifact manifest, which has the object as an annotation and
// the blobs it names as its layers: one request gets it, and a registry that
// collects garbage keeps its blobs. Its tag is the object's name, after the tag
// of the reference, if that has one, and a dash.
package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/registry"
)

// ArtifactType is that of objects, and Annotation the one that holds them.
const (
	ArtifactType = "application/vnd.strake.cache.v1+json"
	Annotation   = "dev.strake.cache.v1"
)

// Repository is a cache in a repository.
type Repository struct {
	client *registry.Client
	name   string
	prefix string // of tags
	text   string

	mu   sync.Mutex
	sent map[digest.Digest]bool // blobs that the registry has
	// sending are the blobs that are sent now, with what is closed when they
	// have been: some registries fail if one is sent twice at a time.
	sending map[digest.Digest]chan struct{}
}

var _ remote.Backend = (*Repository)(nil)

// maxTag bounds the tag of a reference: what is made of it has at most 128
// characters.
const maxTag = 48

// Open returns the cache at a reference, with or without a tag.
func Open(c *registry.Client, reference, text string) (*Repository, error) {
	name, tag, err := registry.SplitTag(reference)
	if err != nil {
		return nil, err
	}
	r := &Repository{client: c, name: name, text: text, sent: map[digest.Digest]bool{}, sending: map[digest.Digest]chan struct{}{}}
	if tag != "" {
		if len(tag) > maxTag {
			return nil, fmt.Errorf("tag %s: for a cache it has at most %d characters", tag, maxTag)
		}
		r.prefix = tag + "-"
	}
	return r, nil
}

func (r *Repository) reference(name string) string { return r.name + ":" + r.prefix + name }

// Get implements [remote.Backend].
func (r *Repository) Get(ctx context.Context, name string) ([]byte, error) {
	_, raw, err := r.client.Manifest(ctx, r.reference(name))
	if errors.Is(err, registry.ErrNotFound) {
		return nil, remote.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil || m.ArtifactType != ArtifactType {
		return nil, remote.ErrNotFound // somebody else's
	}
	return []byte(m.Annotations[Annotation]), nil
}

// Has implements [remote.Backend].
func (r *Repository) Has(ctx context.Context, name string) (bool, error) {
	_, err := r.client.Head(ctx, r.reference(name))
	if errors.Is(err, registry.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Put implements [remote.Backend]. A registry takes no blob that it has, damaged
// or not.
func (r *Repository) Put(ctx context.Context, name string, object []byte, blobs []blob.Ref, _ bool) error {
	empty := blob.Ref{Desc: ocispec.DescriptorEmptyJSON, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(ocispec.DescriptorEmptyJSON.Data)), nil
	}}
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType,
		Config:       empty.Desc,
		Annotations:  map[string]string{Annotation: string(object)},
	}
	for _, b := range blobs {
		m.Layers = append(m.Layers, b.Desc)
	}
	if len(blobs) == 0 {
		m.Layers = []ocispec.Descriptor{empty.Desc}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	push := &registry.Manifest{Desc: ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, Raw: raw}
	push.Blobs = append(blobs[:len(blobs):len(blobs)], empty)
	return r.push(ctx, r.reference(name), push)
}

// push pushes a manifest, and its blobs unless the registry has them.
func (r *Repository) push(ctx context.Context, reference string, m *registry.Manifest) error {
	blobs, done, err := r.claim(ctx, m.Blobs)
	if err != nil {
		return err
	}
	m.Blobs = blobs
	err = r.client.Push(ctx, reference, m, nil)
	done(err == nil)
	return err
}

// claim returns those of some blobs that the registry has not, when nobody else
// is sending one of them. done has to be called when they are sent, or not.
func (r *Repository) claim(ctx context.Context, blobs []blob.Ref) (todo []blob.Ref, done func(sent bool), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := 0; i < len(blobs); i++ {
		busy, ok := r.sending[blobs[i].Desc.Digest]
		if !ok {
			continue
		}
		r.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		i = -1 // others may have begun meanwhile
	}
	sent := make(chan struct{})
	for _, b := range blobs {
		if !r.sent[b.Desc.Digest] {
			todo = append(todo, b)
			r.sending[b.Desc.Digest] = sent
		}
	}
	return todo, func(ok bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, b := range todo {
			r.sent[b.Desc.Digest] = ok
			delete(r.sending, b.Desc.Digest)
		}
		close(sent)
	}, nil
}

// Origin implements [remote.Backend].
func (r *Repository) Origin() string { return r.name }

// String implements [remote.Backend].
func (r *Repository) String() string { return r.text }
