package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
	"github.com/tonistiigi/go-csvvalue"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/attest/provenance"
	"github.com/strake-build/strake/attest/sbom"
	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/export"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

// attestOptions are the flags that ask for attestations.
type attestOptions struct {
	attests          []string
	provenance, sbom string
}

func (o *attestOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.attests, "attest", nil, "say something of the result: `type=provenance` or type=sbom, with parameters; may be repeated")
	f.StringVar(&o.provenance, "provenance", "", "say how the result was made: `true`, false, or parameters as mode=min; short for --attest type=provenance")
	f.StringVar(&o.sbom, "sbom", "", "say what is in the result: `true`, false, or generator=IMAGE; short for --attest type=sbom")
}

// parse reads what is asked for. Nothing is unless a flag says so.
func (o attestOptions) parse() (attest.Request, error) {
	out := attest.Request{}
	add := func(flag, kind, params string) error {
		if on, err := strconv.ParseBool(params); err == nil {
			delete(out, kind)
			if on {
				out[kind] = map[string]string{}
			}
			return nil
		}
		attrs, err := attest.Parse(kind, params)
		if err != nil {
			return usagef("--%s %s: %w", flag, params, err)
		}
		if off, err := strconv.ParseBool(attrs["disabled"]); err == nil && off {
			delete(out, kind)
			return nil
		}
		out[kind] = attrs
		return nil
	}
	for _, a := range o.attests {
		fields, err := csvvalue.Fields(a, nil)
		if err != nil {
			return nil, usagef("--attest %s: %w", a, err)
		}
		kind := ""
		for _, f := range fields {
			if v, ok := strings.CutPrefix(f, "type="); ok {
				kind = v
			}
		}
		if kind != attest.Provenance && kind != attest.SBOM {
			return nil, usagef("--attest %s: type= is provenance or sbom", a)
		}
		if err := add("attest", kind, a); err != nil {
			return nil, err
		}
	}
	for _, short := range [][2]string{{attest.Provenance, o.provenance}, {attest.SBOM, o.sbom}} {
		if short[1] == "" {
			continue
		}
		if err := add(short[0], short[0], short[1]); err != nil {
			return nil, err
		}
	}
	if params, ok := out[attest.Provenance]; ok {
		if _, err := provenance.ParseOptions(params); err != nil {
			return nil, usageError{err}
		}
	}
	if params := out[attest.SBOM]; params["generator"] != "" {
		ref, err := registry.Normalize(params["generator"])
		if err != nil {
			return nil, usagef("generator=%s: %w", params["generator"], err)
		}
		params["generator"] = ref // as policies and lock files have it
	}
	return out, nil
}

// placeOf refuses attestations that no output can hold.
func placeOf(asked attest.Request, outputs []export.Output) error {
	lost := func(o export.Output) bool { return o.Type == export.TypeImage && !o.Push && o.Referrers }
	if len(asked) == 0 || slices.ContainsFunc(outputs, func(o export.Output) bool { return !lost(o) }) {
		return nil
	}
	return usagef("an image of the local store has no place for referrers: add --push, or leave attestations=referrers out")
}

// describer makes the attestations of a build's results.
type describer struct {
	o       buildOptions
	asked   attest.Request
	started time.Time
	version string
	in      *inputs
	args    parser.Options
	b       *builder.Builder
	s       *store
	event   progress.Func
	// generator looks generator images up.
	generator func(context.Context, string, ocispec.Platform) (parser.Resolved, error)

	mu     sync.Mutex
	images []provenance.Image

	once sync.Once
	vcs  map[string]string
	id   string
}

// resolved remembers an image that was looked up.
func (d *describer) resolved(b builder.Base, p ocispec.Platform) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images = append(d.images, provenance.Image{Ref: b.Ref, Resolved: b.Digest, Platform: p, Digest: b.Pin})
}

