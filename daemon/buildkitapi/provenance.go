package buildkitapi

import (
	"maps"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/attest/provenance"
	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
)

// origin is the request that made a reference, as provenance tells of it. What
// no frontend made has none.
type origin struct {
	request provenance.Request
	locals  []string // directories that were read while planning
	more    []*plan.Step
	file    *plan.SourceFile
	from    *plan.Step // where file was read
}

// origin is the request of a build file. It is complete once that is loaded.
func (f *dockerfile) origin() *origin {
	args := maps.Clone(f.attrs)
	if src := args["source"]; src == frontendDockerfile {
		delete(args, "source")
		delete(args, "cmdline")
	}
	o := &origin{
		request: provenance.Request{Frontend: frontendDockerfile, Args: args, Source: f.remote, Inputs: f.job.producers(f.inputs)},
		locals:  f.localNames,
		file:    &plan.SourceFile{Name: f.filename, Data: f.data},
		from:    f.fileStep,
	}
	if f.remote != nil {
		o.more = append(o.more, f.remote)
	}
	o.request.Root = f.job.rootRequest()
	return o
}

// rootRequest is what the client asked for itself, if it is a frontend; nil if
// that is nothing.
func (j *job) rootRequest() *provenance.Request {
	if j.req.Frontend != "" {
		return nil
	}
	args := map[string]string{}
	for k, v := range j.req.FrontendAttrs {
		if !strings.HasPrefix(k, "attest:") {
			args[k] = v
		}
	}
	inputs := j.producers(j.req.FrontendInputs)
	if len(args) == 0 && len(inputs) == 0 {
		return nil
	}
	return &provenance.Request{Args: args, Inputs: inputs}
}

// producers are the requests that made inputs, of this build or of another one
// that goes on. Graphs that no request made have none.
func (j *job) producers(inputs map[string]*pb.Definition) map[string]*provenance.Request {
	var out map[string]*provenance.Request
	for name, def := range inputs {
		ref := j.producer(def)
		if ref == nil || ref.origin == nil {
			continue
		}
		if out == nil {
			out = map[string]*provenance.Request{}
		}
		r := ref.origin.request
		r.Root = nil
		out[name] = &r
	}
	return out
}

// producer is the reference that a definition stands for; nil if it is a graph
// of its own.
func (j *job) producer(def *pb.Definition) *reference {
	for _, data := range def.GetDef() {
		op := &pb.Op{}
		if op.UnmarshalVT(data) != nil || op.Op == nil {
			continue
		}
		id, ok := strings.CutPrefix(op.GetSource().GetIdentifier(), schemeResult)
		if !ok {
			return nil
		}
		ref, _ := j.lookupAny(id)
		return ref
	}
	return nil
}

// provenance is the attestation of one image of the build; nil if nobody wants
// it.
func (j *job) provenance(ref *reference, p ocispec.Platform) (*attest.Attestation, error) {
	params, ok := j.attests[attest.Provenance]
	if !ok {
		return nil, nil
	}
	o, err := provenance.ParseOptions(params)
	if err != nil {
		return nil, err
	}
	a, err := provenance.New(o, j.describe(ref), provenance.Target{Result: ref.input(), Platform: &p})
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// describe is what is known of how a reference was made.
func (j *job) describe(ref *reference) provenance.Build {
	b := provenance.Build{
		ID: j.id, Started: j.started, Platform: j.s.o.Platforms[0], Version: map[string]string{"strake": j.s.o.Version}, Language: parser.Version,
		Env: j.s.o.ProvenanceEnv, LocalName: j.localName, Fact: j.fact, Now: j.s.now,
	}
	j.mu.Lock()
	b.Images = append(b.Images, j.bases...)
	j.mu.Unlock()
	if ref == nil {
		return b
	}
	b.Blobs = ref.blobs
	if o := ref.origin; o != nil {
		b.Request, b.Locals, b.More, b.File, b.FileStep = o.request, o.locals, o.more, o.file, o.from
	}
	return b
}

// input is the result that a reference is.
func (r *reference) input() plan.Input {
	if r == nil {
		return plan.Input{}
	}
	return plan.Input{Step: r.step, Output: r.output}
}

// localName is the client's name of a directory.
func (j *job) localName(name string) string {
	if l := j.findLocal(name); l != nil {
		return l.spec.name
	}
	return name
}

// fact is what is known of a step from all runs of the job.
func (j *job) fact(s *plan.Step) provenance.Fact {
	j.mu.Lock()
	facts := j.facts
	j.mu.Unlock()
	var out provenance.Fact
	for _, of := range facts {
		f := of(s)
		if out.ID == "" {
			out.ID = f.ID
		}
		if out.Outputs == nil {
			out.Outputs = f.Outputs
		}
	}
	return out
}

// resolved remembers an image that was looked up.
func (j *job) resolved(b builder.Base, name string, p ocispec.Platform, layout bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.bases = append(j.bases, provenance.Image{Ref: b.Ref, Resolved: b.Digest, Name: name, Platform: p, Digest: b.Pin, Layout: layout})
}

// findLocal finds a directory of a client: of this job, or of another one that
// goes on, whose results this one uses.
func (j *job) findLocal(name string) *local {
	j.mu.Lock()
	l := j.locals[name]
	j.mu.Unlock()
	if l != nil {
		return l
	}
	for _, other := range j.s.others(j) {
		other.mu.Lock()
		l := other.locals[name]
		other.mu.Unlock()
		if l != nil {
			return l
		}
	}
	return nil
}

// lookupAny finds a reference of this job or of another one that goes on.
func (j *job) lookupAny(id string) (*reference, error) {
	ref, err := j.lookup(id)
	if err == nil {
		return ref, nil
	}
	for _, other := range j.s.others(j) {
		if ref, oerr := other.lookup(id); oerr == nil {
			return ref, nil
		}
	}
	return nil, err
}

// others are the builds that go on besides j.
func (s *Server) others(j *job) []*job {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*job
	for _, o := range s.jobs {
		if o != j {
			out = append(out, o)
		}
	}
	return out
}
