package buildkitapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/attest/provenance"
	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/device"
	"github.com/strake-build/strake/builder/export"
	"github.com/strake-build/strake/cache/remote/connect"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
	"github.com/strake-build/strake/state/builds"
)

// Keys of a result's metadata, and of what a Solve responds.
const (
	keyConfig     = "containerimage.config"
	keyBaseConfig = "containerimage.base.config"
	keyPlatforms  = "refs.platforms"
	keyEpoch      = "source.date.epoch"
)

// platformList is the value of keyPlatforms.
type platformList struct {
	Platforms []platformEntry
}

type platformEntry struct {
	ID       string
	Platform ocispec.Platform
}

// job is one build of a client.
type job struct {
	s       *Server
	ref     string
	session string
	req     *controlapi.SolveRequest
	allow   map[string]bool
	devices []string // entitlements to devices
	board   *board
	guard   *leak.Guard
	store   *Store

	ctx    context.Context
	cancel context.CancelCauseFunc

	id      string // of the build, in provenance
	started time.Time
	attests attest.Request
	// policies decide what may be fetched.
	policies []*policy.Policy

	caches       *connect.Caches
	clientCaches map[string]*clientCache // by path

	mu      sync.Mutex
	request builder.Request    // of which only what caches do to it is set
	bases   []provenance.Image // images that were looked up
	facts   []func(*plan.Step) provenance.Fact
	refs    map[string]*reference
	locals  map[string]*local
	ssh     map[string]string // sockets of agents, by ID
	closers []func() error
	users   int // who works with what closers give back: the build itself, and borrowers
	runs    int
	record  *builds.Build // nil if it can't be kept
	done    *result       // what was built

	// A client that is the frontend itself sends its result here.
	returned chan returned
}

type returned struct {
	res *result
	err error
}

// reference is a step whose result somebody has a name for.
type reference struct {
	id   string
	step *plan.Step
	// output of the step
	output int
	def    *pb.Definition
	origin *origin // nil: no frontend made it

	mu   sync.Mutex
	done bool
	tree layers.Tree
	src  snapshot.Sources
	// blobs are what base images' manifests name for layers of tree.
	blobs map[layers.ID]ocispec.Descriptor
	err   error
}

// result is what a frontend makes: references, and what is said of them.
type result struct {
	// one is the reference if many is nil; it may be nil.
	one      *reference
	many     map[string]*reference // by platform; values may be nil
	metadata map[string][]byte
	// attestations are those that a frontend made, by platform.
	attestations map[string][]attestation
}

func (s *Server) newJob(ctx context.Context, req *controlapi.SolveRequest) (*job, error) {
	j := &job{
		guard: &leak.Guard{},
		s:     s, ref: req.Ref, session: req.Session, req: req, board: newBoard(req.Ref), caches: &connect.Caches{}, clientCaches: map[string]*clientCache{},
		allow: map[string]bool{}, refs: map[string]*reference{}, locals: map[string]*local{},
		ssh: map[string]string{}, returned: make(chan returned, 1), id: identity.NewID(), started: s.now(), users: 1,
	}
	var err error
	if j.policies, err = parsePolicies(req); err != nil {
		return nil, err
	}
	if j.attests, err = parseAttests(req.FrontendAttrs); err != nil {
		return nil, err
	}
	for _, e := range req.Entitlements {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "network.host", "security.insecure":
			if !slices.Contains(s.o.Allow, name) {
				return nil, fmt.Errorf("granting entitlement %s is not allowed by build daemon configuration", name)
			}
			j.allow[name] = true
		case device.Entitlement:
			j.devices = append(j.devices, e)
		default:
			return nil, fmt.Errorf("unknown entitlement %s", e)
		}
	}
	j.ctx, j.cancel = context.WithCancelCause(ctx)
	if j.store, err = s.o.Open(j.credentials); err != nil {
		j.cancel(err)
		return nil, err
	}
	j.closers = append(j.closers, j.store.Close)
	return j, nil
}

// onClose has something given back at the end of the job.
func (j *job) onClose(f func() error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closers = append(j.closers, f)
}

