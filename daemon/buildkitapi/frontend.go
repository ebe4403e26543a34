package buildkitapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	dockerref "github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/parser/ignore"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
	"github.com/strake-build/strake/progress"
)

// The names of frontends. An image of Docker's Dockerfile frontend is answered
// by the one that is built in.
const (
	frontendDockerfile = "dockerfile.v0"
	frontendGateway    = "gateway.v0"
)

// frontend builds what a frontend's options say.
func (j *job) frontend(name string, attrs map[string]string, inputs map[string]*pb.Definition) (*result, error) {
	switch name {
	case frontendDockerfile:
	case frontendGateway:
		if src := attrs["source"]; src != frontendDockerfile && !builtin(src) {
			return nil, fmt.Errorf("frontend image %q is not supported: only docker/dockerfile is built in", src)
		}
	default:
		return nil, fmt.Errorf("frontend %s not found", name)
	}
	if err := checkCaps(attrs["frontend.caps"]); err != nil {
		return nil, err
	}
	f := &dockerfile{job: j, attrs: attrs, inputs: inputs}
	return f.build(j.ctx)
}

// frontendCaps are what a client may need a frontend to be able to.
var frontendCaps = []string{"inputs", "subrequests", "contexts", "contexts.zstd", "gitquerystring"}

// checkCaps refuses what a client needs and this frontend can't.
func checkCaps(needed string) error {
	for c := range strings.SplitSeq(needed, ",") {
		c, _, _ := strings.Cut(c, "+")
		short, _ := strings.CutPrefix(c, "moby.buildkit.frontend.")
		if c != "" && !slices.Contains(frontendCaps, short) {
			return grpcerrors.WrapCode(errdefs.NewUnsupportedFrontendCapError(c), codes.Unimplemented)
		}
	}
	return nil
}

// builtin reports whether an image is Docker's Dockerfile frontend.
func builtin(ref string) bool {
	named, err := dockerref.ParseNormalizedNamed(ref)
	if err != nil {
		return false
	}
	switch named.Name() {
	case "docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream":
		return true
	}
	return false
}

// dockerfile is one use of the Dockerfile frontend.
type dockerfile struct {
	job    *job
	attrs  map[string]string
	inputs map[string]*pb.Definition

	filename   string
	context    *plan.Step // the main context, if it isn't a directory of the client
	data       []byte     // the build file
	exclude    []string
	ignoreFile string
	vertex     string // where the build file was loaded, for warnings
	// For provenance: the remote main context, where the build file was read,
	// and directories of the client.
	remote     *plan.Step
	fileStep   *plan.Step
	localNames []string
	layouts    map[string]string // names of contexts, by layout@digest
	multi      bool
}

func (f *dockerfile) attr(name, def string) string {
	if v, ok := f.attrs[name]; ok {
		return v
	}
	return def
}

// prefixed are the attributes that begin with prefix, without it.
func (f *dockerfile) prefixed(prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range f.attrs {
		if k, ok := strings.CutPrefix(k, prefix); ok {
			out[k] = v
		}
	}
	return out
}

func (f *dockerfile) build(ctx context.Context) (*result, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	if err := f.load(ctx); err != nil {
		return nil, err
	}
	if err := f.addContexts(ctx, &o); err != nil {
		return nil, err
	}
	o.Exclude, o.IgnoreFile = f.exclude, f.ignoreFile
	if f.context != nil {
		o.Contexts["context"] = parser.Context{Step: f.context}
		o.Exclude, o.IgnoreFile = nil, ""
	}
	pull := f.attrs["image-resolve-mode"] == pb.AttrImageResolveModeForcePull
	o.Resolve = func(ctx context.Context, ref string, p ocispec.Platform) (parser.Resolved, error) {
		if rest, ok := cutScheme(ref, "oci-layout"); ok {
			store, dgst, _ := strings.Cut(rest, "@")
			b, err := f.job.layout(ctx, "", store, dgst, p)
			if err == nil {
				b.Pin = digest.Digest(dgst)
				f.job.resolved(b, f.layouts[store+"@"+dgst], p, true)
			}
			return parser.Resolved{Ref: b.Ref, Digest: b.Digest, Config: b.Config, Layout: store}, err
		}
		b, instead, err := f.job.image(ctx, ref, p, pull)
		return parser.Resolved{Ref: b.Ref, Digest: b.Digest, Config: b.Config, Step: instead}, err
	}
	o.EpochOf = f.job.epochOf
	if id, ok := f.attrs["requestid"]; ok {
		return f.subrequest(ctx, id, o)
	}
	build, err := f.plan(ctx, o)
	f.warn(build.Warnings)
	if err != nil {
		return nil, err
	}
	if err := policy.Build(f.job.policy(), build, plannedName); err != nil {
		return nil, err
	}
	return f.result(ctx, build, o.Platforms)
}

