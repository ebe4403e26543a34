// Package builder runs plans.
//
// Every step has one key, made of its op and the identities of its inputs (see
// key.go). The builder looks the target up first and asks for inputs only on a
// miss, runs what is missing in parallel, each step once however many want it,
// and records results in the cache.
//
// A Builder works on one store, which other processes use at the same time:
// before a step runs, its key is locked between processes and looked up again.
package builder

import (
	"context"
	"os"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder/device"
	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/network"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/builder/source/gitsource"
	"github.com/strake-build/strake/builder/source/httpsource"
	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote"
	"github.com/strake-build/strake/cache/remote/buildkit"
	"github.com/strake-build/strake/internal/flight"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/state"
	"github.com/strake-build/strake/state/builds"
)

// Builder runs plans on one store. Several builds may run at once. The exported
// fields are set before its first use and not changed after.
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
	// HTTP and Git fetch remote sources; nil: there are none.
	HTTP *httpsource.Client
	Git  *gitsource.Client
	// Devices are those that steps may be given; nil: there are none.
	Devices *device.Registry
	// Slots is how many steps run at once. 0 is 16 and two more for each
	// processor: steps wait for networks and disks as well.
	Slots int
	// Rootless tells that sandboxes start in a user namespace.
	Rootless bool

	flights flight.Group[cache.Record]

	mu    sync.Mutex
	slots chan struct{}     // see places
	bases map[baseKey]*base // resolved images
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
	// Guard is told the secrets that steps are given, and keeps their values
	// out of what the steps print; nil: nothing is kept out.
	Guard *leak.Guard
	// SSH returns the path of the agent socket that an ssh mount shows; nil:
	// there are none.
	SSH func(m plan.Mount) (string, error)
	// NoCache passes over all stored results.
	NoCache bool
	// CacheFrom are asked, in order, for results that the store has not, and
	// CacheTo get all results, even if the build fails. Who made them waits
	// for them.
	CacheFrom []*remote.Importer
	CacheTo   []*remote.Exporter
	// BuildKitFrom are asked after those, and BuildKitTo get what they can
	// name when the build ends.
	BuildKitFrom []*buildkit.Importer
	BuildKitTo   []*buildkit.Exporter

	again   int  // how often it began again, see Builder.Again
	damaged int  // how often it did because of a damaged blob
	offline bool // nothing that is only in remote caches counts
	stored  bool // what is stored is used whatever the plan says
	verify  bool // see Verify

	Progress progress.Func
	// Scope begins the IDs of vertices in events and in Record: it tells those
	// of several requests apart that are one build of a user.
	Scope string
	// OnError is called when the process of a step failed, before its root
	// file system is discarded; nil is allowed. run runs another process there,
	// on a terminal whose master it passes on (see sandbox.Process.Terminal),
	// and returns its exit code.
	OnError func(err *StepError, run func(args []string, terminal func(master *os.File)) (int, error))
	// Record gets what went into the steps, and what became of them; nil:
	// nobody wants to know.
	Record *builds.Build
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
	// Blobs are what the manifests of base images name for layers of Tree.
	Blobs map[layers.ID]ocispec.Descriptor
	// Step returns the step that made a layer of the tree, nil if that is not
	// known.
	Step func(layers.ID) *plan.Step
	// Fact tells what became of a step that the target needs.
	Fact func(*plan.Step) Fact
}

// Fact is what is known of a step after a build.
type Fact struct {
	// ID is the commit of a Git step, the digest of the file of an HTTP step.
	ID string
	// Outputs are the step's results; nil if they are not known: steps that
	// stored results made needless are not looked at.
	Outputs []layers.Tree
}

// Own is what a Builder has for itself if it is one of several on a store.
type Own struct {
	Root     *state.Root
	Layers   *snapshot.Store
	Blobs    *blob.Store
	Images   *image.Store
	Registry *registry.Client
}

// For returns a Builder for one client of a daemon. Steps of both wait for the
// same slots and find the same results, but it leases what it uses by its own
// root, speaks to registries for itself, and knows of no image that b resolved.
// As builders of two processes do, the two run equal steps one after the other,
// the second of which finds the result of the first.
func (b *Builder) For(own Own) *Builder {
	return &Builder{
		Root: own.Root, Layers: own.Layers, Blobs: own.Blobs, Images: own.Images, Registry: own.Registry,
		Cache: b.Cache, Index: b.Index, Runner: b.Runner, Network: b.Network, HTTP: b.HTTP, Git: b.Git,
		Devices: b.Devices, Slots: b.Slots, Rootless: b.Rootless, slots: b.places(),
	}
}

// places is a channel with room for each step that may run.
func (b *Builder) places() chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slots == nil {
		b.slots = make(chan struct{}, b.slotCount())
	}
	return b.slots
}

// slot waits for a place to run in, and returns what gives it back.
func (b *Builder) slot(ctx context.Context) (release func(), err error) {
	slots := b.places()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
