// Package builder runs plans.
//
// Every step has one key, made of its op and the identities of its inputs. The
// builder looks the target up first and asks for inputs only on a miss, runs
// what is missing in parallel, each step once however many want it, and records
// results in the cache.
package builder

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/network"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/state"
)

// Builder runs plans on one store. Several builds may run at once.
type Builder struct {
	Root     *state.Root
	Layers   *snapshot.Store
	Blobs    *blob.Store
	Cache    *cache.Store
	Index    *source.Index
	Runner   sandbox.Runner
	Network  *network.Network
	Registry *registry.Client
	// Images is where base images are looked for before the registry.
	Images *image.Store
	// Slots is how many steps run at once; 0 is GOMAXPROCS.
	Slots int
	// Rootless tells that sandboxes start in a user namespace.
	Rootless bool
}

// Request is one build.
type Request struct {
	Build *plan.Build
	// Locals are the directories that plan.Local ops name. Whoever opened
	// them applied the ops' ignore patterns.
	Locals map[string]Local
	// Secret returns the value of a secret, and an error if there is none of
	// that ID; nil: there are none.
	Secret func(ctx context.Context, id string) ([]byte, error)
	// SSH returns the path of the agent socket that an ssh mount shows; nil:
	// there are none.
	SSH func(id string) (string, error)
	// NoCache passes over all stored results.
	NoCache  bool
	Progress progress.Func
}

// Local is a directory of the user.
type Local struct {
	Dir *source.Dir
	// Why explains to the user why a path is missing, such as by naming the
	// ignore rule that dropped it; nil is allowed.
	Why func(path string) string
}

// Result is the root file system of a target.
type Result struct {
	Target plan.Target
	Tree   layers.Tree
	// Sources gives contents of the tree that are not in the store yet. It
	// is good until the context of the build ends.
	Sources snapshot.Sources
}

// StepError is the failure of a step.
type StepError struct {
	Step *plan.Step
	// Exit is the exit code of the process of an Exec; 0 if it is not that
	// which failed.
	Exit int
	// Log is the end of the step's output.
	Log []byte
	Err error
}

// Error names the step's command and what happened.
func (e *StepError) Error() string { panic("unwritten") }

// Unwrap returns Err.
func (e *StepError) Unwrap() error { return e.Err }

// Build runs the plan and returns a result for each of its targets. The error
// is a *StepError where a step failed; if ctx ended, it is the context's cause.
func (b *Builder) Build(ctx context.Context, r Request) ([]Result, error) { panic("unwritten") }

// Base is what an image reference turned out to be.
type Base struct {
	Ref    string        // normalised
	Digest digest.Digest // of the manifest; of the configuration for an image of the local store
	Config []byte        // image configuration
}

// Resolve looks an image up, in the local store unless pull is set, else in its
// registry. Image ops with the digest it returned can be built.
func (b *Builder) Resolve(ctx context.Context, ref string, platform ocispec.Platform, pull bool) (Base, error) {
	panic("unwritten")
}