// plan plans the build file. The build has warnings even if there is an error.
func (f *dockerfile) plan(ctx context.Context, o parser.Options) (*plan.Build, error) {
	file, err := parser.Parse(f.filename, f.data)
	if err != nil {
		return &plan.Build{Warnings: file.Warnings()}, err
	}
	build, err := file.Plan(ctx, o)
	if build == nil {
		build = &plan.Build{}
	}
	return build, err
}

// result names the targets of a plan.
func (f *dockerfile) result(ctx context.Context, build *plan.Build, asked []ocispec.Platform) (*result, error) {
	res := &result{metadata: map[string][]byte{}}
	from := f.origin()
	attests, err := parseAttests(f.attrs)
	if err != nil {
		return nil, err
	}
	generator, err := f.job.generator(ctx, attests[attest.SBOM], f.attrs["image-resolve-mode"])
	if err != nil {
		return nil, err
	}
	if f.multi {
		res.many = map[string]*reference{}
	}
	var list platformList
	var refs []*reference
	for i, t := range build.Targets {
		p := f.job.s.o.Platforms[0]
		if i < len(asked) {
			p = asked[i]
		}
		p = platforms.Normalize(p)
		id := platforms.FormatAll(p)
		if p.OS == "windows" && p.OSVersion == "" {
			p.OSVersion = t.Image.OSVersion
		}
		list.Platforms = append(list.Platforms, platformEntry{ID: id, Platform: p})
		config, err := json.Marshal(t.Image)
		if err != nil {
			return nil, err
		}
		var ref *reference
		if t.Step != nil {
			ref = f.job.reference(t.Step, 0, nil)
			ref.origin = from
			refs = append(refs, ref)
			if generator != nil {
				scan, err := res.addScan(f.job, generator, id, plan.Input{Step: t.Step}, t.Scans, t.Step.NoCache)
				if err != nil {
					return nil, err
				}
				refs = append(refs, scan)
			}
		}
		suffix := ""
		if f.multi {
			res.many[id] = ref
			suffix = "/" + id
		} else {
			res.one = ref
		}
		res.metadata[keyConfig+suffix] = config
		if t.Image.Created != nil {
			res.metadata[keyEpoch+suffix] = strconv.AppendInt(nil, t.Image.Created.Unix(), 10)
		}
	}
	data, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	res.metadata[keyPlatforms] = data
	return res, f.bind(refs)
}

// bind gives the local directories of a plan names that no other plan of the
// job uses.
func (f *dockerfile) bind(refs []*reference) error {
	used := usedPaths(refs)
	return each(refs, func(s *plan.Step) error {
		op, ok := s.Op.(*plan.Local)
		if !ok {
			return f.job.check(s)
		}
		f.job.mu.Lock()
		_, known := f.job.locals[op.Name]
		f.job.mu.Unlock()
		if known {
			return nil // of an input
		}
		spec := f.mainContext()
		if name, named := strings.CutPrefix(op.Name, "context:"); named {
			name, hint, _ := strings.Cut(name, "\x00")
			spec = f.local(name, "context:"+hint)
		}
		spec.exclude, spec.ignoreFile, spec.follow = op.Exclude, op.IgnoreFile, used[op.Name]
		bound := *op
		bound.Name, _ = f.job.local(spec)
		s.Op = &bound // nobody has seen the step yet
		return nil
	})
}

// local is a directory of the client.
func (f *dockerfile) local(name, hint string) localSpec {
	return localSpec{session: f.attr("local-sessionid:"+name, f.job.session), name: name, hint: hint}
}

