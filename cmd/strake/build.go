package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/device"
	"github.com/strake-build/strake/builder/export"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/state"
)

type buildOptions struct {
	registryOptions
	sandboxOptions
	displayOptions
	resourceOptions
	attestOptions
	cacheOptions
	callOptions
	policyOptions

	file          string
	tags          []string
	target        string
	args          []string
	platforms     []string
	labels        []string
	annotations   []string
	noCache       bool
	noCacheFilter []string
	pull          bool
	network       string
	outputs       []string
	push, load    bool
	iidFile       string
	metadataFile  string
	contexts      []string
	hosts         []string
	hostname      string
	secrets       []string
	ssh           []string
	allow         []string
	parallel      int
	locked        bool
	lockFile      string
	onError       string

	sourceDateEpoch string
	noLeakGuard     bool
	verify          bool
}

func (o *buildOptions) addFlags(f *pflag.FlagSet) {
	f.StringVarP(&o.file, "file", "f", "", "the build file, - for stdin (default CONTEXT/Dockerfile)")
	f.StringArrayVarP(&o.tags, "tag", "t", nil, "`NAME[:TAG]` of the image; may be repeated")
	f.StringVar(&o.target, "target", "", "the stage to build (default the last one)")
	f.StringArrayVar(&o.args, "build-arg", nil, "set an ARG: `NAME=VALUE`, or NAME for its value in the environment")
	f.StringArrayVar(&o.platforms, "platform", nil, "platforms to build for, as linux/amd64,linux/arm64")
	f.StringArrayVar(&o.labels, "label", nil, "label of the image: `NAME=VALUE`")
	f.StringArrayVar(&o.annotations, "annotation", nil, "annotation of the image's manifest, `NAME=VALUE`, or of LEVEL[PLATFORM]:NAME=VALUE; levels are manifest, manifest-descriptor, index, index-descriptor")
	f.BoolVar(&o.noCache, "no-cache", false, "run every step again")
	f.StringSliceVar(&o.noCacheFilter, "no-cache-filter", nil, "run the steps of these stages again")
	f.BoolVar(&o.pull, "pull", false, "look base images up in their registries even if they are in the store")
	f.StringVar(&o.network, "network", "default", "network of RUN steps: default, none or host")
	f.StringArrayVarP(&o.outputs, "output", "o", nil, "deliver the result: `DIR`, - or type=image|registry|oci|docker|local|tar,dest=...; may be repeated")
	f.BoolVar(&o.push, "push", false, "push the image to the registries of its names")
	f.BoolVar(&o.load, "load", false, "put the image into the local store, as is done without --output")
	f.StringVar(&o.iidFile, "iidfile", "", "write the image ID to a `FILE`")
	f.StringVar(&o.metadataFile, "metadata-file", "", "write digests and names as JSON to a `FILE`")
	f.StringArrayVar(&o.contexts, "build-context", nil, "one more context for COPY --from and FROM: `NAME=DIR`, a git or http URL, docker-image://REF, oci-layout://DIR[:TAG] or target:STAGE")
	f.StringArrayVar(&o.hosts, "add-host", nil, "entry of /etc/hosts in RUN steps: `HOST:IP`")
	f.StringVar(&o.hostname, "hostname", "", "host name in RUN steps")
	f.StringArrayVar(&o.secrets, "secret", nil, "a secret for RUN --mount=type=secret: `id=ID,src=FILE` or id=ID,env=NAME")
	f.StringArrayVar(&o.ssh, "ssh", nil, "an SSH agent for RUN --mount=type=ssh: `default` or ID=SOCKET")
	f.StringSliceVar(&o.allow, "allow", nil, "permit RUN steps what they ask for: network.host, security.insecure")
	f.BoolVar(&o.verify, "verify", false, "build again under other conditions before anything is delivered, and fail if a step gives another result")
	f.BoolVar(&o.noLeakGuard, "no-leak-guard", false, "don't search the image for the values of secrets, nor keep them out of logs")
	f.StringVar(&o.sourceDateEpoch, "source-date-epoch", "", "how old the image is: `SECONDS` since 1970, or context, the time of its commit or newest file")
	f.IntVar(&o.parallel, "parallel", 0, "how many steps run at once (default 16 and two for each processor)")
	f.StringVar(&o.onError, "on-error", "", "when a RUN fails: `shell` for a shell on this terminal where it failed")
	o.registryOptions.addFlags(f)
	o.sandboxOptions.addFlags(f)
	o.resourceOptions.addFlags(f)
	o.cacheOptions.addFlags(f)
	o.callOptions.addFlags(f)
	o.displayOptions.addFlags(f, "show nothing, and print the image ID")
	o.attestOptions.addFlags(f)
	o.policyOptions.addFlags(f)
	f.BoolVar(&o.locked, "locked", false, "use what the lock file says that images, repositories and URLs are; others are an error")
	f.StringVar(&o.lockFile, "lock-file", "", "the lock `FILE` of --locked (default the build file's name and .lock)")
	f.BoolVar(&o.offline, "offline", false, "fetch nothing: images, repositories and URLs must be in the store")
	addFixed(f,
		fixedFlag{"rm", true, "steps leave no containers behind"},
		fixedFlag{"force-rm", true, "steps leave no containers behind"},
	)
}

