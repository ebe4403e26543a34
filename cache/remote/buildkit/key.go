package buildkit

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Key is what BuildKit knows one result of a step by.
type Key struct {
	digest digest.Digest // of the operation, without its inputs
	deps   []dep
	// Layers of the result: those at the bottom, which a base image has, and
	// how many there are in all.
	bottom []digest.Digest
	count  int

	identity content
}

// dep is an input of an operation.
type dep struct {
	key      *Key // by definition; nil if that names nothing
	selector digest.Digest
	content  *content // by content; nil if that does not count
}

// content is a digest that is computed when it is first wanted.
type content struct {
	find func(context.Context) (digest.Digest, error)
	near bool // no step has to be run for it

	mu sync.Mutex
	d  digest.Digest
}

func (c *content) digest(ctx context.Context) (digest.Digest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.d != "" {
		return c.d, nil
	}
	var err error
	c.d, err = c.find(ctx)
	return c.d, err
}

// record is the digest of the record of a key: that of the operation and the
// number of the result, which is the first in all that has a key.
func (k *Key) record() digest.Digest { return outputDigest(k.digest, 0) }

// Layers is how many layers the result has.
func (k *Key) Layers() int { return k.count }

// Identity is what tells the result of a key from all that BuildKit would not
// take for it: its definition, and the contents of what has none.
func (k *Key) Identity(ctx context.Context) (digest.Digest, error) {
	return k.identity.digest(ctx)
}

func (k *Key) identify(ctx context.Context) (digest.Digest, error) {
	parts := []string{k.record().String()}
	for _, d := range k.deps {
		id := d.content
		if d.key != nil {
			id = &d.key.identity
		}
		part, err := id.digest(ctx)
		if err != nil {
			return "", err
		}
		parts = append(parts, d.selector.String(), part.String())
	}
	return digest.FromString(strings.Join(parts, "\x00")), nil
}

// contentOutput is the number of the result in records of contents.
const contentOutput = -1

func outputDigest(d digest.Digest, output int) digest.Digest {
	return digest.FromString(fmt.Sprintf("%s@%d", d, output))
}
