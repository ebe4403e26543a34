package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

// Manifest is a manifest or index to be pushed after what it refers to.
type Manifest struct {
	Desc     ocispec.Descriptor
	Raw      []byte
	Blobs    []blob.Ref  // config and layers
	Children []*Manifest // of an index
	// Listed is called if the registry lists the manifest as a referrer of
	// its subject; it may be nil.
	Listed func()
}

// Blobs sent at once in one push: more do not help a registry or a line.
const pushes = 5

// Origins of a blob that are tried for a mount.
const maxOrigins = 4

// Push uploads m and what it refers to under reference (a tag, or only the
// repository to push by digest). Blobs that are there are not sent; blobs with
// an origin on the same registry are mounted; others stream from blob.Ref.Open,
// several at once, resumed or restarted after errors. The manifest comes last:
// a push that fails has changed no name. report gets Status events with the
// actions "pushing", and for blobs that need no sending "exists" and "mounted".
func (c *Client) Push(ctx context.Context, reference string, m *Manifest, report progress.Func) error {
	p, err := c.newPusher(reference, report)
	if err != nil {
		return err
	}
	return p.push(ctx, m)
}

func (c *Client) newPusher(reference string, report progress.Func) (*pusher, error) {
	r, err := parseRepository(reference)
	if err != nil {
		return nil, err
	}
	if report == nil {
		report = progress.Discard
	}
	return &pusher{
		c: c, ref: r, report: report,
		endpoint: &endpoint{host: c.host(apiHost(r.domain), ""), path: r.path},
		seen:     map[digest.Digest]bool{},
	}, nil
}

