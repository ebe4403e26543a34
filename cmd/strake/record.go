package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"

	"github.com/strake-build/strake/builder/explain"
	"github.com/strake-build/strake/builder/export"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

// recording is the record of a build under way; nil if it can't be kept, which
// is no reason not to build.
type recording struct {
	e     *env
	store *builds.Store
	b     *builds.Build
	// explain: tell why steps were run.
	explain bool
	// elsewhere finds builds to compare with if there are none here, and share
	// hands the record on; nil is allowed.
	elsewhere func(explain.Build, builds.Record) []explain.Build
	share     func(builds.Record)
}

// builds are the records of builds.
func (s *store) builds() *builds.Store { return builds.Open(s.Root, builds.Limits{}) }

// record begins to keep a record of a build.
func (o buildOptions) record(contextArg string, p parser.Options, outputs []export.Output, s *store, e *env) *recording {
	all := s.builds()
	b, err := all.Begin(builds.Record{
		Context: absoluteContext(contextArg), Frontend: "dockerfile.v0", Attrs: o.attrs(p), Exporters: exporters(outputs),
	})
	if err != nil {
		e.warnf("%v", err)
		return nil
	}
	quiet := o.quiet || o.progress == string(progress.Quiet) || o.progress == string(progress.RawJSON)
	return &recording{e: e, store: all, b: b, explain: !quiet}
}

// build is the record itself, for the builder.
func (r *recording) build() *builds.Build {
	if r == nil {
		return nil
	}
	return r.b
}

func (r *recording) logs() *progress.Logs {
	if r == nil {
		return nil
	}
	return r.b.Logs
}

// end completes the record. metadata is what the exporters said.
func (r *recording) end(err error, metadata map[string]any) {
	if r == nil {
		return
	}
	response := map[string]string{}
	for k, v := range metadata {
		if s, ok := v.(string); ok {
			response[k] = s
		}
	}
	if err := r.b.End(err, response); err != nil {
		r.e.warnf("%v", err)
	}
	if r.explain {
		r.tellWhy()
	}
	if r.share != nil && err == nil {
		r.share(r.b.Record())
	}
}

// tellWhy prints a line for each branch of the build in which steps were run,
// if it is not the first one of its kind.
func (r *recording) tellWhy() {
	steps := r.b.Steps()
	if !slices.ContainsFunc(steps, func(s builds.Step) bool { return s.Outcome == builds.Ran || s.Outcome == builds.StepFailed }) {
		return
	}
	all, err := r.store.List()
	if err != nil {
		r.e.warnf("%v", err)
		return
	}
	record := r.b.Record()
	now := explain.Build{Ref: record.Ref, Attrs: record.Attrs, Steps: steps, Files: record.Files}
	past := explain.Past(record, steps, all)
	if len(past) == 0 && r.elsewhere != nil {
		past = r.elsewhere(now, record)
	}
	for _, f := range explain.Explain(now, past) {
		if c := f.Causes[0]; c.Kind != explain.New || c.Change != "" {
			fmt.Fprintf(r.e.stderr, "why: %s\n", cleaned(f.Line()))
		}
	}
}

// attrs are the options as BuildKit's frontend has them.
func (o buildOptions) attrs(p parser.Options) map[string]string {
	a := map[string]string{}
	set := func(k, v string) {
		if v != "" {
			a[k] = v
		}
	}
	set("filename", o.file)
	set("target", o.target)
	set("hostname", o.hostname)
	var ps []string
	for _, pl := range p.Platforms {
		ps = append(ps, platforms.Format(pl))
	}
	set("platform", strings.Join(ps, ","))
	for k, v := range p.Args {
		a["build-arg:"+k] = v
	}
	for k, v := range p.Labels {
		a["label:"+k] = v
	}
	for _, c := range o.contexts {
		if name, value, ok := strings.Cut(c, "="); ok {
			a["context:"+name] = value
		}
	}
	if o.noCache || len(o.noCacheFilter) > 0 {
		a["no-cache"] = strings.Join(o.noCacheFilter, ",")
	}
	if o.network != "default" {
		set("force-network-mode", o.network)
	}
	if o.pull {
		a["image-resolve-mode"] = "pull"
	}
	return a
}

func exporters(outputs []export.Output) []builds.Exporter {
	var list []builds.Exporter
	for _, out := range outputs {
		x := builds.Exporter{Type: string(out.Type), Attrs: map[string]string{}}
		if len(out.Names) > 0 {
			x.Attrs["name"] = strings.Join(out.Names, ",")
		}
		if out.Dest != "" {
			x.Attrs["dest"] = out.Dest
		}
		if out.Push {
			x.Attrs["push"] = strconv.FormatBool(out.Push)
		}
		list = append(list, x)
	}
	return list
}

// absoluteContext is the context so that it means the same elsewhere.
func absoluteContext(arg string) string {
	if arg == "-" || isURL(arg) {
		return arg
	}
	if abs, err := filepath.Abs(arg); err == nil {
		return abs
	}
	return arg
}
