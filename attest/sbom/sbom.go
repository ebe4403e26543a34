// Package sbom says what is in a result: as a document in SPDX's form, made by
// an image that speaks BuildKit's generator protocol, or by our own generator.
//
// Ours reads the databases that package managers leave (dpkg, apk, npm, pip) and
// what Go's compiler writes into binaries. It runs nothing, needs no network and
// trusts nothing that it reads: files are bounded, and what can't be parsed is
// left out and told of in the document.
package sbom

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/package-url/packageurl-go"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
)

// NewGenerator makes a generator of an image that was looked up. Of params, what
// isn't the generator's name is passed to it.
func NewGenerator(ref string, d digest.Digest, config []byte, p ocispec.Platform, params map[string]string) (*Generator, error) {
	var img ocispec.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, fmt.Errorf("SBOM generator %s: image configuration: %w", ref, err)
	}
	g := &Generator{Ref: ref, Platform: p, Config: config, Params: map[string]string{}}
	if len(img.RootFS.DiffIDs) > 0 {
		g.Image = &plan.Image{Ref: ref, Digest: d, Platform: p}
	}
	for k, v := range params {
		if k != "generator" && k != "disabled" && k != "type" {
			g.Params[k] = v
		}
	}
	return g, nil
}

// Options say how a document is called.
type Options struct {
	Name    string // of what is described
	Version string // of strake
	Created time.Time
}

// Attestation scans a tree and returns the document as an attestation of it. v
// may be nil for an empty tree.
func Attestation(ctx context.Context, v *snapshot.View, o Options) (attest.Attestation, error) {
	f := &found{}
	if v != nil {
		if err := f.scan(ctx, v); err != nil {
			return attest.Attestation{}, fmt.Errorf("SBOM: %w", err)
		}
	}
	raw, err := json.MarshalIndent(f.document(o), "", "  ")
	if err != nil {
		return attest.Attestation{}, err
	}
	return attest.Attestation{File: "sbom.spdx.json", PredicateType: attest.PredicateSPDX, Predicate: attest.Fixed(raw)}, nil
}

// pkg is a package that was found.
type pkg struct {
	kind      string // of a package URL
	namespace string
	name      string
	version   string
	license   string
	from      string // the file that tells of it
	arch      string
	distro    string
	source    string // the source package, if it has another name
	supplier  string
}

func (p pkg) purl() string {
	var q packageurl.Qualifiers
	for _, kv := range [][2]string{{"arch", p.arch}, {"distro", p.distro}, {"upstream", p.source}} {
		if kv[1] != "" {
			q = append(q, packageurl.Qualifier{Key: kv[0], Value: kv[1]})
		}
	}
	return packageurl.NewPackageURL(p.kind, p.namespace, p.name, p.version, q, "").ToString()
}

const noAssertion = "NOASSERTION"

// document is what was found, in SPDX's form. Equal trees give equal documents
// but for the time.
func (f *found) document(o Options) *v2_3.Document {
	slices.SortFunc(f.packages, func(a, b pkg) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name), cmp.Compare(a.version, b.version), cmp.Compare(a.from, b.from))
	})
	h := sha256.New()
	root := common.ElementID("DocumentRoot")
	doc := &v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: o.Name,
		CreationInfo: &v2_3.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "strake-" + cmp.Or(o.Version, "dev")}},
			Created:  o.Created.UTC().Format(time.RFC3339),
		},
		Packages: []*v2_3.Package{{
			PackageSPDXIdentifier: root, PackageName: o.Name, PackageDownloadLocation: noAssertion,
			PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
			PrimaryPackagePurpose: "CONTAINER",
		}},
		Relationships: []*v2_3.Relationship{{
			RefA: common.MakeDocElementID("", "DOCUMENT"), RefB: common.MakeDocElementID("", string(root)), Relationship: common.TypeRelationshipDescribe,
		}},
	}
	if len(f.skipped) > 0 {
		doc.DocumentComment = "Not read: " + strings.Join(f.skipped, "; ") + "."
	}
	seen := map[common.ElementID]bool{}
	for _, p := range f.packages {
		url := p.purl()
		id := identifier(p, url)
		if seen[id] {
			continue // the same package, told of twice
		}
		seen[id] = true
		fmt.Fprintln(h, url, p.from)
		out := &v2_3.Package{
			PackageSPDXIdentifier: id, PackageName: p.name, PackageVersion: p.version, PackageDownloadLocation: noAssertion,
			PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: cmp.Or(p.license, noAssertion), PackageCopyrightText: noAssertion,
			PackageSourceInfo:         "acquired from /" + p.from,
			PackageExternalReferences: []*v2_3.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: url}},
		}
		if p.namespace != "" && (p.kind == packageurl.TypeNPM || p.kind == packageurl.TypeGolang) {
			out.PackageName = p.namespace + "/" + p.name
		}
		if p.supplier != "" {
			out.PackageSupplier = &common.Supplier{SupplierType: "Organization", Supplier: p.supplier}
		}
		doc.Packages = append(doc.Packages, out)
		doc.Relationships = append(doc.Relationships, &v2_3.Relationship{
			RefA: common.MakeDocElementID("", string(root)), RefB: common.MakeDocElementID("", string(id)), Relationship: common.TypeRelationshipContains,
		})
	}
	doc.DocumentNamespace = "https://spdx.strake.build/" + hex.EncodeToString(h.Sum(nil))
	return doc
}

// identifier is a name that SPDX allows, and that no other package has.
func identifier(p pkg, url string) common.ElementID {
	sum := sha256.Sum256([]byte(url + "\x00" + p.from))
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, p.kind+"-"+p.name)
	return common.ElementID("Package-" + clean + "-" + hex.EncodeToString(sum[:6]))
}
