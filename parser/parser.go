// Package parser reads build files in the Dockerfile language and makes plans
// of them.
//
// Parse checks the syntax; File.Plan does all the rest: it selects the stages
// that the target needs, expands variables, resolves base images by a call-back
// and computes the image configuration with its history. The language is
// that of BuildKit's Dockerfile frontend, and its syntax packages read it.
//
//	f, err := parser.Parse("Dockerfile", data)
//	build, err := f.Plan(ctx, parser.Options{BuildPlatform: p, Resolve: resolve})
//
// Build files and base images are not trusted. What a plan can take in memory
// is bounded, whatever they say; limits.go has the bounds.
package parser

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
)

// File is a build file. It is not changed by planning, and several plans may be
// made of it at once.
type File struct {
	source   *plan.SourceFile
	stages   []string
	warnings []plan.Warning // of a file that can't be parsed
	// parsed is for the first target that is planned; nil once it has it.
	parsed atomic.Pointer[parsed]
}

// parsed is what Parse has read, and what the linter, with no options, found.
type parsed struct {
	syntax   *syntax
	warnings []plan.Warning
}

// Parse parses a build file. name is what messages call it. Errors are
// *plan.Error; the file that comes with one has nothing but Warnings.
func Parse(name string, data []byte) (*File, error) {
	f := &File{source: &plan.SourceFile{Name: name, Data: data}}
	if err := f.checkText(data, nil); err != nil {
		return f, err
	}
	if err := f.checkSyntaxDirective(); err != nil {
		return f, err
	}
	s, err := f.read(linter.New(&linter.Config{Warn: f.warn(&f.warnings)}))
	if err != nil {
		return f, err
	}
	f.parsed.Store(&parsed{s, f.warnings})
	f.warnings = nil
	for _, stage := range s.stages {
		f.stages = append(f.stages, stage.Name)
	}
	return f, nil
}

// Warnings are the findings about a file up to where it can't be parsed.
func (f *File) Warnings() []plan.Warning { return sortWarnings(f.warnings) }

// Stages returns the names of the stages ("" where there is none), in order.
func (f *File) Stages() []string { return append([]string(nil), f.stages...) }

// Resolved is what a base image turned out to be.
type Resolved struct {
	Ref    string        // normalised
	Digest digest.Digest // of the manifest for the platform
	Config []byte        // image configuration
	Layout string        // see plan.Image.Layout
	// Step is a file system that is to be used instead of an image, with an
	// empty configuration; nil if it is an image.
	Step *plan.Step
}

// Context is a named context given by --build-context.
type Context struct {
	// Image is the reference of an image to use instead (docker-image://…).
	Image string
	// Layout is the name of an OCI layout, Image being its tag or digest.
	Layout string
	// Local is the plan.Local name of a directory.
	Local string
	// Exclude and IgnoreFile are the directory's ignore patterns.
	Exclude    []string
	IgnoreFile string
	// Stage is the name of a stage of the file to use instead.
	Stage string
	// Step is anything else (git, http, the result of another build).
	Step *plan.Step
	// Config is the image configuration that goes with Step; nil if there is
	// none.
	Config []byte
}

// Version is the version of the Dockerfile language that is understood.
const Version = "1.26.0"

// Options says what to build of a file, and how. The zero value builds the last
// stage for this machine's platform.
type Options struct {
	Target        string             // stage name or number
	AllStages     bool               // look at stages that the target doesn't need, too
	Args          map[string]string  // --build-arg
	Platforms     []ocispec.Platform // empty: BuildPlatform
	BuildPlatform ocispec.Platform   // of this machine; required
	Labels        map[string]string  // --label
	// Contexts are the named contexts by name; "context" replaces the main
	// one. "name::platform" is the context of one platform.
	Contexts      map[string]Context
	Exclude       []string // .dockerignore patterns of the main context
	IgnoreFile    string   // where they come from
	NoCache       bool
	NoCacheStages []string // --no-cache-filter: stage names
	Network       plan.NetworkMode
	Hosts         []plan.Host
	Ulimits       []plan.Ulimit
	ShmSize       int64
	Resources     plan.Resources
	Hostname      string
	// Epoch is SOURCE_DATE_EPOCH; nil if not given. The build arg of that
	// name is used in its place if there is one.
	Epoch *time.Time
	// EpochOf tells the time of a source, where SOURCE_DATE_EPOCH names one
	// (a context, or a stage that only adds one): that of a commit, or when a
	// file was changed. A nil step stands for a context that is a directory of
	// the user. nil, or a nil time: there is none.
	EpochOf func(ctx context.Context, step *plan.Step) (*time.Time, error)
	// Ahead is told which paths of the main context, a directory, are sure to be
	// copied if the build comes to that, before base images are looked up: so
	// they can be read meanwhile. Paths may be left out. It may be called once for
	// each platform, from several goroutines; nil: nobody wants to know.
	Ahead func(paths []string)
	// Resolve looks a base image up. It may be called from several
	// goroutines, once for each reference and platform. ref is normalised, or
	// "oci-layout://<layout>:<tag>" or "oci-layout://<layout>@<digest>" for
	// an image of a Context with a Layout.
	Resolve func(ctx context.Context, ref string, platform ocispec.Platform) (Resolved, error)
}

// Plan makes a plan of the file. Errors about the file are *plan.Error; the
// build that comes with one has the warnings found until then, and no targets. A
// flag or instruction that is not supported is an error, never ignored.
//
// Equal steps of the targets are one *plan.Step. Times in the image are those
// of the epoch, and unset without one.
func (f *File) Plan(ctx context.Context, o Options) (*plan.Build, error) {
	return planBuild(ctx, f, &o)
}
