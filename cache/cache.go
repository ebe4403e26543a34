// Package cache remembers results: the record of each step's key, and the
// content digests of inputs.
//
// It is an append-only, checksummed log of small records with a snapshot, and
// any number of processes use it at once without waiting for each other. A torn
// or damaged record is a miss with a warning, never an error.
package cache

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/state"
)

// Key identifies a step by everything that may change its result: 64 hex
// digits.
type Key string

// Record is the result of a step that was run, and why it was run.
type Record struct {
	Key Key `json:"key"`
	// Outputs are the trees of the step's results.
	Outputs []layers.Tree `json:"outputs"`
	Made    time.Time     `json:"made"`
	// Used is when the record was last looked up, to the hour.
	Used time.Time     `json:"used"`
	Took time.Duration `json:"took"`
	Why  Why           `json:"why"`
}

// Why says what went into a key, for explanations.
type Why struct {
	Name     string   `json:"name"`           // the step's text
	Op       string   `json:"op"`             // its canonical form
	Inputs   []string `json:"inputs"`         // identities, in order
	Args     []string `json:"args,omitempty"` // build args used, NAME=value
	Platform string   `json:"platform,omitempty"`
}

// Store is the cache of a store root.
type Store struct{}

// Open opens the cache of root. warn is called for damaged records.
func Open(root *state.Root, warn func(error)) (*Store, error) { panic("unwritten") }

// Get looks a key up, among records that other processes have just written too.
func (s *Store) Get(k Key) (Record, bool) { panic("unwritten") }

// Put adds a record.
func (s *Store) Put(r Record) error { panic("unwritten") }

// Delete forgets keys.
func (s *Store) Delete(keys ...Key) error { panic("unwritten") }

// Memo returns what PutMemo stored: the digest of the content that selector
// names in the result that key identifies.
func (s *Store) Memo(key, selector string) (digest.Digest, bool) { panic("unwritten") }

// PutMemo stores a content digest.
func (s *Store) PutMemo(key, selector string, d digest.Digest) error { panic("unwritten") }

// Lock waits until no other process runs the step of this key, and keeps others
// from it until unlock. The caller looks the key up again then.
func (s *Store) Lock(ctx context.Context, k Key) (unlock func(), err error) { panic("unwritten") }

// All returns every record, the most lately used first.
func (s *Store) All() ([]Record, error) { panic("unwritten") }

// Compact rewrites the snapshot and empties the log.
func (s *Store) Compact() error { panic("unwritten") }

// Close syncs what was written.
func (s *Store) Close() error { panic("unwritten") }
