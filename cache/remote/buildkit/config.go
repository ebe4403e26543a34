package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MediaType is that of the configuration of a cache.
const MediaType = "application/vnd.buildkit.cacheconfig.v0"

// InlineField is the field of an image's configuration that has the records of
// a cache whose layers are the image's.
const InlineField = "moby.buildkit.cache.v0"

// Uncompressed is the annotation of a layer with its diffID.
const Uncompressed = "containerd.io/uncompressed"

// config is the configuration of a cache.
type config struct {
	Layers  []layer  `json:"layers,omitempty"`
	Records []record `json:"records,omitempty"`
}

// layer is a blob on top of another layer, Parent, or -1.
type layer struct {
	Blob   digest.Digest `json:"blob"`
	Parent int           `json:"parent"`
}

// record has the results that are known by a digest and inputs. A result is a
// layer with all below it, or a list of layers.
type record struct {
	Results []result      `json:"layers,omitempty"`
	Chains  []chain       `json:"chains,omitempty"`
	Digest  digest.Digest `json:"digest,omitempty"`
	Inputs  [][]link      `json:"inputs,omitempty"`
}

type result struct {
	Layer     int       `json:"layer"`
	CreatedAt time.Time `json:"createdAt"`
}

type chain struct {
	Layers    []int     `json:"layers"`
	CreatedAt time.Time `json:"createdAt"`
}

// link is a record that an input may be.
type link struct {
	Selector string `json:"selector,omitempty"`
	Record   int    `json:"link"`
}

// The bounds of a cache. One with more is none that a build makes.
const (
	maxRecords = 100_000
	maxLayers  = 100_000
	maxChain   = 1000 // layers of one result
)

// Manifest is a cache as it was found.
type Manifest struct {
	config config
	byName map[digest.Digest][]int // records by their digests
	blobs  map[digest.Digest]ocispec.Descriptor

	mu    sync.Mutex
	found map[*Key]map[int]bool // records of keys
}

// Parse reads a cache's configuration, with the descriptors that its manifest
// has for layers.
func Parse(data []byte, layers []ocispec.Descriptor) (*Manifest, error) {
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("cache configuration: %w", err)
	}
	return newManifest(c, layers)
}

// ParseInline reads the field of an image's configuration. The image's layers
// have their diffIDs as annotations.
func ParseInline(field []byte, layers []ocispec.Descriptor) (*Manifest, error) {
	var data []byte // in Base64
	var c config
	if err := json.Unmarshal(field, &data); err != nil {
		return nil, fmt.Errorf("inline cache: %w", err)
	}
	if err := json.Unmarshal(data, &c.Records); err != nil {
		return nil, fmt.Errorf("inline cache: %w", err)
	}
	for i, desc := range layers {
		c.Layers = append(c.Layers, layer{desc.Digest, i - 1})
	}
	return newManifest(c, layers)
}

func newManifest(c config, layers []ocispec.Descriptor) (*Manifest, error) {
	if len(c.Records) > maxRecords || len(c.Layers) > maxLayers {
		return nil, fmt.Errorf("cache configuration: %d records and %d layers are too many", len(c.Records), len(c.Layers))
	}
	m := &Manifest{config: c, byName: map[digest.Digest][]int{}, blobs: map[digest.Digest]ocispec.Descriptor{}, found: map[*Key]map[int]bool{}}
	for i, r := range c.Records {
		for _, links := range r.Inputs {
			for _, l := range links {
				if l.Record < 0 || l.Record >= len(c.Records) {
					return nil, fmt.Errorf("cache configuration: record %d has an input %d, which there is not", i, l.Record)
				}
			}
		}
		m.byName[r.Digest] = append(m.byName[r.Digest], i)
	}
	for _, desc := range layers {
		m.blobs[desc.Digest] = desc
	}
	return m, nil
}

// Result is what a cache has for a key: the layers of a file system, the lowest
// first. Their annotations have diffIDs.
type Result struct {
	Layers []ocispec.Descriptor
	Made   time.Time
}