func (f *dockerfile) mainContext() localSpec {
	name := f.attr("contextkey", "context")
	return f.local(name, name)
}

// warn shows the findings about the build file.
func (f *dockerfile) warn(warnings []plan.Warning) {
	for _, w := range warnings {
		line := 0
		out := &controlapi.VertexWarning{
			Vertex: f.job.board.vertexDigest(f.vertex), Level: 1, Detail: [][]byte{[]byte(w.Detail)}, Url: w.URL,
		}
		if w.Source != nil && w.Source.File != nil {
			out.Info, out.Ranges = sourceInfo(w.Source.File), sourceRanges(w.Source)
			if len(w.Source.Ranges) > 0 {
				line = w.Source.Ranges[0].StartLine
			}
		}
		out.Short = []byte(w.Text)
		if w.Rule != "" {
			out.Short = []byte(w.Rule + ": " + w.Text)
		}
		if line > 0 {
			out.Short = fmt.Appendf(out.Short, " (line %d)", line)
		}
		f.job.board.warn(out)
	}
}

// load finds out what the main context is, and reads the build file.
func (f *dockerfile) load(ctx context.Context) error {
	f.filename = f.attr("filename", "Dockerfile")
	var file *plan.Step // where the build file is, if not in a directory of the client
	url := f.attrs[f.attr("contextkey", "context")]
	git, isGit, err := parser.Git(url)
	switch {
	case isGit:
		if err != nil {
			return err
		}
		if keep, err := strconv.ParseBool(f.attrs["build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR"]); err == nil && keep {
			git.KeepGitDir = true
		}
		git.Advice, _ = strconv.ParseBool(f.attrs["build-arg:BUILDKIT_GIT_ADVICE"])
		f.context = &plan.Step{Op: git, Name: "[internal] load git source " + url, Internal: true}
		if err := policy.Step(f.job.policy(), f.context, plannedName); err != nil {
			return err
		}
		f.remote, file = f.context, f.context
	case strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://"):
		if err := f.fetchContext(url); err != nil {
			return err
		}
		file = f.context
	default:
		if file, err = f.input("dockerfile"); err != nil {
			return err
		}
		if f.context, err = f.input("context"); err != nil {
			return err
		}
	}
	if f.context == nil {
		f.localNames = append(f.localNames, f.mainContext().name)
	}
	if sub := f.attrs["contextsubdir"]; sub != "" && f.context != nil {
		f.context = subdir(f.context, sub)
	}
	key := f.attrs["dockerfilekey"]
	if key != "" || file == nil {
		if key == "" {
			key = "dockerfile"
		}
		return f.loadLocal(ctx, key)
	}
	f.vertex, f.fileStep = "file", file
	return f.loadFrom(file)
}

// input is an input of the frontend as a step; nil if there is none.
func (f *dockerfile) input(name string) (*plan.Step, error) {
	def, ok := f.inputs[name]
	if !ok {
		return nil, nil
	}
	if len(def.GetDef()) == 0 {
		return nil, fmt.Errorf("input %s: invalid nil input definition to definition op", name)
	}
	in, err := f.job.translate(f.job.ctx, def)
	if err != nil {
		return nil, fmt.Errorf("input %s: %w", name, err)
	}
	return stepOf(in), nil
}

// stepOf is a step whose first result is in.
func stepOf(in plan.Input) *plan.Step {
	if in.Step != nil && in.Output == 0 {
		return in.Step
	}
	return &plan.Step{Op: &plan.Merge{}, Inputs: []plan.Input{in}, Internal: true, Name: "[internal] input"}
}

// subdir is a directory of a tree.
func subdir(s *plan.Step, dir string) *plan.Step {
	return &plan.Step{
		Op:     &plan.File{Actions: []plan.Action{&plan.Copy{Input: 1, Source: path.Join("/", dir), Dest: "/", ContentsOnly: true}}},
		Inputs: []plan.Input{{}, {Step: s}}, Name: s.Name, Internal: true,
	}
}

