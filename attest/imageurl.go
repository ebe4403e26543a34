package attest

import (
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/package-url/packageurl-go"
)

// ImageURL is the package URL of an image: of a registry, or of an OCI layout. A
// reference that can't be read is returned as it is.
func ImageURL(ref string, p ocispec.Platform, layout bool) string {
	kind := packageurl.TypeDocker
	if layout {
		kind = packageurl.TypeOCI
	}
	named, err := reference.ParseNormalizedNamed(strings.TrimPrefix(ref, "oci-layout://"))
	if err != nil {
		return ref
	}
	var qualifiers packageurl.Qualifiers
	if c, ok := named.(reference.Canonical); ok {
		qualifiers = append(qualifiers, packageurl.Qualifier{Key: "digest", Value: c.Digest().String()})
	} else {
		named = reference.TagNameOnly(named)
	}
	version := ""
	if t, ok := named.(reference.Tagged); ok {
		version = t.Tag()
	}
	if p.OS != "" {
		p.OSVersion, p.OSFeatures = "", nil
		qualifiers = append(qualifiers, packageurl.Qualifier{Key: "platform", Value: platforms.Format(platforms.Normalize(p))})
	}
	name, space := reference.FamiliarName(named), ""
	if i := strings.LastIndex(name, "/"); i >= 0 {
		space, name = name[:i], name[i+1:]
	}
	return packageurl.NewPackageURL(kind, space, name, version, qualifiers, "").ToString()
}
