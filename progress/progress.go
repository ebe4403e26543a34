// Package progress defines the events that a build sends while it runs, and
// shows them: as a live view on a terminal, as plain lines, or as JSON.
//
// Events flow through one Func, from the builder towards the user. A Func is
// called from many goroutines at once and must not block for long.
package progress

import (
	"strings"
	"time"
)

// Kind says what an Event tells.
type Kind string

// The kinds of events.
const (
	Start   Kind = "start"   // a vertex began to run
	Done    Kind = "done"    // it ended; Error is set if it did not succeed
	Cached  Kind = "cached"  // its result was already there: it will not run
	Log     Kind = "log"     // output of the vertex, in Data
	Status  Kind = "status"  // progress of a part of the vertex, such as a download
	Warning Kind = "warning" // something a person should know
)

// Event is one thing that happened.
type Event struct {
	Time time.Time `json:"time"`
	Kind Kind      `json:"kind"`
	// Vertex identifies the vertex within this build; empty for the build
	// itself.
	Vertex string `json:"vertex,omitempty"`
	// Name is the vertex's display name. It is set in Start and Cached.
	Name     string `json:"name,omitempty"`
	Internal bool   `json:"internal,omitempty"`

	Error string `json:"error,omitempty"` // Done; "canceled" if it was stopped

	Stream int    `json:"stream,omitempty"` // Log: 1 stdout, 2 stderr
	Data   []byte `json:"data,omitempty"`   // Log

	ID      string `json:"id,omitempty"`      // Status: the part, such as a digest
	Action  string `json:"action,omitempty"`  // Status: "downloading", "extracting", "exporting layers"
	Current int64  `json:"current,omitempty"` // Status: bytes done
	Total   int64  `json:"total,omitempty"`   // Status: bytes in all; 0 if unknown

	Text string `json:"text,omitempty"` // Warning
	URL  string `json:"url,omitempty"`  // Warning: where to read more
}

// IsCanceled reports whether a Done tells that the vertex was stopped.
func (e Event) IsCanceled() bool {
	return e.Error == "canceled" || strings.HasSuffix(e.Error, ": canceled") || strings.HasSuffix(e.Error, "context canceled")
}

// Func takes events. A nil Func is never called: use Discard.
type Func func(Event)

// Discard takes events and forgets them.
func Discard(Event) {}
