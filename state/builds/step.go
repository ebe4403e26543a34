package builds

import (
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Outcome says what became of a step.
type Outcome string

// The outcomes of a step.
const (
	Unneeded    Outcome = ""         // nobody asked for it, or the build ended before
	Cached      Outcome = "cached"   // its result was there
	Ran         Outcome = "ran"      // it was run, or fetched
	StepFailed  Outcome = "failed"   //
	StepStopped Outcome = "canceled" // another step failed, or the user stopped the build
)

// Step is a step of a build, and all that went into its key. Two builds'
// records of a step tell why one of them ran it again.
type Step struct {
	Vertex   string `json:"vertex"` // in the events
	Name     string `json:"name"`   // "[build 2/4] RUN make"
	Source   string `json:"source,omitempty"`
	Platform string `json:"platform,omitempty"`
	Internal bool   `json:"internal,omitempty"`
	// Kind is what the step does: "image", "local", "git", "http", "exec",
	// "file", "merge" or "diff".
	Kind    string  `json:"kind"`
	Outcome Outcome `json:"outcome,omitempty"`
	// Miss says why it was not found: MissNoCache and so on; empty if its key
	// was new, or it was found.
	Miss string        `json:"miss,omitempty"`
	Took time.Duration `json:"took,omitempty"`
	Key  string        `json:"key,omitempty"`
	// Parts are what the step says, in order.
	Parts  []Part  `json:"parts,omitempty"`
	Inputs []Input `json:"inputs,omitempty"`
}

// Why a step was not found though it may have been made before.
const (
	MissNoCache = "no-cache" // it was to be run again
	MissLost    = "lost"     // its record was there, but not its layers
)

// Part is something that a step says: a part of its key. Kind is "command",
// "arg", "env", "mount", "user", "dir", "network", "copy" and so on; Name tells
// parts of a kind apart.
type Part struct {
	Kind  string `json:"k"`
	Name  string `json:"n,omitempty"`
	Value string `json:"v,omitempty"`
}

// Input is what a step takes from another one.
type Input struct {
	// Step is the index of that step, -1 for none (scratch).
	Step int `json:"step"`
	// ID is its identity in the key: "key:…" if it counts as a whole,
	// "content:<digest>" if only the files do that are used.
	ID string `json:"id,omitempty"`
}

// Content is the digest of the files that are used, if only they count.
func (in Input) Content() (digest.Digest, bool) {
	d, ok := strings.CutPrefix(in.ID, "content:")
	return digest.Digest(d), ok && d != ""
}