// fetchContext fetches a context: an archive of it, or a build file that needs
// none.
func (f *dockerfile) fetchContext(raw string) error {
	name := "context"
	if u, err := url.Parse(raw); err == nil {
		if b := path.Base(u.Path); b != "." && b != "/" {
			name = b
		}
	}
	file := &plan.Step{Op: &plan.HTTP{URL: raw, Filename: name}, Name: "[internal] load remote build context", Internal: true}
	if u, err := url.Parse(raw); err == nil && u.Host == uploadHost {
		op, err := f.job.upload(u, name)
		if err != nil {
			return fmt.Errorf("read the context %s: %w", raw, err)
		}
		file.Op = op
	} else {
		if err := policy.Step(f.job.policy(), file, plannedName); err != nil {
			return err
		}
		f.remote = file
	}
	head, err := f.job.readFile(f.job.reference(file, 0, nil), name, 0, 1024)
	if err != nil {
		return fmt.Errorf("read the context %s: %w", raw, err)
	}
	f.context = file
	if !isArchive(head) {
		f.filename = name
		return nil
	}
	f.context = &plan.Step{
		Op:     &plan.File{Actions: []plan.Action{&plan.Copy{Input: 1, Source: "/" + name, Dest: "/", Unpack: true}}},
		Inputs: []plan.Input{{}, {Step: file}}, Name: "[internal] unpack remote build context", Internal: true,
	}
	return nil
}

// isArchive reports whether a file begins like a tar archive, plain or
// compressed.
func isArchive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b\x08", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 262 && string(head[257:262]) == "ustar"
}

// buildFiles are the names that a build file may have, the first one best.
func (f *dockerfile) buildFiles() []string {
	names := []string{f.filename}
	if path.Base(f.filename) == "Dockerfile" {
		names = append(names, path.Join(path.Dir(f.filename), "dockerfile"))
	}
	return names
}

// loadLocal reads the build file from a directory of the client, and the ignore
// file of the main context.
func (f *dockerfile) loadLocal(ctx context.Context, key string) error {
	spec := f.local(key, key)
	spec.always = true
	own := f.filename + ".dockerignore"
	spec.follow = append(f.buildFiles(), own)
	name, l := f.job.local(spec)
	f.vertex = "local " + name
	f.localNames = append(f.localNames, spec.name)
	f.fileStep = &plan.Step{Op: &plan.Local{Name: name}}
	if err := f.job.sync(l, "[internal] load build definition from "+f.filename, true); err != nil {
		return fmt.Errorf("failed to read dockerfile: %w", err)
	}
	err := f.find(func(name string) ([]byte, bool, error) { return readLocal(l, name) })
	if err != nil || f.context != nil {
		return err
	}
	return f.loadIgnore(l, own)
}

func (f *dockerfile) find(read func(name string) ([]byte, bool, error)) error {
	for _, name := range f.buildFiles() {
		data, ok, err := read(name)
		if err != nil {
			return fmt.Errorf("failed to read dockerfile: %w", err)
		}
		if ok {
			f.data = data
			return nil
		}
	}
	return fmt.Errorf("failed to read dockerfile: open %s: no such file or directory", f.filename)
}

// loadFrom reads the build file from a tree.
func (f *dockerfile) loadFrom(s *plan.Step) error {
	ref := f.job.reference(s, 0, nil)
	return f.find(func(name string) ([]byte, bool, error) {
		data, err := f.job.readFile(ref, name, 0, 0)
		if errors.Is(err, errNotExist) {
			return nil, false, nil
		}
		return data, err == nil, err
	})
}

// loadIgnore reads the ignore file that goes with the build file, else that of
// the context.
func (f *dockerfile) loadIgnore(l *local, own string) error {
	data, ok, err := readLocal(l, own)
	if err != nil {
		return err
	}
	f.ignoreFile = own
	if !ok {
		f.ignoreFile = ".dockerignore"
		spec := f.mainContext()
		spec.hint += "-.dockerignore"
		if data, err = f.readIgnore(spec, "[internal] load .dockerignore"); err != nil {
			return err
		}
	}
	f.exclude, err = ignore.Read(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("failed to read dockerignore patterns: failed parsing %s: %w", f.ignoreFile, err)
	}
	return nil
}

