// Package plan describes a build as data: steps, their inputs and their ops.
//
// A plan is what a parser makes of a build file and what the builder runs. It
// does no I/O and knows no Dockerfile. Steps form a directed acyclic graph by
// their Inputs; a step is identified by pointer while a plan is built and by
// its key (see package builder) once it runs. Everything that may change the
// result of a step is in its Op; Name, Source and the other fields are for
// people and never enter a key.
//
// A plan and its steps are not changed once they have been handed to a builder.
package plan

import (
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Build is a whole build: one Target for each platform asked for, in the order
// they were asked for.
type Build struct {
	Targets []Target
	// Warnings are what a person should know about the build file, in the
	// order of their positions.
	Warnings []Warning
}

// Target is one image to be made.
type Target struct {
	// Platform is the platform the image is for.
	Platform ocispec.Platform
	// Step is the step whose result is the root file system; nil for an
	// empty image (FROM scratch and nothing else).
	Step *Step
	// Image is the image configuration, complete but for RootFS.DiffIDs and
	// times. It holds one history entry with EmptyLayer false for each layer
	// of the result, those of the base image first.
	Image dockerspec.DockerOCIImage
	// Stage is the name of the target stage, or its number if it has none.
	Stage string
	// Scans are what an SBOM is to tell of besides the result, by names:
	// other stages, the context.
	Scans map[string]Input
}

// Step is one vertex of the build graph.
type Step struct {
	Op     Op
	Inputs []Input
	// Platform is what the result is made for. It enters the key of Exec
	// steps only.
	Platform ocispec.Platform
	// NoCache asks that results stored by earlier builds be passed over for
	// this step and what is downstream of it.
	NoCache bool

	// Name is what progress shows: "[build 2/5] RUN make".
	Name string
	// Internal hides the step from the ordinary display ("[internal] …").
	Internal bool
	// Source is where the step came from; nil if there is no build file.
	Source *Source
}

// Input names one result of a step. A nil Step is the empty tree (scratch).
type Input struct {
	Step *Step
	// Output is the index of the result. Steps have one, number 0, except
	// Exec steps with writable Bind mounts (see Mount.Output).
	Output int
}

// Source is a range of a build file.
type Source struct {
	File *SourceFile
	// Ranges are inclusive line ranges, counted from 1.
	Ranges []Range
}

// SourceFile is a build file's name as the user gave it, and its bytes.
type SourceFile struct {
	Name string
	Data []byte
}

// Range is a range in a build file. Lines count from 1 and are inclusive;
// columns count bytes from 0, and an end column of 0 means the whole line.
type Range struct{ StartLine, StartColumn, EndLine, EndColumn int }

// Warning is a finding about a build file that does not stop the build.
type Warning struct {
	// Rule is the name of the check ("StageNameCasing").
	Rule   string
	Text   string
	Detail string
	URL    string
	Source *Source
}
