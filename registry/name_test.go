package registry

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/strake-build/strake/internal/shortname"
)

// FuzzReference: the full form of a reference is its own full form, its short
// form means the same, and go-containerregistry reads the same in it.
func FuzzReference(f *testing.F) {
	for _, s := range []string{
		"alpine", "alpine:3.18", "me/app", "docker.io/alpine", "index.docker.io/library/alpine", "index.docker.io0/0", "localhost/x", "localhost:5000/a/b:c", "a.b/c",
		"[::1]:5000/x", "x@sha256:" + strings.Repeat("0a", 32), "x:t@sha256:" + strings.Repeat("0a", 32), "A/b", "a/B", "https://x/y", "a--b/c__d", "127.0.0.1/x",
		strings.Repeat("0a", 32), "a:", "a@", "a/../b", "a//b", "a:x/y", " a", "ü/a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		full, err := Normalize(s)
		if err != nil {
			return
		}
		if again, err := Normalize(full); err != nil || again != full {
			t.Errorf("%q is %q, and that is %q, %v", s, full, again, err)
		}
		if again, err := Normalize(shortname.Of(s)); err != nil || again != full {
			t.Errorf("%q is %q, but its short form %q is %q, %v", s, full, shortname.Of(s), again, err)
		}
		host, err := Host(s)
		if err != nil || host == "" || strings.ContainsAny(host, "/@ ") {
			t.Errorf("%q has the host %q, %v", s, host, err)
		}
		repository, err := Repository(s)
		if err != nil || !strings.HasPrefix(repository, host+"/") || !strings.HasPrefix(full, repository) {
			t.Errorf("%q has the repository %q, %v", s, repository, err)
		}
		// No part of a path may lead elsewhere in the address of a request.
		for part := range strings.SplitSeq(strings.TrimPrefix(repository, host+"/"), "/") {
			if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "?#%\\ ") {
				t.Errorf("%q has the repository %q", s, repository)
			}
		}
		theirs, err := name.ParseReference(full, name.StrictValidation)
		if err != nil {
			return // it knows no IPv6 addresses and no sha512
		}
		ours, err := parse(s)
		if err != nil {
			t.Fatal(err)
		}
		registry := theirs.Context().RegistryStr()
		if registry == name.DefaultRegistry {
			registry = "docker.io"
		}
		if registry != ours.domain || theirs.Context().RepositoryStr() != ours.path || theirs.Identifier() != ours.name() {
			t.Errorf("%q: %s, %s and %s, go-containerregistry reads %s, %s and %s", full, ours.domain, ours.path, ours.name(),
				registry, theirs.Context().RepositoryStr(), theirs.Identifier())
		}
	})
}