// Find returns the results of a key, the newest first. near: contents that a
// step would have to be run for do not count.
func (m *Manifest) Find(ctx context.Context, k *Key, near bool) ([]Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	found, err := m.match(ctx, k, near)
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, i := range slices.Sorted(maps.Keys(found)) {
		r := m.config.Records[i]
		for _, res := range r.Results {
			if list, err := m.below(res.Layer); err == nil {
				results = m.add(results, list, res.CreatedAt, k)
			}
		}
		for _, c := range r.Chains {
			results = m.add(results, c.Layers, c.CreatedAt, k)
		}
	}
	slices.SortStableFunc(results, func(a, b Result) int { return b.Made.Compare(a.Made) })
	return results, nil
}

// Knows reports whether there is a record of a key that is found without running
// any step.
func (m *Manifest) Knows(ctx context.Context, k *Key) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	found, err := m.match(ctx, k, true)
	return err == nil && len(found) > 0
}

// below lists a layer and what it is on, the lowest first.
func (m *Manifest) below(i int) ([]int, error) {
	var list []int
	for ; i != -1; i = m.config.Layers[i].Parent {
		if i < 0 || i >= len(m.config.Layers) || len(list) == maxChain {
			return nil, errors.New("cache configuration: a result has layers without end, or that there are not")
		}
		list = append(list, i)
	}
	slices.Reverse(list)
	return list, nil
}

// add adds a result, if it is one that the key can have.
func (m *Manifest) add(results []Result, list []int, made time.Time, k *Key) []Result {
	if len(list) != k.count {
		return results
	}
	r := Result{Made: made}
	for n, i := range list {
		if i < 0 || i >= len(m.config.Layers) {
			return results
		}
		desc, ok := m.blobs[m.config.Layers[i].Blob]
		diffID := digest.Digest(desc.Annotations[Uncompressed])
		if !ok || diffID.Validate() != nil || diffID.Algorithm() != digest.SHA256 || desc.Digest.Validate() != nil || desc.Size <= 0 {
			return results
		}
		if n < len(k.bottom) && diffID != k.bottom[n] {
			return results
		}
		r.Layers = append(r.Layers, desc)
	}
	return append(results, r)
}

// match returns the records of a key.
func (m *Manifest) match(ctx context.Context, k *Key, near bool) (map[int]bool, error) {
	if found, ok := m.found[k]; ok && (len(found) > 0 || near) {
		return found, nil
	}
	found := map[int]bool{}
	for _, i := range m.byName[k.record()] {
		if len(m.config.Records[i].Inputs) == len(k.deps) {
			found[i] = true
		}
	}
	for n, d := range k.deps {
		if len(found) == 0 {
			break
		}
		if err := m.keep(ctx, found, n, d, near); err != nil {
			return nil, err
		}
	}
	m.found[k] = found
	return found, nil
}

// keep leaves those records of found whose input n is d.
func (m *Manifest) keep(ctx context.Context, found map[int]bool, n int, d dep, near bool) error {
	var inputs map[int]bool
	if d.key != nil {
		var err error
		if inputs, err = m.match(ctx, d.key, near); err != nil {
			return err
		}
	}
	fits := map[int]bool{}
	byContent := false
	for i := range found {
		for _, l := range m.config.Records[i].Inputs[n] {
			if inputs[l.Record] && l.Selector == d.selector.String() {
				fits[i] = true
			}
		}
		byContent = byContent || !fits[i] && slices.ContainsFunc(m.config.Records[i].Inputs[n], m.isContent)
	}
	if byContent && d.content != nil && (d.content.near || !near && len(fits) == 0) {
		c, err := d.content.digest(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		want := outputDigest(c, contentOutput)
		for i := range found {
			fits[i] = fits[i] || err == nil && slices.ContainsFunc(m.config.Records[i].Inputs[n], func(l link) bool {
				return m.isContent(l) && m.config.Records[l.Record].Digest == want
			})
		}
	}
	for i := range found {
		if !fits[i] {
			delete(found, i)
		}
	}
	return nil
}

// isContent reports whether a link may be to a record of contents.
func (m *Manifest) isContent(l link) bool {
	return l.Selector == "" && len(m.config.Records[l.Record].Inputs) == 0
}
