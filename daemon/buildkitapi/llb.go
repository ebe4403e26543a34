package buildkitapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
)

// Graphs in BuildKit's form become plans, op by op. A definition is a list of
// marshalled ops; an op names its inputs by the digests of their bytes, so that
// no cycle can be made. The last op of the list has the result as its one input.

// The bounds of a definition.
const (
	maxOps    = 100_000
	maxInputs = 10_000
)

// schemeResult is that of the sources which stand for results of ours, in the
// definitions that we give to clients.
const schemeResult = "strake-result://"

// resultDefinition is the definition of a reference: a client can use it as a
// part of its own graphs.
func resultDefinition(id string, step *plan.Step) *pb.Definition {
	if step == nil {
		return nil
	}
	return definition(&pb.Op{
		Op:       &pb.Op_Source{Source: &pb.SourceOp{Identifier: schemeResult + id}},
		Platform: pb.PlatformFromSpec(step.Platform),
	}, step.Name)
}

// definition is the definition of one op.
func definition(src *pb.Op, name string) *pb.Definition {
	data, err := src.MarshalVT()
	if err != nil {
		return nil
	}
	d := digest.FromBytes(data).String()
	head, err := (&pb.Op{Inputs: []*pb.Input{{Digest: d}}}).MarshalVT()
	if err != nil {
		return nil
	}
	return &pb.Definition{
		Def: [][]byte{data, head},
		Metadata: map[string]*pb.OpMetadata{
			d:                               {Description: map[string]string{"llb.customname": name}},
			digest.FromBytes(head).String(): {},
		},
		Source: &pb.Source{},
	}
}

// translation is a definition on its way to a plan.
type translation struct {
	ctx     context.Context
	job     *job
	def     *pb.Definition
	ops     map[string]*pb.Op
	nodes   map[string]*node
	sources []*plan.SourceFile
}

// node is an op that was translated.
type node struct {
	// outputs are the results of the op, by their numbers in the graph.
	outputs map[int64]plan.Input
	name    string
	open    bool // in work
}

// translate makes a plan of a definition, and returns its result.
func (j *job) translate(ctx context.Context, def *pb.Definition) (plan.Input, error) {
	if def == nil || len(def.Def) == 0 {
		return plan.Input{}, nil
	}
	if len(def.Def) > maxOps {
		return plan.Input{}, fmt.Errorf("invalid definition: more than %d ops", maxOps)
	}
	t := &translation{ctx: ctx, job: j, def: def, ops: map[string]*pb.Op{}, nodes: map[string]*node{}}
	var head *pb.Op
	for i, data := range def.Def {
		op := &pb.Op{}
		if err := op.UnmarshalVT(data); err != nil {
			return plan.Input{}, fmt.Errorf("invalid definition: op %d: %w", i, err)
		}
		if len(op.Inputs) > maxInputs {
			return plan.Input{}, fmt.Errorf("invalid definition: op %d has more than %d inputs", i, maxInputs)
		}
		if slices.Contains(op.Inputs, nil) {
			return plan.Input{}, fmt.Errorf("invalid definition: op %d has an empty input", i)
		}
		t.ops[digest.FromBytes(data).String()] = op
		head = op
	}
	for _, info := range def.GetSource().GetInfos() {
		t.sources = append(t.sources, &plan.SourceFile{Name: info.GetFilename(), Data: info.GetData()})
	}
	if head.Op != nil || len(head.Inputs) != 1 {
		return plan.Input{}, errors.New("invalid definition: the last op is not its result")
	}
	return t.input(head.Inputs[0])
}

// input translates what an input names.
func (t *translation) input(in *pb.Input) (plan.Input, error) {
	n, err := t.node(in.Digest)
	if err != nil {
		return plan.Input{}, err
	}
	out, ok := n.outputs[in.Index]
	if !ok {
		return plan.Input{}, fmt.Errorf("invalid definition: %s has no output %d", in.Digest, in.Index)
	}
	return out, nil
}

