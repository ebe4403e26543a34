package manifest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is the image that Choose chose, its documents verified and consistent.
type Image struct {
	Index    digest.Digest      // of the outermost index it was chosen from, or empty
	Desc     ocispec.Descriptor // of the manifest, with the platform
	Manifest ocispec.Manifest
	Raw      []byte // of the manifest
	Config   []byte
	RawIndex []byte // of Index
	// Attestations are the attestation manifests of the image that the index
	// it was chosen from names.
	Attestations []ocispec.Descriptor
}

// Fetch returns the bytes that desc describes, at most Limit; Choose verifies
// them. The descriptor is of a manifest, an index or a configuration.
type Fetch func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)

// Indexes in indexes end here; nothing sensible is deeper than one.
const maxDepth = 3

// How many manifests are fetched to learn their platform, which a good index
// tells.
const maxProbes = 16

// PlatformError tells that an index has no image for a platform.
type PlatformError struct {
	Want      ocispec.Platform
	Available []ocispec.Platform
}

// Error names the platforms that there are.
func (e *PlatformError) Error() string {
	var have []string
	for _, p := range e.Available {
		have = append(have, platforms.FormatAll(p))
	}
	if len(have) == 0 {
		return fmt.Sprintf("no image for %s, nor for any other platform", platforms.FormatAll(e.Want))
	}
	return fmt.Sprintf("no image for %s; there are %s", platforms.FormatAll(e.Want), strings.Join(have, ", "))
}

// Choose finds the image for a platform, beginning at the document raw that
// desc describes (raw is verified already). In an index the platform itself
// wins, then what the platform can run, the best first. A single manifest is
// taken whatever its platform is.
func Choose(ctx context.Context, desc ocispec.Descriptor, raw []byte, platform ocispec.Platform, fetch Fetch) (*Image, error) {
	c := chooser{fetch: fetch, want: platforms.Normalize(platform)}
	c.match = platforms.Only(c.want)
	chosen := &Image{}
	if IsIndex(desc.MediaType) {
		chosen.Index, chosen.RawIndex = desc.Digest, raw
		found, err := c.list(ctx, raw, 0)
		if err != nil {
			return nil, err
		}
		d, ok := c.best(found)
		if !ok {
			return nil, &PlatformError{Want: c.want, Available: known(found)}
		}
		if raw, err = c.get(ctx, d); err != nil {
			return nil, err
		}
		desc = d
		chosen.Attestations = slices.DeleteFunc(c.attested, func(a ocispec.Descriptor) bool { return Attested(a) != d.Digest })
	}
	m, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	for _, l := range m.Layers {
		if l.MediaType == "" {
			return nil, fmt.Errorf("%s: layer %s has no media type", desc.Digest, l.Digest)
		}
	}
	config, img, err := c.config(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	if desc.Platform == nil {
		desc.Platform = &img.Platform
	}
	chosen.Desc, chosen.Manifest, chosen.Raw, chosen.Config = desc, m, raw, config
	return chosen, nil
}

type chooser struct {
	fetch  Fetch
	want   ocispec.Platform
	match  platforms.MatchComparer
	probes int
	// attested are the attestation manifests that were met.
	attested []ocispec.Descriptor
}

// list returns the manifests of an index and the indexes in it. Entries that
// tell no platform are asked for it.
func (c *chooser) list(ctx context.Context, raw []byte, depth int) ([]ocispec.Descriptor, error) {
	if depth == maxDepth {
		return nil, errors.New("indexes are nested too deep")
	}
	x, err := ParseIndex(raw)
	if err != nil {
		return nil, err
	}
	var found []ocispec.Descriptor
	for _, d := range x.Manifests {
		switch {
		case d.Platform != nil && d.Platform.OS == "unknown":
			if Attested(d) != "" && IsManifest(d.MediaType) {
				c.attested = append(c.attested, d)
			}
		case IsIndex(d.MediaType):
			if c.probes++; c.probes > maxProbes {
				return nil, errors.New("index has too many indexes in it")
			}
			inner, err := c.get(ctx, d)
			if err != nil {
				return nil, err
			}
			more, err := c.list(ctx, inner, depth+1)
			if err != nil {
				return nil, err
			}
			found = append(found, more...)
		case !IsManifest(d.MediaType):
		case d.Platform == nil || d.Platform.OS == "":
			p, err := c.probe(ctx, d)
			if err != nil {
				return nil, err
			}
			if p != nil {
				d.Platform = p
				found = append(found, d)
			}
		default:
			found = append(found, d)
		}
	}
	return found, nil
}

// probe learns a manifest's platform from its configuration; nil if it has
// none (it is no image).
func (c *chooser) probe(ctx context.Context, d ocispec.Descriptor) (*ocispec.Platform, error) {
	if c.probes++; c.probes > maxProbes {
		return nil, errors.New("index has too many manifests that tell no platform")
	}
	raw, err := c.get(ctx, d)
	if err != nil {
		return nil, err
	}
	m, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	if m.Config.MediaType != ocispec.MediaTypeImageConfig && m.Config.MediaType != DockerConfig {
		return nil, nil
	}
	_, img, err := c.config(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	return &img.Platform, nil
}

func (c *chooser) best(found []ocispec.Descriptor) (ocispec.Descriptor, bool) {
	var fit []ocispec.Descriptor
	for _, d := range found {
		if c.match.Match(*d.Platform) {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return ocispec.Descriptor{}, false
	}
	sort.SliceStable(fit, func(i, j int) bool { return c.match.Less(*fit[i].Platform, *fit[j].Platform) })
	return fit[0], true
}

// get fetches a manifest or index and checks that it is what d says.
func (c *chooser) get(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	raw, err := c.bytes(ctx, d)
	if err != nil {
		return nil, err
	}
	if _, err := Type(raw, d.MediaType); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Digest, err)
	}
	return raw, nil
}

func (c *chooser) config(ctx context.Context, m ocispec.Manifest) ([]byte, ocispec.Image, error) {
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, DockerConfig:
	default:
		_, err := Config(m, nil)
		return nil, ocispec.Image{}, err
	}
	raw, err := c.bytes(ctx, m.Config)
	if err != nil {
		return nil, ocispec.Image{}, err
	}
	img, err := Config(m, raw)
	return raw, img, err
}

func (c *chooser) bytes(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > Limit {
		return nil, fmt.Errorf("%s has %d bytes; the limit is %d", d.Digest, d.Size, Limit)
	}
	raw, err := c.fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	if err := Verify(d, raw); err != nil {
		return nil, err
	}
	return raw, nil
}

func known(found []ocispec.Descriptor) []ocispec.Platform {
	seen := map[string]bool{}
	var ps []ocispec.Platform
	for _, d := range found {
		key, _ := json.Marshal(d.Platform)
		if !seen[string(key)] {
			seen[string(key)] = true
			ps = append(ps, *d.Platform)
		}
	}
	return ps
}
