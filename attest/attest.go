// Package attest is what is said of results: in-toto statements, and how flags
// and clients ask for them.
//
// A statement has subjects (names and digests of files or images) and a
// predicate about them: how they were made (package provenance), or what is in
// them (package sbom). Nothing of it enters an image's manifest, so that asking
// for attestations never changes an image's digest: exports put them beside it.
package attest

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
)

// The types of statements and predicates, by in-toto, SLSA and SPDX.
const (
	TypeStatement    = "https://in-toto.io/Statement/v1"
	PredicateSLSA1   = "https://slsa.dev/provenance/v1"
	PredicateSLSA02  = "https://slsa.dev/provenance/v0.2"
	PredicateSPDX    = "https://spdx.dev/Document"
	MediaTypePayload = "application/vnd.in-toto+json"
)

// Limit bounds a predicate, in bytes.
const Limit = 80 << 20

// Statement is an in-toto statement.
type Statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []Subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is what a statement is about. Digests are hex by algorithm.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// NewSubject makes a subject of one digest.
func NewSubject(name string, d digest.Digest) Subject {
	return Subject{Name: name, Digest: map[string]string{d.Algorithm().String(): d.Encoded()}}
}

// Attestation is what is to be said of one image.
type Attestation struct {
	// File is the name of the statement where an output has files:
	// "provenance.json".
	File          string
	PredicateType string
	// Subjects are what it is about; empty: what is exported.
	Subjects []Subject
	// InlineOnly leaves it out of outputs that are files, and makes no index
	// of a single image in an archive.
	InlineOnly bool
	// Predicate makes the content. blobs are the layers that were packed for
	// the output; there are none if it has no layers.
	Predicate func(ctx context.Context, blobs map[layers.ID]ocispec.Descriptor) (json.RawMessage, error)
}

// Fixed is the predicate of an attestation that is known.
func Fixed(raw json.RawMessage) func(context.Context, map[layers.ID]ocispec.Descriptor) (json.RawMessage, error) {
	return func(context.Context, map[layers.ID]ocispec.Descriptor) (json.RawMessage, error) { return raw, nil }
}

// Statement makes the statement about what is exported.
func (a Attestation) Statement(ctx context.Context, exported []Subject, blobs map[layers.ID]ocispec.Descriptor) (Statement, error) {
	raw, err := a.Predicate(ctx, blobs)
	if err != nil {
		return Statement{}, err
	}
	if len(raw) > Limit {
		return Statement{}, fmt.Errorf("%s exceeds %d bytes", a.File, Limit)
	}
	s := Statement{Type: TypeStatement, PredicateType: a.PredicateType, Subject: a.Subjects, Predicate: raw}
	if len(s.Subject) == 0 {
		s.Subject = exported
	}
	if s.Subject == nil {
		s.Subject = []Subject{}
	}
	return s, nil
}