// node translates an op and what it needs. Graphs may be deep; a stack of
// Go's grows.
func (t *translation) node(dgst string) (*node, error) {
	if n, ok := t.nodes[dgst]; ok {
		if n.open {
			return nil, fmt.Errorf("invalid definition: %s is an input of itself", dgst)
		}
		return n, nil
	}
	op, ok := t.ops[dgst]
	if !ok {
		return nil, fmt.Errorf("invalid definition: missing input %s", dgst)
	}
	n := &node{open: true, outputs: map[int64]plan.Input{}}
	t.nodes[dgst] = n
	inputs := make([]plan.Input, len(op.Inputs))
	for i, in := range op.Inputs {
		var err error
		if inputs[i], err = t.input(in); err != nil {
			return nil, err
		}
	}
	md := t.def.Metadata[dgst]
	step := &plan.Step{
		Platform: t.platform(op),
		NoCache:  md.GetIgnoreCache(),
		Source:   t.source(dgst),
	}
	var err error
	switch x := op.Op.(type) {
	case *pb.Op_Source:
		n.name = x.Source.GetIdentifier()
		err = t.sourceOp(n, step, x.Source)
	case *pb.Op_Exec:
		n.name = strings.Join(x.Exec.GetMeta().GetArgs(), " ")
		err = t.execOp(n, step, x.Exec, inputs, md)
	case *pb.Op_File:
		n.name = fileName(x.File.GetActions())
		err = t.fileOp(n, step, x.File.GetActions(), inputs)
	case *pb.Op_Merge:
		err = t.mergeOp(n, step, x.Merge, op, inputs)
	case *pb.Op_Diff:
		err = t.diffOp(n, step, x.Diff, inputs)
	case *pb.Op_Passthrough:
		n.name = "passthrough " + x.Passthrough.GetId()
		for i, in := range x.Passthrough.GetOutputs() {
			if in < 0 || in >= int64(len(inputs)) {
				err = fmt.Errorf("passthrough of input %d, which there is not", in)
				break
			}
			n.outputs[int64(i)] = inputs[in]
		}
	case *pb.Op_Build:
		err = unsupported("a nested build (llb.Build)")
	default:
		err = errors.New("an op of a kind that is not known")
	}
	if err != nil {
		return nil, withSource(fmt.Errorf("invalid definition: %w", err), step.Source)
	}
	if custom := md.GetDescription()["llb.customname"]; custom != "" {
		n.name = custom
	}
	// The steps made for this op share its name.
	for _, out := range n.outputs {
		if s := out.Step; s != nil && s.Name == "" {
			s.Name = n.name
			s.Internal = strings.HasPrefix(n.name, "[internal]")
		}
	}
	n.open = false
	return n, nil
}

func (t *translation) platform(op *pb.Op) ocispec.Platform {
	if op.Platform == nil || op.Platform.OS == "" {
		return t.job.s.o.Platforms[0]
	}
	return platforms.Normalize(op.Platform.Spec())
}

// source is the place in a file that an op came from; nil if it isn't told.
func (t *translation) source(dgst string) *plan.Source {
	locs := t.def.GetSource().GetLocations()[dgst]
	for _, l := range locs.GetLocations() {
		i := int(l.GetSourceIndex())
		if i < 0 || i >= len(t.sources) {
			continue
		}
		s := &plan.Source{File: t.sources[i]}
		for _, r := range l.GetRanges() {
			s.Ranges = append(s.Ranges, plan.Range{
				StartLine: int(r.GetStart().GetLine()), StartColumn: int(r.GetStart().GetCharacter()),
				EndLine: int(r.GetEnd().GetLine()), EndColumn: int(r.GetEnd().GetCharacter()),
			})
		}
		return s
	}
	return nil
}

