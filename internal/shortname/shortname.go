// Package shortname shortens references of images as Docker shows them.
package shortname

import "github.com/distribution/reference"

// Of is the short form of a reference, which means the same: "alpine" for
// "docker.io/library/alpine". A tag or digest stays. "docker.io/a.b/c" has none,
// as "a.b/c" is in the registry a.b. What is no reference is returned as it is.
func Of(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	short := reference.FamiliarString(named)
	if again, err := reference.ParseNormalizedNamed(short); err != nil || again.String() != named.String() {
		return named.String()
	}
	return short
}