func (j *job) close() {
	j.cancel(errors.New("the build has ended"))
	j.release()
}

// retain keeps what the job has until release; it reports whether there still is
// something.
func (j *job) retain() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.users == 0 {
		return false
	}
	j.users++
	return true
}

func (j *job) release() {
	j.mu.Lock()
	var closers []func() error
	if j.users--; j.users == 0 {
		closers, j.closers = j.closers, nil
	}
	j.mu.Unlock()
	for _, f := range slices.Backward(closers) {
		if err := f(); err != nil {
			j.s.o.Log.Warn("end of a build", "ref", j.ref, "error", err)
		}
	}
}

// reference gives a step a name.
func (j *job) reference(step *plan.Step, output int, def *pb.Definition) *reference {
	r := &reference{id: identity.NewID(), step: step, output: output, def: def}
	if r.def == nil {
		r.def = resultDefinition(r.id, step)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.refs[r.id] = r
	return r
}

func (j *job) lookup(id string) (*reference, error) {
	if id == "" {
		return nil, nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r, ok := j.refs[id]
	if !ok {
		return nil, fmt.Errorf("no such ref: %s", id)
	}
	return r, nil
}

// each calls fn for each step that refs need, inputs first.
func each(refs []*reference, fn func(*plan.Step) error) error {
	var steps []*plan.Step
	for _, r := range refs {
		if r != nil {
			steps = append(steps, r.step)
		}
	}
	return plan.Walk(fn, steps...)
}

// check refuses steps that ask for more than was allowed.
func (j *job) check(step *plan.Step) error {
	x, ok := step.Op.(*plan.Exec)
	if !ok {
		return nil
	}
	for what, asked := range map[string]bool{"network.host": x.Network == plan.NetworkHost, "security.insecure": x.Insecure} {
		if asked && !j.allow[what] {
			return withSource(fmt.Errorf("%s is not allowed", what), step.Source)
		}
	}
	devices, err := j.store.Builder.Devices.Find(x.Devices)
	if err == nil {
		err = devices.Check(j.devices)
	}
	if err != nil {
		return withSource(err, step.Source)
	}
	return nil
}

// evaluate runs the steps of references that have not been run.
func (j *job) evaluate(refs ...*reference) error {
	// One at a time: references are few, and one run does its steps in
	// parallel. They are locked in the order of their IDs.
	var todo []*reference
	seen := map[*reference]bool{}
	for _, r := range refs {
		if r != nil && !seen[r] {
			seen[r] = true
			todo = append(todo, r)
		}
	}
	slices.SortFunc(todo, func(a, b *reference) int { return strings.Compare(a.id, b.id) })
	for _, r := range todo {
		r.mu.Lock()
		defer r.mu.Unlock()
	}
	for _, r := range todo {
		if r.err != nil {
			return r.err
		}
	}
	todo = slices.DeleteFunc(todo, func(r *reference) bool { return r.done })
	if len(todo) == 0 {
		return nil
	}
	results, err := j.run(todo)
	if err != nil {
		err = ended(j.ctx, err)
		if len(todo) == 1 {
			todo[0].err = err
		}
		return err
	}
	for i, r := range todo {
		r.done, r.tree, r.src, r.blobs = true, results[i].Tree, results[i].Sources, results[i].Blobs
	}
	fact := results[0].Fact // of all steps of the run
	j.mu.Lock()
	j.facts = append(j.facts, func(s *plan.Step) provenance.Fact {
		f := fact(s)
		return provenance.Fact{ID: f.ID, Outputs: f.Outputs}
	})
	j.mu.Unlock()
	return nil
}

func (j *job) run(refs []*reference) ([]builder.Result, error) {
	locals := map[string]builder.Local{}
	err := each(refs, func(s *plan.Step) error {
		if err := j.check(s); err != nil {
			return err
		}
		op, ok := s.Op.(*plan.Local)
		if !ok {
			return nil
		}
		l := j.findLocal(op.Name)
		if l == nil {
			return fmt.Errorf("no directory of the client is known as %s", op.Name)
		}
		if err := j.sync(l, s.Name, s.Internal); err != nil {
			return withSource(err, s.Source)
		}
		locals[op.Name] = l.l
		return nil
	})
	if err != nil {
		return nil, err
	}
	build := &plan.Build{}
	for _, r := range refs {
		t := plan.Target{Step: r.step}
		if r.step != nil {
			t.Platform = r.step.Platform
			if r.output != 0 {
				// A target is the first result of a step.
				t.Step = &plan.Step{Op: &plan.Merge{}, Inputs: []plan.Input{{Step: r.step, Output: r.output}}, Name: r.step.Name, Platform: r.step.Platform, Internal: true}
			}
		}
		build.Targets = append(build.Targets, t)
	}
	j.mu.Lock()
	j.runs++
	scope, record := fmt.Sprintf("run%d/", j.runs), j.record
	j.mu.Unlock()
	request := j.builderRequest()
	request.Build, request.Locals, request.Secret, request.Guard, request.SSH, request.Progress = build, locals, j.secret, j.guard, j.agent, j.board.event
	request.Scope, request.Record = scope, record
	results, err := j.store.Builder.Build(j.ctx, request)
	var step *builder.StepError
	if errors.As(err, &step) {
		err = errdefs.WrapVertex(err, digest.Digest(j.board.vertexDigest(step.Vertex)))
	}
	return results, err
}

// secret asks the client for a secret.
func (j *job) secret(ctx context.Context, id string) ([]byte, error) {
	if j.session == "" {
		return nil, notFound{fmt.Errorf("secret %s: the client has no session", id)}
	}
	c, err := j.s.caller(ctx, j.session)
	if err != nil {
		return nil, err
	}
	data, err := secrets.GetSecret(ctx, c, id)
	if errors.Is(err, secrets.ErrNotFound) {
		return nil, notFound{fmt.Errorf("secret %s: not found", id)}
	}
	return data, err
}

// agent returns the socket of an SSH agent of the client.
func (j *job) agent(m plan.Mount) (string, error) {
	id, mode := m.ID, int(m.Mode)
	if id == "" {
		id = sshforward.DefaultID
	}
	if mode == 0 {
		mode = 0o600
	}
	key := fmt.Sprintf("%s %o %d %d", id, mode, m.UID, m.GID)
	j.mu.Lock()
	defer j.mu.Unlock()
	if s, ok := j.ssh[key]; ok {
		return s, nil
	}
	c, err := j.s.caller(j.ctx, j.session)
	if err != nil {
		return "", err
	}
	if err := sshforward.CheckSSHID(j.ctx, c, id); err != nil {
		return "", fmt.Errorf("ssh agent %s: %w", id, err)
	}
	socket, closer, err := sshforward.MountSSHSocket(j.ctx, c, sshforward.SocketOpt{ID: id, UID: m.UID, GID: m.GID, Mode: mode})
	if err != nil {
		return "", err
	}
	j.closers = append(j.closers, closer)
	j.ssh[key] = socket
	return socket, nil
}

// caller is the client that started the job.
func (j *job) caller() (session.Caller, error) { return j.s.caller(j.ctx, j.session) }

// images are the images of a result, run.
func (j *job) images(res *result) ([]export.Image, error) {
	if res == nil {
		return nil, nil
	}
	entries, err := res.entries(j.s.o.Platforms[0])
	if err != nil {
		return nil, err
	}
	var refs []*reference
	for _, e := range entries {
		refs = append(refs, e.ref)
		for _, a := range res.attestations[e.id] {
			refs = append(refs, a.ref)
		}
	}
	if err := j.evaluate(refs...); err != nil {
		return nil, err
	}
	if err := j.keepImported(refs); err != nil {
		return nil, err
	}
	var out []export.Image
	for _, e := range entries {
		img := export.Image{Target: plan.Target{Platform: e.platform, Image: e.config}}
		if e.ref != nil {
			img.Target.Step, img.Tree, img.Sources, img.Blobs = e.ref.step, e.ref.tree, e.ref.src, e.ref.blobs
		}
		img.Fields = j.caches.Fields()
		if img.Attestations, err = j.attestationsOf(res, e, img); err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

// entry is one image of a result.
type entry struct {
	id       string
	platform ocispec.Platform
	ref      *reference
	config   dockerspec.DockerOCIImage
}

// built is what the job built; nil until it has, and of what there is nothing.
func (j *job) built() *result {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.done
}

// entries reads what the metadata of a result says of its references.
func (r *result) entries(def ocispec.Platform) ([]entry, error) {
	var list platformList
	if data, ok := r.metadata[keyPlatforms]; ok {
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, fmt.Errorf("%s: %w", keyPlatforms, err)
		}
	}
	var out []entry
	switch {
	case r.many == nil:
		e := entry{id: platforms.FormatAll(platforms.Normalize(def)), platform: def, ref: r.one}
		if len(list.Platforms) == 1 {
			e.id, e.platform = list.Platforms[0].ID, list.Platforms[0].Platform
		}
		out = append(out, e)
	case len(list.Platforms) > 0:
		for _, p := range list.Platforms {
			ref, ok := r.many[p.ID]
			if !ok {
				return nil, fmt.Errorf("no reference for the platform %s", p.ID)
			}
			out = append(out, entry{id: p.ID, platform: p.Platform, ref: ref})
		}
	case len(r.many) > 0:
		for _, id := range slices.Sorted(maps.Keys(r.many)) {
			out = append(out, entry{id: id, platform: def, ref: r.many[id]})
		}
	}
	for i := range out {
		e := &out[i]
		data := r.metadata[keyConfig+"/"+e.id]
		if len(data) == 0 {
			data = r.metadata[keyConfig]
		}
		if len(data) == 0 {
			e.config = dockerspec.DockerOCIImage{}
			e.config.Platform = e.platform
			e.config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
			e.config.Config.WorkingDir = "/"
		} else if err := json.Unmarshal(data, &e.config); err != nil {
			return nil, fmt.Errorf("image configuration: %w", err)
		}
	}
	return out, nil
}

// wire is the result as clients see it.
func (r *result) wire() *gwpb.Result {
	ref := func(r *reference) *gwpb.Ref {
		if r == nil {
			return &gwpb.Ref{}
		}
		return &gwpb.Ref{Id: r.id, Def: r.def}
	}
	out := &gwpb.Result{Metadata: r.metadata, Attestations: r.wireAttestations()}
	if r.many == nil {
		out.Result = &gwpb.Result_Ref{Ref: ref(r.one)}
		return out
	}
	refs := map[string]*gwpb.Ref{}
	for k, v := range r.many {
		refs[k] = ref(v)
	}
	out.Result = &gwpb.Result_Refs{Refs: &gwpb.RefMap{Refs: refs}}
	return out
}

// unwire reads the result that a client returns.
func (j *job) unwire(r *gwpb.Result) (*result, error) {
	out := &result{metadata: r.GetMetadata()}
	many := func(ids map[string]string) error {
		out.many = map[string]*reference{}
		for k, id := range ids {
			ref, err := j.lookup(id)
			if err != nil {
				return err
			}
			out.many[k] = ref
		}
		return nil
	}
	var err error
	switch x := r.GetResult().(type) {
	case *gwpb.Result_RefDeprecated:
		out.one, err = j.lookup(x.RefDeprecated)
	case *gwpb.Result_Ref:
		out.one, err = j.lookup(x.Ref.GetId())
	case *gwpb.Result_RefsDeprecated:
		err = many(x.RefsDeprecated.GetRefs())
	case *gwpb.Result_Refs:
		ids := map[string]string{}
		for k, v := range x.Refs.GetRefs() {
			ids[k] = v.GetId()
		}
		err = many(ids)
	}
	if err == nil {
		out.attestations, err = j.unwireAttestations(r.GetAttestations())
	}
	return out, err
}

// notFound is an error that os.ErrNotExist is told by.
type notFound struct{ error }

func (notFound) Is(target error) bool { return target == errNotExist }
