package remote

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/cache"
)

// Record is the object of a result.
type Record struct {
	Key     cache.Key     `json:"key"`
	Made    time.Time     `json:"made"`
	Took    time.Duration `json:"took"` // nanoseconds
	Why     cache.Why     `json:"why"`
	Outputs []Output      `json:"outputs"`
}

// Output is one result of a step, a tree.
type Output struct {
	// Tree is what the tree is known by in memos.
	Tree string `json:"tree"`
	// Layers are the tree's layers, the lowest first; none if the record only
	// tells what Tree is.
	Layers []Layer `json:"layers,omitempty"`
}

// Layer is a layer as a blob.
type Layer struct {
	DiffID digest.Digest      `json:"diffID"`
	Blob   ocispec.Descriptor `json:"blob"`
	// Base tells that it is a base image's and in no cache, and Origins which
	// repositories have it.
	Base    bool     `json:"base,omitempty"`
	Origins []string `json:"origins,omitempty"`
}

// Memo is the object of a content digest.
type Memo struct {
	Tree     string        `json:"tree"`
	Selector string        `json:"selector"`
	Digest   digest.Digest `json:"digest"`
}

// An object is a line with the SHA-256 digest of the rest, in hex, and the rest,
// which is JSON: not every place notices when what it keeps is damaged.

// encode makes an object.
func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	data = append([]byte(digest.FromBytes(data).Encoded()+"\n"), data...)
	if err == nil && len(data) > MaxObject {
		err = fmt.Errorf("object of %d bytes is too large for a cache", len(data))
	}
	return data, err
}

// decode reads an object.
func decode(object []byte, v any) error {
	sum, data, _ := bytes.Cut(object, []byte("\n"))
	if string(sum) != digest.FromBytes(data).Encoded() {
		return errors.New("damaged object")
	}
	return json.Unmarshal(data, v)
}

// DecodeRecord reads the record of k. What it says is checked as far as that is
// possible without the blobs.
func DecodeRecord(data []byte, k cache.Key) (Record, error) {
	var r Record
	if err := decode(data, &r); err != nil {
		return r, fmt.Errorf("record: %w", err)
	}
	if r.Key != k {
		return r, fmt.Errorf("record is of the key %.12q instead of %.12s", r.Key, k)
	}
	for _, out := range r.Outputs {
		if out.Tree == "" {
			return r, errors.New("record has a result without identity")
		}
		for _, l := range out.Layers {
			if err := l.check(); err != nil {
				return r, fmt.Errorf("record has a bad layer: %w", err)
			}
		}
	}
	return r, nil
}

func (l Layer) check() error {
	for _, d := range []digest.Digest{l.DiffID, l.Blob.Digest} {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("digest %.80q is not a sha256 digest", string(d))
		}
	}
	if l.Blob.Size < 0 {
		return fmt.Errorf("size %d", l.Blob.Size)
	}
	if len(l.Blob.URLs) > 0 {
		return errors.New("addresses outside of the cache are not followed")
	}
	return nil
}

func decodeMemo(data []byte, tree, selector string) (digest.Digest, error) {
	var m Memo
	if err := decode(data, &m); err != nil {
		return "", fmt.Errorf("memo: %w", err)
	}
	if m.Tree != tree || m.Selector != selector {
		return "", errors.New("memo is of another tree")
	}
	return m.Digest, m.Digest.Validate()
}