// attest makes the attestations of one result.
func (d *describer) attest(ctx context.Context, r builder.Result) ([]attest.Attestation, error) {
	var out []attest.Attestation
	if params, ok := d.asked[attest.SBOM]; ok {
		list, err := d.sbom(ctx, r, params)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	if params, ok := d.asked[attest.Provenance]; ok {
		o, err := provenance.ParseOptions(params)
		if err != nil {
			return nil, err
		}
		p := r.Target.Platform
		a, err := provenance.New(o, d.build(ctx, r), provenance.Target{Result: plan.Input{Step: r.Target.Step}, Platform: &p})
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// build is what is known of the build of a result.
func (d *describer) build(ctx context.Context, r builder.Result) provenance.Build {
	d.once.Do(func() {
		d.id = strings.ToLower(rand.Text())
		if d.in.dir != "" {
			d.vcs = gitState(ctx, d.in.dir)
		}
	})
	b := provenance.Build{
		Request: provenance.Request{Frontend: "dockerfile.v0", Args: d.request()},
		ID:      d.id, Started: d.started, Platform: thisPlatform(), Version: map[string]string{"strake": d.version}, Language: parser.Version,
		Images: d.images, Blobs: r.Blobs, Now: time.Now,
		File: &plan.SourceFile{Name: d.in.name, Data: d.in.dockerfile}, FileStep: &plan.Step{Op: &plan.Local{Name: "dockerfile"}},
		LocalName: clientName,
	}
	var remote *plan.Step
	if d.in.remote != nil {
		remote = &plan.Step{Op: d.in.remote, Name: "[internal] load remote context", Internal: true}
		b.Request.Source, b.FileStep = remote, remote
		b.Replaced = map[string]*plan.Step{"context": remote}
		b.More = []*plan.Step{remote}
	} else {
		b.Locals = []string{"context"}
	}
	if d.in.remote == nil || d.o.file != "" {
		b.Locals = append(b.Locals, "dockerfile")
	}
	b.Fact = func(s *plan.Step) provenance.Fact {
		if s == remote {
			return provenance.Fact{ID: d.in.remoteID}
		}
		f := r.Fact(s)
		return provenance.Fact{ID: f.ID, Outputs: f.Outputs}
	}
	return b
}

// request is the command line as the options of BuildKit's frontend, which is
// what readers of provenance know.
func (d *describer) request() map[string]string {
	args := map[string]string{"filename": d.in.name}
	for k, v := range d.args.Args {
		args["build-arg:"+k] = v
	}
	for k, v := range d.args.Labels {
		args["label:"+k] = v
	}
	for k, v := range d.vcs {
		args["vcs:"+k] = v
	}
	for _, c := range d.o.contexts {
		name, value, _ := strings.Cut(c, "=")
		if !strings.HasPrefix(value, "docker-image://") {
			value = "local:" + name
		}
		args["context:"+strings.ToLower(name)] = value
	}
	set := func(key, value string) {
		if value != "" {
			args[key] = value
		}
	}
	set("target", d.o.target)
	set("hostname", d.o.hostname)
	set("force-network-mode", string(d.args.Network))
	var hosts []string
	for _, h := range d.args.Hosts {
		hosts = append(hosts, h.Name+"="+h.IP)
	}
	set("add-hosts", strings.Join(hosts, ","))
	set("no-cache", strings.Join(d.o.noCacheFilter, ","))
	if d.o.noCache {
		args["no-cache"] = ""
	}
	return args
}

// gitState is what git says of a directory of the user, without vouching for it;
// nil if it is in no repository.
func gitState(ctx context.Context, dir string) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	git := func(args ...string) (string, bool) {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", dir, "-c", "core.fsmonitor=false"}, args...)...).Output()
		return strings.TrimSpace(string(out)), err == nil
	}
	revision, ok := git("rev-parse", "HEAD")
	if !ok {
		return nil
	}
	out := map[string]string{"revision": revision}
	if changes, ok := git("status", "--porcelain", "--ignored=no", "--untracked-files=no"); ok && changes != "" {
		out["revision"] += "-dirty"
	}
	if remote, ok := git("remote", "get-url", "origin"); ok {
		out["source"] = remote
	}
	return out
}

// sbom says what is in a result.
func (d *describer) sbom(ctx context.Context, r builder.Result, params map[string]string) ([]attest.Attestation, error) {
	created := time.Now()
	if at := r.Target.Image.Created; at != nil { // SOURCE_DATE_EPOCH
		created = *at
	}
	generator := params["generator"]
	if generator == "" {
		var v *snapshot.View
		if len(r.Tree) > 0 {
			var err error
			if v, err = d.s.layers.View(ctx, r.Tree, r.Sources); err != nil {
				return nil, err
			}
		}
		a, err := sbom.Attestation(ctx, v, sbom.Options{Name: d.name(r), Version: d.version, Created: created})
		return []attest.Attestation{a}, err
	}
	base, err := d.generator(ctx, generator, thisPlatform())
	if err == nil && base.Step != nil {
		err = errors.New("the policy has something used that is no image")
	}
	if err != nil {
		return nil, fmt.Errorf("SBOM generator %s: %w", generator, err)
	}
	g, err := sbom.NewGenerator(base.Ref, base.Digest, base.Config, thisPlatform(), params)
	if err != nil {
		return nil, err
	}
	scan, err := g.Scan(d.name(r), plan.Input{Step: r.Target.Step}, r.Target.Scans, d.o.noCache)
	if err != nil {
		return nil, err
	}
	// A target is the first result of a step.
	target := plan.Target{Step: &plan.Step{Op: &plan.Merge{}, Inputs: []plan.Input{scan}, Platform: thisPlatform(), Name: "[internal] SBOM", Internal: true}, Platform: thisPlatform()}
	results, err := d.b.Build(ctx, builder.Request{
		Build: &plan.Build{Targets: []plan.Target{target}}, Locals: d.in.locals, NoCache: false, Progress: d.event,
	})
	if err != nil {
		return nil, err
	}
	v, err := d.s.layers.View(ctx, results[0].Tree, results[0].Sources)
	if err != nil {
		return nil, err
	}
	return sbom.ReadBundle(ctx, v, ".", attest.PredicateSPDX)
}

// name is what a result is called.
func (d *describer) name(r builder.Result) string {
	if len(d.o.tags) > 0 {
		return d.o.tags[0]
	}
	return r.Target.Platform.OS + "/" + r.Target.Platform.Architecture
}