func (f *dockerfile) readIgnore(spec localSpec, vertex string) ([]byte, error) {
	spec.follow, spec.always = []string{".dockerignore"}, true
	_, l := f.job.local(spec)
	if err := f.job.sync(l, vertex, true); err != nil {
		if grpcerrors.Code(err) == codes.NotFound {
			return nil, nil // there is no such directory: it may not be needed
		}
		return nil, err
	}
	data, _, err := readLocal(l, ".dockerignore")
	return data, err
}

// addContexts reads the named contexts.
func (f *dockerfile) addContexts(ctx context.Context, o *parser.Options) error {
	o.Contexts = map[string]parser.Context{}
	for name, value := range f.prefixed("context:") {
		c, err := f.namedContext(name, value)
		if err != nil {
			return fmt.Errorf("context %s: %w", name, err)
		}
		o.Contexts[name] = c
	}
	return nil
}

func (f *dockerfile) namedContext(name, value string) (parser.Context, error) {
	kind, rest, ok := strings.Cut(value, ":")
	if !ok {
		return parser.Context{}, fmt.Errorf("invalid context specifier %s for %s", value, name)
	}
	if step, ok, err := parser.Remote(name, value); ok {
		return parser.Context{Step: step}, err
	}
	switch kind {
	case "docker-image":
		return parser.Context{Image: strings.TrimPrefix(rest, "//")}, nil
	case "local":
		hint := name + "-" + f.attrs["sharedkey:localdir:"+name]
		c := parser.Context{Local: "context:" + rest + "\x00" + hint, IgnoreFile: ".dockerignore"}
		data, err := f.readIgnore(f.local(rest, "context:"+name+"-.dockerignore"), "[context "+name+"] load .dockerignore")
		if err != nil {
			return c, err
		}
		c.Exclude, err = ignore.Read(bytes.NewReader(data))
		return c, err
	case "input":
		step, err := f.input(rest)
		if err != nil {
			return parser.Context{}, err
		}
		if step == nil {
			return parser.Context{}, fmt.Errorf("invalid input %s for %s", rest, name)
		}
		c := parser.Context{Step: step}
		if md, ok := f.attrs["input-metadata:"+rest]; ok {
			var m map[string][]byte
			if err := json.Unmarshal([]byte(md), &m); err != nil {
				return c, fmt.Errorf("input metadata: %w", err)
			}
			c.Config = m[keyConfig]
		}
		return c, nil
	case "oci-layout":
		store, dgst, ok := strings.Cut(strings.TrimPrefix(rest, "//"), "@")
		if !ok {
			return parser.Context{}, fmt.Errorf("oci-layout reference %q has no digest", rest)
		}
		if i := strings.LastIndex(store, ":"); i > strings.LastIndex(store, "/") {
			store = store[:i] // a tag, for people
		}
		if f.layouts == nil {
			f.layouts = map[string]string{}
		}
		f.layouts[store+"@"+dgst] = name
		return parser.Context{Layout: store, Image: dgst}, nil
	}
	return parser.Context{}, fmt.Errorf("unsupported context source %s for %s", kind, name)
}

// resolve looks a base image up, telling of it.
func (j *job) resolve(ctx context.Context, ref string, p ocispec.Platform, pull bool) (builder.Base, error) {
	report := j.board.event
	id := "metadata " + ref + " " + platforms.FormatAll(p)
	report(progress.Event{Kind: progress.Start, Time: time.Now(), Vertex: id, Name: "[internal] load metadata for " + ref, Internal: true})
	b, err := j.store.Builder.Resolve(ctx, ref, p, pull)
	done := progress.Event{Kind: progress.Done, Time: time.Now(), Vertex: id}
	if err != nil {
		done.Error = err.Error()
	} else {
		j.resolved(b, "", p, false)
	}
	report(done)
	return b, err
}

// noCache reads the attribute no-cache: empty means all stages.
func (f *dockerfile) noCache(o *parser.Options) {
	v, ok := f.attrs["no-cache"]
	switch {
	case !ok:
	case v == "":
		o.NoCache = true
	default:
		o.NoCacheStages = slices.DeleteFunc(strings.Split(v, ","), func(s string) bool { return s == "" })
	}
}