// resourceOptions are limits of what steps may use.
type resourceOptions struct {
	shmSize, memory, memorySwap string
	ulimits                     []string
	cpuShares, cpuPeriod        uint64
	cpuQuota, pids              int64
	cpus, mems, parent          string
}

func (o *resourceOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.shmSize, "shm-size", "", "size of /dev/shm in RUN steps (default 64m)")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "limit of RUN steps: `NAME=SOFT[:HARD]`")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit of each RUN step, as 512m")
	f.StringVar(&o.memorySwap, "memory-swap", "", "limit of memory and swap, -1 for no limit of swap")
	f.Uint64VarP(&o.cpuShares, "cpu-shares", "c", 0, "CPU weight of RUN steps")
	f.Uint64Var(&o.cpuPeriod, "cpu-period", 0, "CPU period of RUN steps in microseconds")
	f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "CPU time in each period in microseconds")
	f.StringVar(&o.cpus, "cpuset-cpus", "", "CPUs that RUN steps may use, as 0-3")
	f.StringVar(&o.mems, "cpuset-mems", "", "memory nodes that RUN steps may use")
	f.Int64Var(&o.pids, "pids-limit", 0, "how many processes each RUN step may have at once (default no limit)")
	f.StringVar(&o.parent, "cgroup-parent", "", "cgroup that RUN steps are put below")
}