func (p *pusher) push(ctx context.Context, m *Manifest) error {
	r := p.ref
	if r.digest != "" && r.digest != m.Desc.Digest {
		return fmt.Errorf("push %s: the image has the digest %s", r, m.Desc.Digest)
	}
	if err := p.collect(m, 0); err != nil {
		return fmt.Errorf("push %s: %w", r, err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(pushes)
	for _, b := range p.blobs {
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			if err := p.blob(gctx, b); err != nil {
				blobRef := r
				blobRef.tag, blobRef.digest = "", b.Desc.Digest
				return explain(gctx, "push", blobRef, p.endpoint, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	for _, one := range p.manifests {
		name := one.Desc.Digest.String()
		if one == m && r.tag != "" {
			name = r.tag
		}
		if err := p.manifest(ctx, one, name); err != nil {
			return explain(ctx, "push", r, p.endpoint, err)
		}
	}
	return nil
}

type pusher struct {
	c         *Client
	ref       ref
	endpoint  *endpoint
	report    progress.Func
	seen      map[digest.Digest]bool
	blobs     []blob.Ref
	manifests []*Manifest // children before their parents
	early     []*earlyBlob
}

// collect gathers what is to be pushed, each thing once.
func (p *pusher) collect(m *Manifest, depth int) error {
	if depth > 8 {
		return errors.New("indexes are nested too deep")
	}
	if p.seen[m.Desc.Digest] {
		return nil
	}
	p.seen[m.Desc.Digest] = true
	if err := manifest.Verify(m.Desc, m.Raw); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for _, b := range m.Blobs {
		if !p.seen[b.Desc.Digest] {
			p.seen[b.Desc.Digest] = true
			p.blobs = append(p.blobs, b)
		}
	}
	for _, child := range m.Children {
		if err := p.collect(child, depth+1); err != nil {
			return err
		}
	}
	p.manifests = append(p.manifests, m)
	return nil
}

// manifest uploads one. The request may be repeated: it changes nothing then.
func (p *pusher) manifest(ctx context.Context, m *Manifest, name string) error {
	return p.c.retry(ctx, nil, func(*attempts) error {
		resp, err := p.c.send(ctx, p.endpoint, request{
			method: http.MethodPut,
			suffix: "/manifests/" + name,
			header: http.Header{"Content-Type": {m.Desc.MediaType}},
			body:   bytes.NewReader(m.Raw),
			size:   int64(len(m.Raw)),
			scopes: pushScope(p.endpoint.path),
			accept: []int{http.StatusCreated, http.StatusAccepted},
		})
		if err != nil {
			return err
		}
		discard(resp)
		if m.Listed != nil && resp.Header.Get("OCI-Subject") != "" {
			m.Listed()
		}
		if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); d.Validate() == nil && d.Algorithm() == m.Desc.Digest.Algorithm() && d != m.Desc.Digest {
			return permanent{fmt.Errorf("%s stored the manifest with the digest %s instead of %s", p.endpoint.addr, d, m.Desc.Digest)}
		}
		return nil
	})
}

// blob sees to it that the registry has b.
func (p *pusher) blob(ctx context.Context, b blob.Ref) error {
	meter := newMeter(p.report, b.Desc, "pushing")
	u := &upload{pusher: p, scopes: pushScope(p.endpoint.path)}
	sent, err := p.sentEarly(ctx, b.Desc.Digest)
	if err != nil {
		return err
	}
	there := false
	if sent != nil {
		if there = sent.there; sent.err == nil && !there {
			meter.done()
			return nil
		}
		u = sent.upload
	}
	if !there {
		if there, err = p.exists(ctx, b.Desc); err != nil {
			return err
		}
	}
	if there {
		meter.event.Action = "exists"
		meter.done()
		return nil
	}
	u.ref, u.meter = b, meter
	for i, from := range p.mountable(b.Origins) {
		if i == maxOrigins {
			break
		}
		mounted, err := p.mount(ctx, b.Desc.Digest, from, u)
		if err != nil {
			return err
		}
		if mounted {
			meter.event.Action = "mounted"
			meter.done()
			return nil
		}
	}
	if err := u.run(ctx); err != nil {
		return err
	}
	meter.done()
	return nil
}

// sentEarly waits for what has become of a blob that was sent early; nil if it
// was not.
func (p *pusher) sentEarly(ctx context.Context, d digest.Digest) (*earlyBlob, error) {
	for _, b := range p.early {
		if made, _ := b.f.Blob(); made == d {
			select {
			case <-b.done:
				return b, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
	return nil, nil
}

func (p *pusher) exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	there := false
	err := p.c.retry(ctx, nil, func(*attempts) error {
		resp, err := p.c.send(ctx, p.endpoint, request{
			method: http.MethodHead,
			suffix: "/blobs/" + desc.Digest.String(),
			scopes: pushScope(p.endpoint.path),
		})
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		discard(resp)
		there = resp.ContentLength < 0 || resp.ContentLength == desc.Size
		return nil
	})
	return there, err
}

// mountable returns the paths of repositories on this registry that hold, or
// as mirrors of an origin may hold, the blob.
func (p *pusher) mountable(origins []string) []string {
	var paths []string
	for _, o := range origins {
		r, err := parseRepository(o)
		if err != nil {
			continue
		}
		for _, e := range p.c.endpoints(r, true) {
			if e.addr == p.endpoint.addr && e.path != p.endpoint.path && !slices.Contains(paths, e.path) {
				paths = append(paths, e.path)
			}
		}
	}
	return paths
}

// mount asks the registry to take the blob from another repository. If it does
// not, it may have begun an upload instead, which u continues.
func (p *pusher) mount(ctx context.Context, d digest.Digest, from string, u *upload) (bool, error) {
	mounted := false
	err := p.c.retry(ctx, nil, func(*attempts) error {
		resp, err := p.c.send(ctx, p.endpoint, request{
			method: http.MethodPost,
			suffix: "/blobs/uploads/?mount=" + url.QueryEscape(d.String()) + "&from=" + url.QueryEscape(from),
			scopes: append(pushScope(p.endpoint.path), pullScope(from)...),
			accept: []int{http.StatusCreated, http.StatusAccepted},
		})
		if err != nil {
			return err
		}
		discard(resp)
		mounted = resp.StatusCode == http.StatusCreated
		if resp.StatusCode == http.StatusAccepted {
			u.moved(resp)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil && final(err) {
		return false, nil // it does not let us; then we upload
	}
	return mounted, err
}

func pushScope(path string) []string { return []string{"repository:" + path + ":pull,push"} }
