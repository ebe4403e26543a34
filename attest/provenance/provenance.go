// Package provenance says how a result was made, in the form of SLSA.
//
// The predicate names what was asked for, everything that was fetched, with its
// digest, and (mode=max) every step with its place in the build file. It holds
// IDs of secrets, never values; user names and passwords of URLs are masked.
//
//	o, err := provenance.ParseOptions(params)
//	a, err := provenance.New(o, build, target) // an attest.Attestation
package provenance

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// Options are the parameters of --attest type=provenance. The zero value is
// everything that is known, in SLSA's form v1.
type Options struct {
	// Min leaves out build args, labels, secrets' IDs, the build file and the
	// steps: what an environment could leak by.
	Min bool
	// SLSA02 is the predicate's older form.
	SLSA02       bool
	BuilderID    string
	Reproducible bool
	InlineOnly   bool
	File         string // "" is provenance.json
	// Complete: it is an error if not everything that was used is known by a
	// digest.
	Complete bool
}

// ParseOptions reads parameters; those that are not known are an error.
func ParseOptions(params map[string]string) (Options, error) {
	o := Options{}
	for _, key := range slices.Sorted(maps.Keys(params)) {
		value, err := params[key], error(nil)
		switch key {
		case "mode":
			switch value {
			case "max", "full":
			case "min":
				o.Min = true
			default:
				err = fmt.Errorf("invalid mode %q: it is min or max", value)
			}
		case "version":
			switch value {
			case "v1":
			case "v0.2":
				o.SLSA02 = true
			default:
				err = fmt.Errorf("invalid provenance SLSA version: %s: it is v1 or v0.2", value)
			}
		case "builder-id":
			o.BuilderID = value
		case "filename":
			o.File = value
		case "reproducible":
			o.Reproducible, err = strconv.ParseBool(value)
		case "inline-only":
			o.InlineOnly, err = strconv.ParseBool(value)
		case "complete-materials":
			o.Complete, err = strconv.ParseBool(value)
		case "capture-usage", "disabled", "type": // a client's business, or nothing that changes what is said
		default:
			err = errors.New("not a parameter of provenance; these are mode, version, builder-id, filename, reproducible, inline-only and complete-materials")
		}
		if err != nil {
			return o, fmt.Errorf("provenance: %s=%s: %w", key, value, err)
		}
	}
	return o, nil
}

// Request is what somebody asked a frontend for.
type Request struct {
	Frontend string // "dockerfile.v0"; empty for a graph without one
	// Args are the frontend's options, as BuildKit's API names them
	// ("build-arg:X", "target", "context").
	Args map[string]string
	// Inputs are the requests that made inputs of this one, by their names.
	Inputs map[string]*Request
	// Root is the client's own request, if another one made the result.
	Root *Request
	// Source is where the build file is, if that is not a directory of the
	// client: a Git or HTTP step.
	Source *plan.Step
}

// Image is an image that a reference stood for.
type Image struct {
	Ref      string        // normalised, as in the Image op
	Resolved digest.Digest // as in the Image op
	Name     string        // what it is called instead of Ref, if not empty
	Platform ocispec.Platform
	// Digest is that of the index or manifest that the reference named, or
	// of the configuration of an image that was never in a registry.
	Digest digest.Digest
	Layout bool // of an OCI layout
}

// Fact is what is known of a step after the build.
type Fact struct {
	// ID is the commit of a Git step, the digest of an HTTP step.
	ID      string
	Outputs []layers.Tree // nil if it isn't known
}

// Build is what was done for a request.
type Build struct {
	Request Request
	// ID is the same for all results of one build.
	ID      string
	Started time.Time
	// Platform is that of this machine.
	Platform ocispec.Platform
	// Version is that of the builder, Language that of the build file's
	// frontend.
	Version  map[string]string
	Language string
	Env      map[string]any // what the administrator adds
	// Images are those that were looked up.
	Images []Image
	// Locals are the directories of the client that were read.
	Locals []string
	// LocalName is the client's name for a plan.Local; nil: its own.
	LocalName func(string) string
	// Replaced are Git and HTTP steps that directories of the plan, by their
	// names, are really from.
	Replaced map[string]*plan.Step
	// More are steps that were read while the build was planned.
	More []*plan.Step
	Fact func(*plan.Step) Fact
	// Blobs are what base images' manifests name for their layers.
	Blobs map[layers.ID]ocispec.Descriptor
	// File is the build file, FileStep where it was read from; nil if there
	// is none.
	File     *plan.SourceFile
	FileStep *plan.Step
	Now      func() time.Time
}