func newBuild(e *env) *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] CONTEXT|URL|-",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile and the files in CONTEXT, a directory. With - as
CONTEXT a tar archive of it is read from stdin, or a Dockerfile that needs no files.
A URL is that of a git repository (https://host/repo.git#branch:directory), a tar
archive or a Dockerfile.

The image is put into the local store, or delivered as --output and --push say.`,
		Example: `  strake build -t app .                                  # into the local store
  strake build -t registry.example/app:1 --push .        # to a registry
  strake build -f docker/Dockerfile --target test .      # another file, one stage
  strake build -o type=oci,dest=app.tar -t app .         # into an archive
  strake build -o out --target binary .                  # only the files
  strake build --cache-from registry.example/app-cache \
    --cache-to type=registry,ref=registry.example/app-cache,mode=max -t app .
  strake build --locked --offline .                      # as Dockerfile.lock says, from the store
  strake build --verify .                                # is it the same if it is built again?
  strake build --secret id=token,src=token.txt .         # for RUN --mount=type=secret,id=token
  strake build --check .                                 # only check the Dockerfile
  strake build --call outline --target test .            # what it can be given
  strake build - < Dockerfile`,
		Args: nArgs(1, 1, "the build context: a directory, a URL, or - for stdin; try: strake build ."),
		RunE: func(cmd *cobra.Command, args []string) error { return runBuild(cmd.Context(), o, args[0], e) },
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func runBuild(ctx context.Context, o buildOptions, contextArg string, e *env) (err error) {
	started := time.Now()
	if err := o.checkOnError(e); err != nil {
		return err
	}
	popts, err := o.parserOptions(e)
	if err != nil {
		return err
	}
	outputs, err := o.parseOutputs(e)
	if err != nil {
		return err
	}
	if err := checkReferences(contextArg, o.file); err != nil {
		return err
	}
	switch {
	case o.lockFile != "" && !o.locked:
		return usagef("--lock-file says nothing without --locked")
	case o.offline && o.pull:
		return usagef("--offline and --pull: nothing can be looked up in registries and nowhere at once")
	case o.offline && (o.push || slices.ContainsFunc(outputs, func(out export.Output) bool { return out.Push || out.Type == export.TypeRegistry })):
		return usagef("--offline: nothing can be pushed")
	case o.offline && len(o.cacheFrom)+len(o.cacheTo) > 0:
		return usagef("--offline: remote caches are not asked; leave --cache-from and --cache-to out")
	}
	policies, err := o.policyOptions.load(e)
	if err != nil {
		return err
	}
	asked, err := o.attestOptions.parse()
	if err != nil {
		return err
	}
	if err := placeOf(asked, outputs); err != nil {
		return err
	}
	question, err := o.question()
	if err != nil {
		return err
	}
	secrets, secretIDs, err := parseSecrets(o.secrets, e)
	if err != nil {
		return err
	}
	agents, err := parseSSH(o.ssh, e)
	if err != nil {
		return err
	}
	caches, err := o.cacheOptions.parse()
	if err != nil {
		return err
	}
	o.insecure = append(o.insecure, caches.insecure()...)

	s, err := openStore(e, o.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	b, err := s.builder(o.sandboxOptions, e)
	if err != nil {
		return err
	}
	b.Slots = o.parallel
	b.Git.Token = secrets
	metadata := map[string]any{}
	var rec *recording // of a build; questions leave none
	if question == nil {
		rec = o.record(contextArg, popts, outputs, s, e)
		defer func() { rec.end(err, metadata) }()
	}
	display, err := e.display(o.displayOptions, rec.logs())
	if err != nil {
		return err
	}
	defer e.closeDisplay(display)
	in, err := openInputs(ctx, o, contextArg, b.Index, s, e, func(in *inputs, mayBeFile bool) (string, error) {
		pins, err := o.openLock(in)
		if err != nil {
			return "", err
		}
		return in.fetchContext(ctx, contextArg, mayBeFile, b, s, contextSource{policies, pins.pinStep}, display.Event)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	popts.Contexts, popts.Exclude, popts.IgnoreFile = in.contexts, in.exclude, in.ignoreFile
	popts.EpochOf = epochOf(in, b)
	pins, err := o.openLock(in)
	if err != nil {
		return err
	}
	describe := &describer{o: o, asked: asked, started: started, version: version(), in: in, args: popts, b: b, s: s, event: display.Event}
	describe.generator = decide(policies, pins.look(resolver(b, o.pull, display.Event, func(builder.Base, ocispec.Platform) {})))
	images := decide(policies, pins.look(resolver(b, o.pull, display.Event, describe.resolved)))
	popts.Resolve = func(ctx context.Context, ref string, p ocispec.Platform) (parser.Resolved, error) {
		if strings.HasPrefix(ref, schemeLayout) {
			return in.layout(ctx, ref, p, b, display.Event)
		}
		return images(ctx, ref, p)
	}
	if question != nil {
		return question.answer(ctx, in.name, in.dockerfile, popts, display, e)
	}
	var stopReading func()
	popts.Ahead, stopReading = in.readAhead(ctx)
	defer stopReading()
	file, err := parser.Parse(in.name, in.dockerfile)
	if err != nil {
		return err
	}
	build, err := file.Plan(ctx, popts)
	if err != nil {
		return err
	}
	warn(build.Warnings, display.Event)
	if err := policy.Build(policies, build, clientName); err != nil {
		return err
	}
	if err := pins.pin(build); err != nil {
		return err
	}
	if err := o.checkAllowed(build, b.Devices); err != nil {
		return err
	}
	guard := o.guard(ctx, secretIDs, secrets)
	request := builder.Request{
		Build: build, Locals: in.locals, Secret: secrets, Guard: guard, SSH: agents, NoCache: o.noCache, Progress: display.Event, Record: rec.build(),
	}
	if o.onError != "" {
		request.OnError = e.shellOnError(func() { e.closeDisplay(display) })
	}
	remotes, err := caches.open(ctx, s, &request)
	if err != nil {
		return err
	}
	rec.shareBy(ctx, caches, s, guard)
	x := export.Exporter{Packer: s.packer, Images: s.images, Layers: s.layers, Registry: s.client, Stdout: e.stdout, Progress: display.Event}
	metadata, err = deliver(ctx, b, request, x, outputs, o.verify, describe.attest, remotes.Fields())
	// What was done is worth to be kept if the rest failed, too.
	if ferr := remotes.Finish(ctx); err == nil {
		err = leakError(ferr, nil)
	}
	if err != nil {
		return err
	}
	if err := b.Index.Save(); err != nil {
		e.warnf("remember the context: %v", err)
	}
	e.closeDisplay(display)
	s.autoGC(ctx, e)
	return o.results(metadata, outputs, e)
}

type attestFunc func(context.Context, builder.Result) ([]attest.Attestation, error)

type fieldsFunc = func(context.Context, layers.Tree, image.PackOptions) (map[string]json.RawMessage, error)

// deliver builds and exports. If a remote cache turns out not to have what it
// should, it begins again.
func deliver(ctx context.Context, b *builder.Builder, r builder.Request, x export.Exporter, outputs []export.Output, verify bool, attest attestFunc, fields fieldsFunc) (map[string]any, error) {
	for {
		metadata, err := deliverOnce(ctx, b, r, x, outputs, verify, attest, fields)
		if err == nil || ctx.Err() != nil || !b.Again(&r, err) {
			return metadata, err
		}
	}
}

func deliverOnce(ctx context.Context, b *builder.Builder, r builder.Request, x export.Exporter, outputs []export.Output, verify bool, attest attestFunc, fields fieldsFunc) (map[string]any, error) {
	results, err := b.Build(ctx, r)
	if err != nil {
		return nil, err
	}
	if verify {
		if err := verified(b.Verify(ctx, r)); err != nil {
			return nil, err
		}
	}
	addCredentials(r.Guard, x.Registry)
	guard := r.Guard
	var images []export.Image
	for _, r := range results {
		img := export.Image{Target: r.Target, Tree: r.Tree, Sources: r.Sources, Blobs: r.Blobs, Fields: fields}
		if img.Attestations, err = attest(ctx, r); err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	metadata := map[string]any{}
	for _, out := range outputs {
		if out.Epoch == nil && len(images) > 0 {
			out.Epoch = images[0].Target.Image.Created
		}
		out.Pack.Guard = guard
		response, err := x.Export(ctx, images, out)
		if err != nil {
			return nil, leakError(err, results)
		}
		for k, v := range response {
			metadata[k] = v
		}
	}
	return metadata, nil
}

// parserOptions are the flags that say how the build file is understood.
func (o buildOptions) parserOptions(e *env) (parser.Options, error) {
	p := parser.Options{
		Target: o.target, BuildPlatform: thisPlatform(), NoCache: o.noCache, NoCacheStages: o.noCacheFilter,
		Args: map[string]string{}, Labels: map[string]string{}, Hostname: o.hostname,
	}
	var err error
	if p.Platforms, err = parsePlatforms(o.platforms); err != nil {
		return p, err
	}
	for _, a := range o.args {
		name, value, ok := strings.Cut(a, "=")
		if name == "" {
			return p, usagef("--build-arg %s: the name is missing", a)
		}
		if !ok {
			if value, ok = e.lookup(name); !ok {
				continue // unset there, unset here, as in Docker
			}
		}
		p.Args[name] = value
	}
	for _, l := range o.labels {
		name, value, _ := strings.Cut(l, "=")
		if name == "" {
			return p, usagef("--label %s: the name is missing", l)
		}
		p.Labels[name] = value
	}
	switch o.network {
	case "", "default":
	case "none", "host":
		p.Network = plan.NetworkMode(o.network)
	default:
		return p, usagef("--network %s: it is default, none or host", o.network)
	}
	if p.Hosts, err = parseHosts(o.hosts); err != nil {
		return p, err
	}
	epoch, err := o.epoch(e)
	if err != nil {
		return p, err
	}
	if epoch != "" {
		p.Args[epochArg] = epoch
	}
	return p, o.resourceOptions.apply(&p)
}

func (o resourceOptions) apply(p *parser.Options) (err error) {
	bytes := func(flag, s string, to *int64) {
		if s == "" || err != nil {
			return
		}
		if flag == "memory-swap" && s == "-1" {
			*to = -1
			return
		}
		if *to, err = units.RAMInBytes(s); err != nil || *to < 0 {
			err = usagef("--%s %s: it is a number of bytes, as 64m or 2g", flag, s)
		}
	}
	bytes("shm-size", o.shmSize, &p.ShmSize)
	bytes("memory", o.memory, &p.Resources.Memory)
	bytes("memory-swap", o.memorySwap, &p.Resources.MemorySwap)
	if err != nil {
		return err
	}
	p.Resources.CPUShares, p.Resources.CPUPeriod, p.Resources.CPUQuota = o.cpuShares, o.cpuPeriod, o.cpuQuota
	p.Resources.Pids = o.pids
	p.Resources.CPUSetCPUs, p.Resources.CPUSetMems, p.Resources.CgroupParent = o.cpus, o.mems, o.parent
	for _, u := range o.ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return usagef("--ulimit %s: %w", u, err)
		}
		p.Ulimits = append(p.Ulimits, plan.Ulimit{Name: l.Name, Soft: l.Soft, Hard: l.Hard})
	}
	return nil
}

func parseHosts(values []string) ([]plan.Host, error) {
	var hosts []plan.Host
	for _, h := range values {
		name, ip, ok := strings.Cut(h, "=")
		if !ok {
			name, ip, ok = strings.Cut(h, ":")
		}
		ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if !ok || name == "" || !isIP(ip) {
			return nil, usagef("--add-host %s: it is of the form HOST:IP", h)
		}
		hosts = append(hosts, plan.Host{Name: name, IP: ip})
	}
	return hosts, nil
}

// parseOutputs are the --output flags, and what --push, --load and --tag add.
func (o buildOptions) parseOutputs(e *env) ([]export.Output, error) {
	var names []string
	for _, t := range o.tags {
		ref, err := registry.Normalize(t)
		if err != nil {
			return nil, usagef("-t %s: %w", t, err)
		}
		names = append(names, ref)
	}
	var outputs []export.Output
	for _, s := range o.outputs {
		out, err := export.ParseOutput(s)
		if err != nil {
			return nil, usageError{err}
		}
		outputs = append(outputs, out)
	}
	images := 0
	for i := range outputs {
		o.defaultDest(&outputs[i], e)
		if outputs[i].Type == export.TypeImage || outputs[i].Type == export.TypeRegistry {
			outputs[i].Push = outputs[i].Push || o.push
			images++
		}
	}
	if len(outputs) == 0 || images == 0 && (o.push || o.load) {
		outputs = append(outputs, export.Output{Type: export.TypeImage, Push: o.push, Tar: true})
	}
	var annotations []export.Annotation
	for _, a := range o.annotations {
		list, err := export.ParseAnnotation(a)
		if err != nil {
			return nil, usagef("--annotation %w", err)
		}
		annotations = append(annotations, list...)
	}
	stdout, named := 0, false
	for i := range outputs {
		out := &outputs[i]
		if out.Type != export.TypeLocal && out.Type != export.TypeTar && out.Type != export.TypeNone {
			if len(out.Names) == 0 {
				out.Names = names
			}
			named = true
			out.Annotations = append(out.Annotations, annotations...)
		}
		if out.ToStdout() {
			stdout++
			if e.isTerminal(e.stdout) {
				return nil, usagef("-o %s: not written to a terminal; redirect stdout, or name a file", o.outputs[i])
			}
		}
	}
	for _, out := range outputs {
		if err := out.Check(); err != nil {
			return nil, usageError{err}
		}
	}
	if stdout > 1 || stdout == 1 && o.quiet {
		return nil, usagef("stdout can take only one output")
	}
	if !named && (len(names) > 0 || len(annotations) > 0) {
		e.warnf("files have no name: -t and --annotation say nothing about the output that was asked for")
	}
	return outputs, nil
}

// defaultDest says where an output goes whose dest was left out: archives to
// stdout if that is no terminal; what `docker load` reads into the store.
func (o buildOptions) defaultDest(out *export.Output, e *env) {
	switch {
	case out.Dest != "" || !out.Tar:
	case out.Type == export.TypeDocker:
		out.Type = export.TypeImage
	case (out.Type == export.TypeOCI || out.Type == export.TypeTar) && !e.isTerminal(e.stdout):
		out.Dest = "-"
	}
}

// lookup looks a base image up.
type lookup func(ctx context.Context, ref string, p ocispec.Platform) (builder.Base, error)

// resolver looks base images up, telling of it.
func resolver(b *builder.Builder, pull bool, event progress.Func, resolved func(builder.Base, ocispec.Platform)) lookup {
	return func(ctx context.Context, ref string, p ocispec.Platform) (builder.Base, error) {
		id := "metadata " + ref + " " + p.OS + p.Architecture + p.Variant
		event(progress.Event{Kind: progress.Start, Time: time.Now(), Vertex: id, Name: "[internal] load metadata for " + ref, Internal: true})
		base, err := b.Resolve(ctx, ref, p, pull)
		done := progress.Event{Kind: progress.Done, Time: time.Now(), Vertex: id}
		if err != nil {
			done.Error = err.Error()
		} else {
			resolved(base, p)
		}
		event(done)
		return base, err
	}
}

func warn(warnings []plan.Warning, event progress.Func) {
	for _, w := range warnings {
		text := w.Text
		if w.Rule != "" {
			text = w.Rule + ": " + text
		}
		if at := w.Source.String(); at != "" {
			text += " (" + at + ")"
		}
		event(progress.Event{Kind: progress.Warning, Time: time.Now(), Text: text, URL: w.URL})
	}
}

// checkAllowed looks for steps that ask for more than was allowed.
func (o buildOptions) checkAllowed(b *plan.Build, devices *device.Registry) error {
	allowed := map[string]bool{}
	for _, a := range o.allow {
		if name, _, _ := strings.Cut(a, "="); a != "network.host" && a != "security.insecure" && name != device.Entitlement {
			return usagef("--allow %s: it is network.host, security.insecure, device or device=NAME", a)
		}
		allowed[a] = true
	}
	if o.network == "host" {
		allowed["network.host"] = true
	}
	return b.Walk(func(s *plan.Step) error {
		x, ok := s.Op.(*plan.Exec)
		if !ok {
			return nil
		}
		for what, asked := range map[string]bool{"network.host": x.Network == plan.NetworkHost, "security.insecure": x.Insecure} {
			if asked && !allowed[what] {
				return &plan.Error{Source: s.Source, Err: fmt.Errorf("the step asks for %s, which is not allowed", what), Hint: "if you trust it, build with --allow " + what}
			}
		}
		set, err := devices.Find(x.Devices)
		if err == nil {
			err = set.Check(o.allow)
		}
		if err != nil {
			return &plan.Error{Source: s.Source, Err: err}
		}
		return nil
	})
}

// results writes the files that were asked for, and the image ID.
func (o buildOptions) results(metadata map[string]any, outputs []export.Output, e *env) error {
	id, _ := metadata["containerimage.config.digest"].(string)
	if id == "" {
		id, _ = metadata["containerimage.digest"].(string)
	}
	if o.iidFile != "" {
		if id == "" {
			return errors.New("--iidfile: no output made an image that has an ID")
		}
		if err := state.WriteFile(o.iidFile, []byte(id), 0o644, false); err != nil {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	if o.metadataFile != "" {
		data, err := json.MarshalIndent(metadata, "", "  ")
		if err != nil {
			return err
		}
		if err := state.WriteFile(o.metadataFile, append(data, '\n'), 0o644, false); err != nil {
			return fmt.Errorf("--metadata-file: %w", err)
		}
	}
	if o.quiet && id != "" {
		return e.printf("%s\n", id)
	}
	return nil
}
