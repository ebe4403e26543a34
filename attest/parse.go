package attest

import (
	"fmt"
	"strings"

	"github.com/tonistiigi/go-csvvalue"
)

// Kinds of attestations that can be asked for.
const (
	Provenance = "provenance"
	SBOM       = "sbom"
)

// Request is the attestations that are asked for: their parameters, by kind.
type Request map[string]map[string]string

// Parse reads the parameters of one attestation, a list of key=value pairs in
// CSV form; a key without a value has an empty one.
func Parse(kind, params string) (map[string]string, error) {
	attrs := map[string]string{}
	if params == "" {
		return attrs, nil
	}
	fields, err := csvvalue.Fields(params, nil)
	if err != nil {
		return nil, fmt.Errorf("failed to parse %s: %w", kind, err)
	}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		attrs[k] = v
	}
	return attrs, nil
}