// Target is the result that is described.
type Target struct {
	Result   plan.Input
	Platform *ocispec.Platform
}

// New returns the attestation of a target. Layers and the end of the build are
// filled in when it is exported.
func New(o Options, b Build, t Target) (attest.Attestation, error) {
	p := b.predicate(o, t)
	if o.Complete && !p.RunDetails.Metadata.Completeness.ResolvedDependencies {
		var names []string
		for _, l := range p.BuildDefinition.ExternalParameters.Request.Locals {
			names = append(names, l.Name)
		}
		return attest.Attestation{}, fmt.Errorf("provenance materials are incomplete: the directories %q of the client have no digest that another could fetch them by; build from a git repository or leave complete-materials out", names)
	}
	var def *definition
	if !o.Min {
		def = b.describe(p, t)
	}
	a := attest.Attestation{File: o.File, PredicateType: attest.PredicateSLSA1, InlineOnly: o.InlineOnly}
	if a.File == "" {
		a.File = "provenance.json"
	}
	if o.SLSA02 {
		a.PredicateType = attest.PredicateSLSA02
	}
	a.Predicate = func(_ context.Context, blobs map[layers.ID]ocispec.Descriptor) (json.RawMessage, error) {
		done := *p // outputs differ in their layers
		end := b.Now().UTC()
		done.RunDetails.Metadata.FinishedOn = &end
		if def != nil {
			done.RunDetails.Metadata.BuildKitMetadata.Layers = b.layers(def, blobs)
		}
		if o.SLSA02 {
			return json.MarshalIndent(done.v02(), "", "  ")
		}
		return json.MarshalIndent(done, "", "  ")
	}
	return a, nil
}

// predicate is what both modes tell.
func (b Build) predicate(o Options, t Target) *predicate1 {
	p := &predicate1{}
	def, run := &p.BuildDefinition, &p.RunDetails
	def.BuildType = buildType1
	var u used
	u.add(b, t.Result.Step)
	for _, s := range b.More {
		u.add(b, s)
	}
	u.images(b, t)
	def.ResolvedDependencies = u.resources()

	params := b.Request.parameters(b, o.Min)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(append(u.locals, b.Locals...)))) {
		params.Locals = append(params.Locals, named{Name: name})
	}
	if !o.Min {
		params.Secrets, params.SSH = u.secrets, u.ssh
	}
	vcs := map[string]string{}
	for k, v := range params.Args {
		if name, ok := strings.CutPrefix(k, "vcs:"); ok {
			delete(params.Args, k)
			if v = redact(v); v != "" {
				vcs[name] = v
			}
		}
	}
	if len(vcs) > 0 {
		run.Metadata.BuildKitMetadata.VCS = vcs
	}
	def.ExternalParameters.ConfigSource = b.Request.source(b)
	def.ExternalParameters.Request = *params
	def.InternalParameters = internalParameters{BuilderPlatform: formatPlatform(b.Platform), Env: b.Env}
	if t.Platform != nil {
		def.InternalParameters.TargetPlatform = formatPlatform(*t.Platform)
	}
	if b.Request.Frontend == "dockerfile.v0" {
		def.InternalParameters.DockerfileVersion = b.Language
	}

	run.Builder.ID, run.Builder.Version = o.BuilderID, b.Version
	m := &run.Metadata
	start := b.Started.UTC()
	m.StartedOn, m.InvocationID, m.Reproducible = &start, b.ID, o.Reproducible
	m.Completeness.Request = b.Request.Frontend != "" && !(o.Min && b.Request.private())
	m.Completeness.ResolvedDependencies = len(params.Locals) == 0
	m.Hermetic = m.Completeness.ResolvedDependencies && !u.network
	return p
}

// isPrivate reports whether an option of a frontend may hold what a client
// wouldn't publish.
func isPrivate(key string) bool {
	return strings.HasPrefix(key, "build-arg:") || strings.HasPrefix(key, "label:")
}

// private reports whether the request has options that mode=min leaves out.
func (r *Request) private() bool {
	if r == nil {
		return false
	}
	for k := range r.Args {
		if isPrivate(k) {
			return true
		}
	}
	for _, in := range r.Inputs {
		if in.private() {
			return true
		}
	}
	return r.Root.private()
}

