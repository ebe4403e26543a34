package buildkitapi

import (
	"context"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strake-build/strake/progress"
)

// maxBoardLog is how many bytes of output a board keeps for those who come
// late.
const maxBoardLog = 32 << 20

// A board collects the progress of a job, in the form of BuildKit's status
// stream, and shows it to any number of listeners, those who come late too.
type board struct {
	job string
	// record keeps events for the record of the build; nil: there is none.
	record progress.Func

	mu       sync.Mutex
	entries  []*controlapi.StatusResponse
	dropped  int // entries that are gone
	logBytes int
	changed  chan struct{}
	closed   bool
	vertices map[string]*vertexState // by the events' vertex
	counts   counts
}

// counts are what the history tells of a build.
type counts struct{ cached, total, completed, warnings int32 }

// vertexState is what is known of a vertex.
type vertexState struct {
	v        *controlapi.Vertex
	statuses map[string]*controlapi.VertexStatus
}

func newBoard(job string) *board {
	return &board{job: job, changed: make(chan struct{}), vertices: map[string]*vertexState{}}
}

// vertexDigest is the identity of a vertex in the stream.
func (b *board) vertexDigest(id string) string {
	return digest.FromString(b.job + "\x00" + id).String()
}

// close ends the stream. Vertices that are still open end with it.
func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	for _, s := range b.vertices {
		if s.v.Started != nil && s.v.Completed == nil {
			s.v.Completed = timestamppb.Now()
			b.addVertex(s)
		}
	}
	b.closed = true
	close(b.changed)
}

func (b *board) add(r *controlapi.StatusResponse) {
	if b.closed {
		return
	}
	b.entries = append(b.entries, r)
	for _, l := range r.Logs {
		b.logBytes += len(l.Msg)
	}
	for b.logBytes > maxBoardLog && len(b.entries) > 1 {
		for _, l := range b.entries[0].Logs {
			b.logBytes -= len(l.Msg)
		}
		b.entries = b.entries[1:]
		b.dropped++
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *board) addVertex(s *vertexState) {
	v := s.v.CloneVT()
	b.add(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{v}})
}

// follow sends all there is and will be, until the board is closed.
func (b *board) follow(ctx context.Context, send func(*controlapi.StatusResponse) error) error {
	next := 0
	for {
		b.mu.Lock()
		next = max(next, b.dropped)
		todo := b.entries[next-b.dropped:]
		next += len(todo)
		changed, closed := b.changed, b.closed
		b.mu.Unlock()
		for _, r := range bundled(todo) {
			if err := send(r); err != nil {
				return err
			}
		}
		if len(todo) > 0 {
			continue
		}
		if closed {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// bundleSize is how much of the stream is sent in one message.
const bundleSize = 256 << 10

// bundled joins messages.
func bundled(list []*controlapi.StatusResponse) []*controlapi.StatusResponse {
	var out []*controlapi.StatusResponse
	size := 0
	for _, r := range list {
		if len(out) == 0 || size > bundleSize {
			out, size = append(out, &controlapi.StatusResponse{}), 0
		}
		last := out[len(out)-1]
		last.Vertexes = append(last.Vertexes, r.Vertexes...)
		last.Statuses = append(last.Statuses, r.Statuses...)
		last.Logs = append(last.Logs, r.Logs...)
		last.Warnings = append(last.Warnings, r.Warnings...)
		size += 200
		for _, l := range r.Logs {
			size += len(l.Msg)
		}
	}
	return out
}

// warn adds a warning.
func (b *board) warn(w *controlapi.VertexWarning) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.warnings++
	if b.record != nil {
		b.record(progress.Event{Time: time.Now(), Kind: progress.Warning, Text: string(w.Short), URL: w.Url})
	}
	b.add(&controlapi.StatusResponse{Warnings: []*controlapi.VertexWarning{w}})
}

// all is what there is.
func (b *board) all() ([]*controlapi.StatusResponse, counts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.entries, b.counts
}

// keep has a record of the build get all events from now on.
func (b *board) keep(record progress.Func) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.record = record
}

// event is a progress.Func.
func (b *board) event(e progress.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	at := timestamppb.New(e.Time)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.record != nil {
		b.record(e)
	}
	s, ok := b.vertices[e.Vertex]
	if !ok {
		s = &vertexState{v: &controlapi.Vertex{Digest: b.vertexDigest(e.Vertex)}, statuses: map[string]*controlapi.VertexStatus{}}
		b.vertices[e.Vertex] = s
		b.counts.total++
	}
	if e.Name != "" {
		s.v.Name = e.Name
	}
	switch e.Kind {
	case progress.Start:
		s.v.Started, s.v.Completed, s.v.Error = at, nil, ""
		b.addVertex(s)
	case progress.Done:
		if s.v.Started == nil {
			s.v.Started = at
		}
		s.v.Completed, s.v.Error = at, e.Error
		b.counts.completed++
		b.endStatuses(s, at)
		b.addVertex(s)
	case progress.Cached:
		s.v.Cached, s.v.Started, s.v.Completed = true, at, at
		b.counts.cached++
		b.counts.completed++
		b.addVertex(s)
	case progress.Log:
		b.add(&controlapi.StatusResponse{Logs: []*controlapi.VertexLog{{
			Vertex: s.v.Digest, Timestamp: at, Stream: int64(e.Stream), Msg: e.Data,
		}}})
	case progress.Status:
		b.status(s, e, at)
	case progress.Warning:
		b.counts.warnings++
		b.add(&controlapi.StatusResponse{Warnings: []*controlapi.VertexWarning{{
			Vertex: s.v.Digest, Level: 1, Short: []byte(e.Text), Url: e.URL,
		}}})
	}
}

// status reports progress of a part. Parts without an ID are things that are
// done one after the other: each ends when the next begins.
func (b *board) status(s *vertexState, e progress.Event, at *timestamppb.Timestamp) {
	id := e.ID
	if id == "" {
		b.endStatuses(s, at)
		id = e.Action
	}
	st, ok := s.statuses[id]
	if !ok {
		st = &controlapi.VertexStatus{ID: id, Vertex: s.v.Digest, Name: e.Action, Started: at}
		s.statuses[id] = st
	}
	st.Current, st.Total, st.Timestamp = e.Current, e.Total, at
	if e.ID != "" && e.Total > 0 && e.Current >= e.Total {
		st.Completed = at
	}
	b.add(&controlapi.StatusResponse{Statuses: []*controlapi.VertexStatus{st.CloneVT()}})
}

func (b *board) endStatuses(s *vertexState, at *timestamppb.Timestamp) {
	for _, st := range s.statuses {
		if st.Completed == nil {
			st.Completed, st.Timestamp = at, at
			b.add(&controlapi.StatusResponse{Statuses: []*controlapi.VertexStatus{st.CloneVT()}})
		}
	}
}
