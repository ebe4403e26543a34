package buildkitapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/attest/sbom"
	"github.com/strake-build/strake/builder/export"
	"github.com/strake-build/strake/plan"
)

// attestation is one that a frontend made: a statement, or a directory of them.
type attestation struct {
	kind          gwpb.AttestationKind
	metadata      map[string][]byte
	ref           *reference
	path          string
	predicateType string
	subjects      []*gwpb.InTotoSubject
}

// parseAttests reads which attestations a client asks for.
func parseAttests(attrs map[string]string) (attest.Request, error) {
	out := attest.Request{}
	for k, v := range attrs {
		kind, ok := strings.CutPrefix(k, "attest:")
		if !ok {
			if kind, ok = strings.CutPrefix(k, "build-arg:BUILDKIT_ATTEST_"); !ok {
				continue
			}
		}
		kind = strings.ToLower(kind)
		if kind != attest.Provenance && kind != attest.SBOM {
			return nil, fmt.Errorf("unknown attestation type %q", kind)
		}
		params, err := attest.Parse(kind, v)
		if err != nil {
			return nil, err
		}
		out[kind] = params
	}
	return out, nil
}

// hasSBOM reports whether somebody made one already.
func (r *result) hasSBOM() bool {
	for _, list := range r.attestations {
		for _, a := range list {
			if a.predicateType == attest.PredicateSPDX {
				return true
			}
		}
	}
	return false
}

// addScan has a generator look at the result of a platform, as a step that runs
// if somebody exports it.
func (r *result) addScan(j *job, g *sbom.Generator, id string, target plan.Input, extras map[string]plan.Input, noCache bool) (*reference, error) {
	scan, err := g.Scan(id, target, extras, noCache)
	if err != nil {
		return nil, err
	}
	ref := j.reference(scan.Step, scan.Output, nil)
	if r.attestations == nil {
		r.attestations = map[string][]attestation{}
	}
	r.attestations[id] = append(r.attestations[id], attestation{
		kind: gwpb.AttestationKind_Bundle, ref: ref, predicateType: attest.PredicateSPDX,
		metadata: map[string][]byte{"reason": []byte("sbom"), "sbom-core": []byte("sbom")},
	})
	return ref, nil
}

// generator is the image that is to make SBOMs; nil if it is our own one, or if
// none is wanted.
func (j *job) generator(ctx context.Context, params map[string]string, resolveMode string) (*sbom.Generator, error) {
	name := params["generator"]
	if name == "" {
		if _, given := params["generator"]; given {
			return nil, errors.New("sbom scanner cannot be empty")
		}
		return nil, nil
	}
	p := j.s.o.Platforms[0]
	b, err := j.onlyImage(ctx, name, p, resolveMode == pb.AttrImageResolveModeForcePull)
	if err != nil {
		return nil, err
	}
	return sbom.NewGenerator(b.Ref, b.Digest, b.Config, p, params)
}

// attestationsOf are the attestations of one image.
func (j *job) attestationsOf(res *result, e entry, img export.Image) ([]attest.Attestation, error) {
	var out []attest.Attestation
	for _, a := range res.attestations[e.id] {
		list, err := j.read(a)
		if err != nil {
			return nil, fmt.Errorf("attestation: %w", err)
		}
		out = append(out, list...)
	}
	if _, wanted := j.attests[attest.SBOM]; wanted && !res.hasSBOM() {
		a, err := j.builtinSBOM(e, img)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	a, err := j.provenance(e.ref, e.platform)
	if err != nil || a == nil {
		return out, err
	}
	return append(out, *a), nil
}

// builtinSBOM is an SBOM by our own generator.
func (j *job) builtinSBOM(e entry, img export.Image) (attest.Attestation, error) {
	o := sbom.Options{Name: e.id, Version: j.s.o.Version, Created: j.s.now()}
	if at := img.Target.Image.Created; at != nil {
		o.Created = *at
	}
	if len(img.Tree) == 0 {
		return sbom.Attestation(j.ctx, nil, o)
	}
	v, err := j.store.Builder.Layers.View(j.ctx, img.Tree, img.Sources)
	if err != nil {
		return attest.Attestation{}, err
	}
	return sbom.Attestation(j.ctx, v, o)
}

// read makes statements of what a frontend left.
func (j *job) read(a attestation) ([]attest.Attestation, error) {
	inline, _ := strconv.ParseBool(string(a.metadata["inline-only"]))
	v, err := j.view(a.ref)
	if err != nil {
		return nil, err
	}
	if a.kind == gwpb.AttestationKind_Bundle {
		if a.ref == nil {
			return nil, errors.New("no ref provided for attestation bundle")
		}
		list, err := sbom.ReadBundle(j.ctx, v, a.path, a.predicateType)
		for i := range list {
			list[i].InlineOnly = inline
		}
		return list, err
	}
	if strings.HasPrefix(a.predicateType, "https://slsa.dev/provenance/") {
		return nil, errors.New("frontend may not set provenance attestations")
	}
	if a.path == "" {
		return nil, errors.New("attestation does not have set path")
	}
	data, err := j.readFile(a.ref, a.path, 0, 0)
	if err != nil {
		return nil, err
	}
	if !json.Valid(data) {
		return nil, fmt.Errorf("%s: the predicate is not valid JSON", a.path)
	}
	out := attest.Attestation{File: a.path, PredicateType: a.predicateType, InlineOnly: inline, Predicate: attest.Fixed(data)}
	for _, s := range a.subjects {
		if s.GetKind() != gwpb.InTotoSubjectKind_Raw {
			continue // what is exported
		}
		sub := attest.Subject{Name: s.GetName(), Digest: map[string]string{}}
		if sub.Name == "" {
			sub.Name = "_"
		}
		for _, d := range s.GetDigest() {
			algorithm, hex, _ := strings.Cut(d, ":")
			sub.Digest[algorithm] = hex
		}
		out.Subjects = append(out.Subjects, sub)
	}
	return []attest.Attestation{out}, nil
}

// wireAttestations are attestations as clients see them.
func (r *result) wireAttestations() map[string]*gwpb.Attestations {
	if len(r.attestations) == 0 {
		return nil
	}
	out := map[string]*gwpb.Attestations{}
	for id, list := range r.attestations {
		as := &gwpb.Attestations{}
		for _, a := range list {
			w := &gwpb.Attestation{Kind: a.kind, Metadata: a.metadata, Path: a.path, InTotoPredicateType: a.predicateType, InTotoSubjects: a.subjects}
			if a.ref != nil {
				w.Ref = &gwpb.Ref{Id: a.ref.id, Def: a.ref.def}
			}
			as.Attestation = append(as.Attestation, w)
		}
		out[id] = as
	}
	return out
}

// maxAttestations bounds those of a result that a client returns.
const maxAttestations = 1000

// unwireAttestations reads the attestations that a client returns.
func (j *job) unwireAttestations(in map[string]*gwpb.Attestations) (map[string][]attestation, error) {
	var out map[string][]attestation
	n := 0
	for id, list := range in {
		for _, w := range list.GetAttestation() {
			if n++; n > maxAttestations {
				return nil, fmt.Errorf("more than %d attestations", maxAttestations)
			}
			ref, err := j.lookup(w.GetRef().GetId())
			if err != nil {
				return nil, err
			}
			if out == nil {
				out = map[string][]attestation{}
			}
			out[id] = append(out[id], attestation{
				kind: w.GetKind(), metadata: w.GetMetadata(), ref: ref, path: w.GetPath(),
				predicateType: w.GetInTotoPredicateType(), subjects: w.GetInTotoSubjects(),
			})
		}
	}
	return out, nil
}