// Options of a frontend that say nothing about the result, or that depend on the
// machine.
var leftOut = []string{"cgroup-parent", "image-resolve-mode", "platform", "cache-imports"}

// contextKey is the option that names the main context.
func (r *Request) contextKey() string {
	if v := r.Args["contextkey"]; v != "" {
		return v
	}
	return "context"
}

// parameters are the request without what source tells.
func (r *Request) parameters(b Build, minimal bool) *parameters {
	p := &parameters{Frontend: r.Frontend, Args: map[string]string{}}
	for k, v := range r.Args {
		if slices.Contains(leftOut, k) || strings.HasPrefix(k, "attest:") || strings.HasPrefix(k, "build-arg:BUILDKIT_ATTEST_") ||
			k == "filename" || k == r.contextKey() || minimal && isPrivate(k) {
			continue
		}
		p.Args[k] = redact(v)
	}
	sub := func(r *Request) *request {
		return &request{ConfigSource: r.source(b), Request: r.parameters(b, minimal)}
	}
	for name, in := range r.Inputs {
		if p.Inputs == nil {
			p.Inputs = map[string]*request{}
		}
		p.Inputs[name] = sub(in)
	}
	if r.Root != nil {
		p.Root = sub(r.Root)
	}
	return p
}

// source is where the build file of the request was.
func (r *Request) source(b Build) configSource {
	c := configSource{Path: r.Args["filename"], URI: redact(r.Args[r.contextKey()])}
	if r.Source == nil {
		return c
	}
	switch op := r.Source.Op.(type) {
	case *plan.Git:
		c.URI, c.Digest = gitURI(op, true), commitDigest(b.Fact(r.Source).ID)
	case *plan.HTTP:
		c.URI, c.Digest = redact(op.URL), hexDigest(digest.Digest(b.Fact(r.Source).ID))
	}
	return c
}

// used is what steps use from outside.
type used struct {
	pictures []Image
	git      []resource
	http     []resource
	locals   []string
	secrets  []optional
	ssh      []optional
	network  bool
}

// add looks at a step and at what it needs.
func (u *used) add(b Build, s *plan.Step) {
	each(s, func(s *plan.Step) {
		if r := b.replacement(s); r != nil {
			s = r
		}
		switch op := s.Op.(type) {
		case *plan.Image:
			u.pictures = append(u.pictures, b.image(op))
		case *plan.Local:
			u.locals = append(u.locals, b.localName(op.Name))
		case *plan.Git:
			u.git = append(u.git, resource{URI: gitURI(op, false), Digest: commitDigest(b.Fact(s).ID)})
			if op.AuthToken != "" {
				u.secrets = addOptional(u.secrets, op.AuthToken, true)
			}
		case *plan.HTTP:
			u.http = append(u.http, resource{URI: redact(op.URL), Digest: hexDigest(digest.Digest(b.Fact(s).ID))})
		case *plan.Exec:
			u.network = u.network || op.Network != plan.NetworkNone
			for _, m := range op.Mounts {
				switch m.Type {
				case plan.MountSecret:
					u.secrets = addOptional(u.secrets, m.ID, !m.Required)
				case plan.MountSSH:
					id := m.ID
					if id == "" {
						id = "default"
					}
					u.ssh = addOptional(u.ssh, id, !m.Required)
				}
			}
		}
	})
}

func addOptional(list []optional, id string, opt bool) []optional {
	for i := range list {
		if list[i].ID == id {
			list[i].Optional = list[i].Optional && opt
			return list
		}
	}
	return append(list, optional{ID: id, Optional: opt})
}

// replacement is the step that a directory is really from; nil if it is one.
func (b Build) replacement(s *plan.Step) *plan.Step {
	if op, ok := s.Op.(*plan.Local); ok {
		return b.Replaced[op.Name]
	}
	return nil
}

func (b Build) localName(name string) string {
	if b.LocalName == nil {
		return name
	}
	return b.LocalName(name)
}

// image is what an Image op was looked up as.
func (b Build) image(op *plan.Image) Image {
	for _, img := range b.Images {
		if img.Ref == op.Ref && img.Resolved == op.Digest && formatPlatform(img.Platform) == formatPlatform(op.Platform) {
			return img
		}
	}
	return Image{Ref: op.Ref, Platform: op.Platform, Digest: op.Digest, Layout: op.Layout != ""}
}

