package registry

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Normalize returns the full form of a reference: "alpine" is
// "docker.io/library/alpine:latest". One with a digest gets no tag.
func Normalize(ref string) (string, error) {
	r, err := parse(ref)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// ref is a parsed reference.
type ref struct {
	domain string // "docker.io"
	path   string // "library/alpine"
	tag    string
	digest digest.Digest
}

// parse reads a reference as Docker does; without a tag and digest it has the
// tag "latest".
func parse(s string) (ref, error) {
	r, err := parseRepository(s)
	if err == nil && r.tag == "" && r.digest == "" {
		r.tag = "latest"
	}
	return r, err
}

// parseRepository is parse without a default tag.
func parseRepository(s string) (ref, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		if lower := strings.ToLower(s); lower != s {
			if _, lerr := reference.ParseNormalizedNamed(lower); lerr == nil {
				return ref{}, fmt.Errorf("image name %q: the repository must be in lower case", s)
			}
		}
		return ref{}, fmt.Errorf("image name %q: %w", s, err)
	}
	r := ref{domain: reference.Domain(named), path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.digest = d.Digest()
	}
	return r, nil
}

func (r ref) repository() string {
	if r.path == "" {
		return r.domain
	}
	return r.domain + "/" + r.path
}

func (r ref) String() string {
	s := r.repository()
	if r.tag != "" {
		s += ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + r.digest.String()
	}
	return s
}

// name is what the manifest is asked for by: the digest if there is one.
func (r ref) name() string {
	if r.digest != "" {
		return r.digest.String()
	}
	return r.tag
}

// Host is the registry of a reference: "docker.io".
func Host(ref string) (string, error) {
	r, err := parseRepository(ref)
	return r.domain, err
}

// SplitTag returns the repository of a reference, as Repository does, and its
// tag; empty if it has none. A digest is an error.
func SplitTag(ref string) (repository, tag string, err error) {
	r, err := parseRepository(ref)
	if err == nil && r.digest != "" {
		err = fmt.Errorf("%s: a digest names what never changes", ref)
	}
	return r.repository(), r.tag, err
}

// Repository is the repository of a reference, as blob.Ref.Origins has it:
// "docker.io/library/alpine".
func Repository(ref string) (string, error) {
	r, err := parseRepository(ref)
	return r.repository(), err
}