func (t *translation) sourceOp(n *node, step *plan.Step, src *pb.SourceOp) error {
	id, attrs := src.GetIdentifier(), src.GetAttrs()
	if ref, ok := strings.CutPrefix(id, policy.SchemeImage); ok {
		pull := attrs[pb.AttrImageResolveMode] == pb.AttrImageResolveModeForcePull
		b, instead, err := t.job.image(t.ctx, ref, step.Platform, pull)
		if err != nil {
			return err
		}
		if instead == nil {
			step.Op = &plan.Image{Ref: b.Ref, Digest: b.Digest, Platform: step.Platform}
			n.outputs[0] = plan.Input{Step: step}
			return nil
		}
		next, _ := policy.SourceOf(instead.Op, plannedName)
		id, attrs = next.Identifier, next.Attrs
	} else if !strings.HasPrefix(id, schemeResult) {
		next, err := policy.Evaluate(t.job.policy(), policy.Source{Identifier: id, Attrs: attrs})
		if err != nil {
			return err
		}
		id, attrs = next.Identifier, next.Attrs
	}
	scheme, rest, ok := strings.Cut(id, "://")
	if !ok {
		return fmt.Errorf("source %q has no scheme", id)
	}
	n.outputs[0] = plan.Input{Step: step}
	switch scheme {
	case "docker-image": // what a policy had used instead of something else
		b, err := t.job.onlyImage(t.ctx, rest, step.Platform, false)
		if err != nil {
			return err
		}
		step.Op = &plan.Image{Ref: b.Ref, Digest: b.Digest, Platform: step.Platform}
	case "local":
		spec, err := localOf(rest, attrs, t.job.session)
		if err != nil {
			return err
		}
		name, _ := t.job.local(spec)
		step.Op = &plan.Local{Name: name, Exclude: spec.exclude}
	case "http", "https":
		op, err := httpOf(id, attrs)
		if err != nil {
			return err
		}
		step.Op = op
	case "git":
		step.Op = gitOf(rest, attrs)
	case strings.TrimSuffix(schemeResult, "://"):
		in, err := t.job.borrow(rest)
		if err != nil {
			return err
		}
		n.outputs[0] = in
	case "oci-layout":
		_, dgst, _ := strings.Cut(rest, "@")
		store := attrs[pb.AttrOCILayoutStoreID]
		b, err := t.job.layout(t.ctx, attrs[pb.AttrOCILayoutSessionID], store, dgst, step.Platform)
		if err != nil {
			return err
		}
		t.job.resolved(b, rest, step.Platform, true)
		step.Op = &plan.Image{Ref: b.Ref, Digest: b.Digest, Platform: step.Platform, Layout: store}
	default:
		return fmt.Errorf("unknown source scheme %q", scheme)
	}
	return nil
}