// images adds images that gave nothing but their configuration: they have no
// layers, and so no step.
func (u *used) images(b Build, t Target) {
	for _, img := range b.Images {
		p := formatPlatform(img.Platform)
		known := slices.ContainsFunc(u.pictures, func(o Image) bool { return o.Ref == img.Ref })
		if !known && (p == formatPlatform(b.Platform) || t.Platform != nil && p == formatPlatform(*t.Platform)) {
			u.pictures = append(u.pictures, img)
		}
	}
}

// resources lists what was fetched, each thing once.
func (u *used) resources() []resource {
	var out []resource
	add := func(list []resource) {
		slices.SortStableFunc(list, func(a, b resource) int { return strings.Compare(a.URI, b.URI) })
		for _, r := range list {
			if !slices.ContainsFunc(out, func(o resource) bool { return o.URI == r.URI && maps.Equal(o.Digest, r.Digest) }) {
				out = append(out, r)
			}
		}
	}
	var images []resource
	for _, img := range u.pictures {
		images = append(images, resource{URI: attest.ImageURL(cmp.Or(img.Name, img.Ref), img.Platform, img.Layout), Digest: hexDigest(img.Digest)})
	}
	add(images)
	add(u.git)
	add(u.http)
	return out
}

func hexDigest(d digest.Digest) digestSet {
	if d.Validate() != nil {
		return nil
	}
	return digestSet{d.Algorithm().String(): d.Encoded()}
}

func commitDigest(id string) digestSet {
	switch len(id) {
	case 0:
		return nil
	case 64:
		return digestSet{"sha256": id}
	}
	return digestSet{"sha1": id}
}

// describe adds the steps and where they come from.
func (b Build) describe(p *predicate1, t Target) *definition {
	def := b.define(t.Result)
	p.BuildDefinition.InternalParameters.BuildConfig = &buildConfig{Definition: def.steps, DigestMapping: def.mapping}
	files := map[*plan.SourceFile]int{}
	m := &sourceMap{Locations: map[string]*locations{}}
	file := func(f *plan.SourceFile) int {
		for known, i := range files {
			if known == f || known.Name == f.Name && string(known.Data) == string(f.Data) {
				return i
			}
		}
		files[f] = len(m.Infos)
		info := sourceInfo{Filename: f.Name, Language: "Dockerfile", Data: f.Data}
		if b.FileStep != nil {
			from := b.define(plan.Input{Step: b.FileStep})
			info.Definition, info.DigestMapping = from.steps, from.mapping
		}
		m.Infos = append(m.Infos, info)
		return files[f]
	}
	if b.File != nil {
		file(b.File)
	}
	each(t.Result.Step, func(s *plan.Step) {
		if s.Source == nil || s.Source.File == nil {
			return
		}
		at := location{SourceIndex: file(s.Source.File)}
		for _, r := range s.Source.Ranges {
			at.Ranges = append(at.Ranges, lineRange{
				Start: position{Line: r.StartLine, Character: r.StartColumn}, End: position{Line: r.EndLine, Character: r.EndColumn},
			})
		}
		m.Locations[stepID(def.index[s])] = &locations{Locations: []location{at}}
	})
	if len(m.Infos) > 0 {
		p.RunDetails.Metadata.BuildKitMetadata.Source = m
	}
	return def
}

// layers maps results of steps to the layers that they have in registries.
func (b Build) layers(def *definition, blobs map[layers.ID]ocispec.Descriptor) map[string][][]ocispec.Descriptor {
	out := map[string][][]ocispec.Descriptor{}
	for s, n := range def.index {
		for i, tree := range b.Fact(s).Outputs {
			chain := make([]ocispec.Descriptor, 0, len(tree))
			for _, id := range tree {
				desc, ok := blobs[id]
				if !ok {
					if desc, ok = b.Blobs[id]; !ok {
						break
					}
				}
				desc.URLs, desc.Data, desc.Annotations = nil, nil, nil
				chain = append(chain, desc)
			}
			if len(chain) > 0 && len(chain) == len(tree) {
				out[stepID(n)+":"+strconv.Itoa(i)] = [][]ocispec.Descriptor{chain}
			}
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
