package buildkitapi

import (
	"slices"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"context"
)

// maxHistory is how many builds are remembered, pinned ones not counted.
const maxHistory = 200

// history is what builds there were since the daemon started.
type history struct {
	mu         sync.Mutex
	records    []*controlapi.BuildHistoryRecord // the oldest first
	generation int32
	listeners  map[chan struct{}]bool
	events     []*controlapi.BuildHistoryEvent
	base       int
}

// maxEvents is how many events a listener may be behind.
const maxEvents = 1000

func (h *history) event(t controlapi.BuildHistoryEventType, r *controlapi.BuildHistoryRecord) {
	h.events = append(h.events, &controlapi.BuildHistoryEvent{Type: t, Record: r.CloneVT()})
	if n := len(h.events) - maxEvents; n > 0 {
		h.events = slices.Delete(h.events, 0, n)
		h.base += n
	}
	for ch := range h.listeners {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// begin adds a build to the history.
func (s *Server) begin(j *job) *controlapi.BuildHistoryRecord {
	r := &controlapi.BuildHistoryRecord{
		Ref: j.ref, Frontend: j.req.Frontend, FrontendAttrs: j.req.FrontendAttrs, Exporters: j.req.Exporters, CreatedAt: timestamppb.Now(),
	}
	if j.req.Internal {
		return r
	}
	h := &s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	h.generation++
	r.Generation = h.generation
	h.records = append(h.records, r)
	h.event(controlapi.BuildHistoryEventType_STARTED, r)
	return r
}

// end says how a build ended.
func (s *Server) end(j *job, r *controlapi.BuildHistoryRecord, response map[string]string, err error) {
	h := &s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	r.CompletedAt, r.ExporterResponse, r.Result = timestamppb.Now(), response, &controlapi.BuildResultInfo{}
	j.board.mu.Lock()
	c := j.board.counts
	j.board.mu.Unlock()
	r.NumCachedSteps, r.NumTotalSteps, r.NumCompletedSteps, r.NumWarnings = c.cached, c.total, c.completed, c.warnings
	if err != nil {
		r.Error = status.New(codes.Unknown, err.Error()).Proto()
		if st, ok := status.FromError(err); ok {
			r.Error = st.Proto()
		}
	}
	if j.req.Internal {
		return
	}
	h.event(controlapi.BuildHistoryEventType_COMPLETE, r)
	for len(h.records) > maxHistory {
		i := slices.IndexFunc(h.records, func(r *controlapi.BuildHistoryRecord) bool { return !r.Pinned && r.CompletedAt != nil })
		if i < 0 {
			break
		}
		h.event(controlapi.BuildHistoryEventType_DELETED, h.records[i])
		h.records = slices.Delete(h.records, i, i+1)
	}
}

// ListenBuildHistory sends the builds there were, and then tells of new ones
// unless the client wants to go.
func (s *Server) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	if len(req.Filter) > 0 {
		return unsupported("a filter of the history")
	}
	h := &s.history
	wanted := func(r *controlapi.BuildHistoryRecord) bool {
		return (req.Ref == "" || req.Ref == r.Ref) && (!req.ActiveOnly || r.CompletedAt == nil)
	}
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	h.listeners[ch] = true
	next := h.base + len(h.events)
	var send []*controlapi.BuildHistoryEvent
	for _, r := range h.records {
		t := controlapi.BuildHistoryEventType_STARTED
		if r.CompletedAt != nil {
			t = controlapi.BuildHistoryEventType_COMPLETE
		}
		if wanted(r) {
			send = append(send, &controlapi.BuildHistoryEvent{Type: t, Record: r.CloneVT()})
		}
	}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.listeners, ch)
		h.mu.Unlock()
	}()
	if n := int(req.Limit); n > 0 && len(send) > n {
		send = send[len(send)-n:]
	}
	for {
		for _, e := range send {
			if err := stream.Send(e); err != nil {
				return err
			}
		}
		if req.EarlyExit {
			return nil
		}
		select {
		case <-ch:
		case <-stream.Context().Done():
			return nil
		}
		h.mu.Lock()
		next = max(next, h.base)
		send = nil
		for _, e := range h.events[next-h.base:] {
			if req.Ref == "" || req.Ref == e.Record.Ref {
				send = append(send, e)
			}
		}
		next = h.base + len(h.events)
		h.mu.Unlock()
	}
}

// UpdateBuildHistory pins and deletes builds of the history.
func (s *Server) UpdateBuildHistory(_ context.Context, req *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	h := &s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.records, func(r *controlapi.BuildHistoryRecord) bool { return r.Ref == req.Ref })
	if i < 0 {
		return nil, status.Errorf(codes.NotFound, "no record %s in the history", req.Ref)
	}
	r := h.records[i]
	switch {
	case req.Finalize:
		return &controlapi.UpdateBuildHistoryResponse{}, nil
	case req.Delete:
		if r.CompletedAt == nil {
			return nil, status.Errorf(codes.FailedPrecondition, "build %s has not ended", req.Ref)
		}
		h.event(controlapi.BuildHistoryEventType_DELETED, r)
		h.records = slices.Delete(h.records, i, i+1)
	default:
		r.Pinned = req.Pinned
	}
	return &controlapi.UpdateBuildHistoryResponse{}, nil
}

// since reports whether t is older than d, in nanoseconds.
func since(t time.Time, d int64) bool { return time.Since(t) >= time.Duration(d) }