// localOf reads a source local://.
func localOf(name string, attrs map[string]string, session string) (localSpec, error) {
	l := localSpec{session: session, name: name, hint: attrs[pb.AttrSharedKeyHint]}
	if s := attrs[pb.AttrLocalSessionID]; s != "" {
		l.session = s
	}
	if attrs[pb.AttrMetadataTransfer] == "true" {
		return l, unsupported("a transfer of metadata only")
	}
	for key, to := range map[string]*[]string{
		pb.AttrIncludePatterns: &l.include, pb.AttrExcludePatterns: &l.exclude, pb.AttrFollowPaths: &l.follow,
	} {
		if v := attrs[key]; v != "" {
			if err := json.Unmarshal([]byte(v), to); err != nil {
				return l, fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	l.always = attrs[pb.AttrLocalDiffer] == pb.AttrLocalDifferNone
	return l, nil
}

func httpOf(id string, attrs map[string]string) (*plan.HTTP, error) {
	op := &plan.HTTP{URL: id, Filename: attrs[pb.AttrHTTPFilename]}
	var err error
	if v := attrs[pb.AttrHTTPChecksum]; v != "" {
		if op.Checksum, err = digest.Parse(v); err != nil {
			return nil, fmt.Errorf("%s: %w", pb.AttrHTTPChecksum, err)
		}
	}
	number := func(key string, base int) int {
		v, ok := attrs[key]
		if !ok || err != nil {
			return 0
		}
		var n int64
		if n, err = strconv.ParseInt(v, base, 32); err != nil || n < 0 {
			err = fmt.Errorf("%s=%q is not a number", key, v)
		}
		return int(n)
	}
	op.Mode = uint32(number(pb.AttrHTTPPerm, 0)) & 0o7777
	op.UID, op.GID = number(pb.AttrHTTPUID, 10), number(pb.AttrHTTPGID, 10)
	if err != nil {
		return nil, err
	}
	if op.Filename == "" {
		if u, err := url.Parse(id); err == nil {
			op.Filename = path.Base(u.Path)
		}
	}
	if op.Filename == "" || op.Filename == "." || op.Filename == "/" {
		op.Filename = "download"
	}
	return op, nil
}

func gitOf(rest string, attrs map[string]string) *plan.Git {
	remote, fragment, _ := strings.Cut(rest, "#")
	ref, sub, _ := strings.Cut(fragment, ":")
	op := &plan.Git{
		Remote: remote, Ref: ref, Subdir: sub, Checksum: attrs[pb.AttrGitChecksum],
		KeepGitDir: attrs[pb.AttrKeepGitDir] == "true", SkipSubmodules: attrs[pb.AttrGitSkipSubmodules] == "true",
		AuthToken: attrs[pb.AttrAuthTokenSecret],
	}
	if full := attrs[pb.AttrFullRemoteURL]; full != "" {
		op.Remote, _, _ = strings.Cut(full, "#")
	} else if !strings.Contains(remote, "://") {
		op.Remote = "https://" + remote
	}
	return op
}

func (t *translation) mergeOp(n *node, step *plan.Step, m *pb.MergeOp, op *pb.Op, inputs []plan.Input) error {
	step.Op = &plan.Merge{}
	var names []string
	for _, in := range m.GetInputs() {
		i := in.GetInput()
		if i < 0 || i >= int64(len(inputs)) {
			return fmt.Errorf("merge of input %d, which there is not", i)
		}
		step.Inputs = append(step.Inputs, inputs[i])
		names = append(names, t.nodes[op.Inputs[i].Digest].name)
	}
	n.name = shortened("merge (" + strings.Join(names, ", ") + ")")
	n.outputs[0] = plan.Input{Step: step}
	return nil
}

// shortened bounds names that are made of the names of inputs: they would
// double with every level of the graph.
func shortened(name string) string {
	const longest = 512
	if len(name) <= longest {
		return name
	}
	return strings.ToValidUTF8(name[:longest], "") + "…"
}

func (t *translation) diffOp(n *node, step *plan.Step, d *pb.DiffOp, inputs []plan.Input) error {
	if d.GetLower() == nil || d.GetUpper() == nil {
		return errors.New("invalid diff op with nil lower or upper input")
	}
	side := func(i int64) (plan.Input, error) {
		if i == -1 {
			return plan.Input{}, nil
		}
		if i < 0 || i >= int64(len(inputs)) {
			return plan.Input{}, fmt.Errorf("invalid diff input index %d", i)
		}
		return inputs[i], nil
	}
	lower, err := side(d.Lower.Input)
	if err != nil {
		return err
	}
	upper, err := side(d.Upper.Input)
	if err != nil {
		return err
	}
	name := func(in plan.Input) string {
		if in.Step == nil {
			return "scratch"
		}
		return "(" + in.Step.Name + ")"
	}
	n.name = shortened("diff " + name(lower) + " -> " + name(upper))
	step.Op, step.Inputs = &plan.Diff{}, []plan.Input{lower, upper}
	n.outputs[0] = plan.Input{Step: step}
	return nil
}

// solveLLB makes a reference of a definition.
func (j *job) solveLLB(def *pb.Definition) (*result, error) {
	in, err := j.translate(j.ctx, def)
	if err != nil {
		return nil, err
	}
	if in.Step == nil {
		return &result{}, nil
	}
	return &result{one: j.reference(in.Step, in.Output, def)}, nil
}
