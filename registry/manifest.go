package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/progress"
)

// Resolve fetches the manifest and configuration of an image for a platform.
// In an index the platform itself wins, then what it can run; the error names
// the platforms there are if it is none of them. A manifest that is not in an
// index is taken whatever its platform: Desc.Platform tells. A reference with a
// digest is checked against it. With Options.Blobs, only a tag is asked for
// again.
func (c *Client) Resolve(ctx context.Context, reference string, platform ocispec.Platform) (*Image, error) {
	r, err := parse(reference)
	if err != nil {
		return nil, err
	}
	desc, raw, err := c.root(ctx, r)
	if err != nil {
		return nil, err
	}
	chosen, err := manifest.Choose(ctx, desc, raw, platform, func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		return c.kept(d.Digest, func() ([]byte, error) {
			if manifest.IsIndex(d.MediaType) || manifest.IsManifest(d.MediaType) {
				inner := r
				inner.tag, inner.digest = "", d.Digest
				_, raw, err := c.manifest(ctx, inner)
				return raw, err
			}
			return c.small(ctx, r, d)
		})
	})
	if err != nil {
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) || ctx.Err() != nil {
			return nil, err // names the image itself
		}
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return &Image{
		Ref:         r.String(),
		Index:       chosen.Index,
		Desc:        chosen.Desc,
		Manifest:    chosen.Manifest,
		RawManifest: chosen.Raw,
		Config:      chosen.Config,
		RawIndex:    chosen.RawIndex,
		Origin:      r.repository(),

		Attestations: chosen.Attestations,
	}, nil
}

// root returns the manifest or index that a reference stands for.
func (c *Client) root(ctx context.Context, r ref) (desc ocispec.Descriptor, raw []byte, err error) {
	if r.digest == "" {
		return c.manifest(ctx, r)
	}
	raw, err = c.kept(r.digest, func() (raw []byte, err error) {
		desc, raw, err = c.manifest(ctx, r)
		return raw, err
	})
	if err == nil && desc.Digest == "" {
		mediaType, terr := manifest.Type(raw, "")
		if terr != nil { // it does not say itself what it is
			return c.manifest(ctx, r)
		}
		desc = ocispec.Descriptor{MediaType: mediaType, Digest: r.digest, Size: int64(len(raw))}
	}
	return desc, raw, err
}

// kept returns a small blob that was fetched before, or fetches it. That it
// can't be kept is no failure: it will be fetched again.
func (c *Client) kept(d digest.Digest, fetch func() ([]byte, error)) ([]byte, error) {
	if c.options.Blobs == nil {
		return fetch()
	}
	if n, err := c.options.Blobs.Stat(d); err == nil && n <= manifest.Limit {
		if raw, err := c.options.Blobs.Bytes(d); err == nil {
			return raw, nil
		}
	}
	raw, err := fetch()
	if err == nil {
		_, _, _ = c.options.Blobs.Put(bytes.NewReader(raw), d, int64(len(raw)))
	}
	return raw, err
}

// Head returns the descriptor that a reference stands for, index or manifest.
func (c *Client) Head(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	r, err := parse(reference)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var desc ocispec.Descriptor
	err = c.each(ctx, r, func(e *endpoint) error {
		return c.retry(ctx, e, func(*attempts) error {
			resp, err := c.send(ctx, e, request{
				method: http.MethodHead,
				suffix: "/manifests/" + r.name(),
				header: http.Header{"Accept": {strings.Join(manifest.Types, ", ")}},
				scopes: pullScope(e.path),
			})
			if err != nil {
				return err
			}
			discard(resp)
			desc = ocispec.Descriptor{
				MediaType: strings.TrimSpace(strings.Split(resp.Header.Get("Content-Type"), ";")[0]),
				Digest:    digest.Digest(resp.Header.Get("Docker-Content-Digest")),
				Size:      resp.ContentLength,
			}
			return nil
		})
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if desc.Digest.Validate() != nil || desc.Size <= 0 || !manifest.IsIndex(desc.MediaType) && !manifest.IsManifest(desc.MediaType) ||
		r.digest != "" && r.digest != desc.Digest {
		// The registry does not tell by HEAD, or tells nonsense.
		desc, _, err = c.manifest(ctx, r)
	}
	return desc, err
}

// Manifest fetches a manifest or index whole, verified.
func (c *Client) Manifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	r, err := parse(reference)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return c.manifest(ctx, r)
}

func (c *Client) manifest(ctx context.Context, r ref) (ocispec.Descriptor, []byte, error) {
	var desc ocispec.Descriptor
	var raw []byte
	err := c.each(ctx, r, func(e *endpoint) error {
		return c.retry(ctx, e, func(*attempts) error {
			resp, err := c.send(ctx, e, request{
				method: http.MethodGet,
				suffix: "/manifests/" + r.name(),
				header: http.Header{"Accept": {strings.Join(manifest.Types, ", ")}},
				scopes: pullScope(e.path),
			})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			raw, err = readAll(resp.Body, manifest.Limit)
			if err != nil {
				return err
			}
			want := r.digest
			if want == "" {
				want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
			}
			got := digest.FromBytes(raw)
			if want.Validate() == nil {
				if got = want.Algorithm().FromBytes(raw); got != want {
					return permanent{fmt.Errorf("manifest has the digest %s instead of %s", got, want)}
				}
			}
			mediaType, err := manifest.Type(raw, resp.Header.Get("Content-Type"))
			if err != nil {
				return permanent{err}
			}
			desc = ocispec.Descriptor{MediaType: mediaType, Digest: got, Size: int64(len(raw))}
			return nil
		})
	})
	return desc, raw, err
}

// small fetches a small blob whole.
func (c *Client) small(ctx context.Context, r ref, desc ocispec.Descriptor) ([]byte, error) {
	body, err := c.Blob(ctx, r.repository(), desc, progress.Discard)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := readAll(body, manifest.Limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	return raw, nil
}

// each calls fn for the endpoints of r, mirrors first, until one succeeds. The
// error is that of the registry itself.
func (c *Client) each(ctx context.Context, r ref, fn func(*endpoint) error) error {
	for _, e := range c.endpoints(r, true) {
		err := fn(e)
		if err == nil {
			c.answer(r, e)
			return nil
		}
		if !e.mirror || ctx.Err() != nil {
			return explain(ctx, "", r, e, err)
		}
		e.pass(err)
	}
	panic("unreachable: the registry itself is the last endpoint")
}

// Mirrors that do not answer at all are passed over for this long.
const downTime = 30 * time.Second

func (e *endpoint) pass(err error) {
	var status *statusError
	if errors.As(err, &status) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = time.Now().Add(downTime)
}

func pullScope(path string) []string { return []string{"repository:" + path + ":pull"} }
