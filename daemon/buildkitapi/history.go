package buildkitapi

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/state"
	"github.com/strake-build/strake/state/builds"
)

// The history is history/ of the store:
//
//	records/<hex of the build's ref>  a BuildHistoryRecord
//	blobs/sha256/<hex>                what records point to: logs, errors, traces
//
// A record is written when its build has ended, after its blobs. Blobs that no
// record points to are removed when the daemon starts, and those of a record
// with it.

// How many builds are remembered, and how long, pinned ones not counted.
const (
	maxHistory  = 200
	keepHistory = 30 * 24 * time.Hour
)

// maxRecord bounds the file of a record.
const maxRecord = 4 << 20

// history is what builds there were.
type history struct {
	root  *state.Root
	blobs *blob.Store
	warn  func(error)

	mu         sync.Mutex
	records    []*controlapi.BuildHistoryRecord // the oldest first
	generation int32
	listeners  map[chan struct{}]bool
	events     []*controlapi.BuildHistoryEvent
	base       int // how many events were forgotten
}

// maxEvents is how many events a listener may be behind.
const maxEvents = 1000

func openHistory(root *state.Root, warn func(error)) (*history, error) {
	h := &history{root: root, warn: warn, listeners: map[chan struct{}]bool{}}
	dir, err := root.MkdirAll("history", "records")
	if err != nil {
		return nil, err
	}
	tmp, err := root.MkdirAll("history", "tmp")
	if err != nil {
		return nil, err
	}
	if h.blobs, err = blob.Open(root.Path("history", "blobs"), blob.TempIn(tmp)); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		r, err := readRecord(filepath.Join(dir, e.Name()))
		if err != nil || e.Name() != hex.EncodeToString([]byte(r.Ref)) {
			// Damage, or another version's: worth a word, not the start.
			warn(errors.Join(fmt.Errorf("history: %s is not a record", e.Name()), err))
			continue
		}
		h.records = append(h.records, r)
	}
	slices.SortFunc(h.records, func(a, b *controlapi.BuildHistoryRecord) int {
		return a.CreatedAt.AsTime().Compare(b.CreatedAt.AsTime())
	})
	for _, r := range h.records {
		h.generation = max(h.generation, r.Generation)
	}
	h.trim()
	return h, h.sweep()
}

func readRecord(path string) (*controlapi.BuildHistoryRecord, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxRecord {
		return nil, errors.New("too large")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &controlapi.BuildHistoryRecord{}
	return r, r.UnmarshalVT(data)
}

// sweep removes the blobs that no record points to.
func (h *history) sweep() error {
	used := map[digest.Digest]bool{}
	for _, r := range h.records {
		for _, d := range recordBlobs(r) {
			used[d] = true
		}
	}
	return h.blobs.List(func(d digest.Digest, _ int64) error {
		if used[d] {
			return nil
		}
		return h.blobs.Remove(d)
	})
}

// recordBlobs are the blobs of a record.
func recordBlobs(r *controlapi.BuildHistoryRecord) (out []digest.Digest) {
	add := func(d *controlapi.Descriptor) {
		if d != nil {
			out = append(out, digest.Digest(d.Digest))
		}
	}
	add(r.Logs)
	add(r.Trace)
	add(r.ExternalError)
	for _, a := range r.GetResult().GetAttestations() {
		add(a)
	}
	for _, p := range r.Results {
		for _, a := range p.GetAttestations() {
			add(a)
		}
	}
	return out
}

// put stores a blob of a record that is not written yet.
func (h *history) put(mediaType string, data []byte) (*controlapi.Descriptor, error) {
	d, n, err := h.blobs.Put(strings.NewReader(string(data)), "", int64(len(data)))
	if err != nil {
		return nil, err
	}
	return &controlapi.Descriptor{MediaType: mediaType, Digest: d.String(), Size: n}, nil
}

// The methods below are called with h.mu held.

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

func (h *history) path(r *controlapi.BuildHistoryRecord) string {
	return h.root.Path("history", "records", hex.EncodeToString([]byte(r.Ref)))
}

// write stores a record. A build is none the worse if that fails.
func (h *history) write(r *controlapi.BuildHistoryRecord) {
	data, err := r.MarshalVT()
	if err == nil {
		err = h.root.WriteFile(h.path(r), data, 0o600, false)
	}
	if err != nil {
		h.warn(fmt.Errorf("history of build %s: %w", r.Ref, err))
	}
}

// remove forgets the record at i, and what only it points to.
func (h *history) remove(i int) {
	r := h.records[i]
	h.event(controlapi.BuildHistoryEventType_DELETED, r)
	h.records = slices.Delete(h.records, i, i+1)
	err := os.Remove(h.path(r))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, d := range recordBlobs(r) {
		shared := slices.ContainsFunc(h.records, func(o *controlapi.BuildHistoryRecord) bool {
			return slices.Contains(recordBlobs(o), d)
		})
		if !shared {
			err = errors.Join(err, h.blobs.Remove(d))
		}
	}
	if err != nil {
		h.warn(fmt.Errorf("history of build %s: %w", r.Ref, err))
	}
}

// trim forgets what is too old or too much.
func (h *history) trim() {
	before := time.Now().Add(-keepHistory)
	free := func(r *controlapi.BuildHistoryRecord) bool { return !r.Pinned && r.CompletedAt != nil }
	for i := 0; i < len(h.records); {
		if r := h.records[i]; free(r) && (len(h.records) > maxHistory || r.CompletedAt.AsTime().Before(before)) {
			h.remove(i)
			continue
		}
		i++
	}
}

func (h *history) find(ref string) (int, error) {
	i := slices.IndexFunc(h.records, func(r *controlapi.BuildHistoryRecord) bool { return r.Ref == ref })
	if i < 0 {
		return -1, status.Errorf(codes.NotFound, "no record %s in the history", ref)
	}
	return i, nil
}

// ListenBuildHistory sends the builds there were, and then tells of new ones
// unless the client wants to go.
func (s *Server) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	filter, err := builds.ParseFilters(req.Filter)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	match := func(r *controlapi.BuildHistoryRecord) bool { return filter(recordOf(r)) }
	if req.Limit < 0 {
		return status.Errorf(codes.InvalidArgument, "invalid limit %d", req.Limit)
	}
	h := s.history
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
		if (req.Ref == "" || req.Ref == r.Ref) && (!req.ActiveOnly || r.CompletedAt == nil) && match(r) {
			send = append(send, &controlapi.BuildHistoryEvent{Type: t, Record: r.CloneVT()})
		}
	}
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.listeners, ch)
		h.mu.Unlock()
	}()
	if n := int(req.Limit); n > 0 {
		slices.Reverse(send) // the latest first, then
		send = send[:min(n, len(send))]
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
		case <-s.stopping:
			return status.Error(codes.Unavailable, errStopping.Error())
		case <-stream.Context().Done():
			return nil
		}
		h.mu.Lock()
		next = max(next, h.base)
		send = nil
		for _, e := range h.events[next-h.base:] {
			if (req.Ref == "" || req.Ref == e.Record.Ref) && match(e.Record) {
				send = append(send, e)
			}
		}
		next = h.base + len(h.events)
		h.mu.Unlock()
	}
}

// UpdateBuildHistory pins and deletes builds of the history.
func (s *Server) UpdateBuildHistory(_ context.Context, req *controlapi.UpdateBuildHistoryRequest) (*controlapi.UpdateBuildHistoryResponse, error) {
	h := s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := h.find(req.Ref)
	if err != nil {
		return nil, err
	}
	r := h.records[i]
	switch {
	case req.Finalize:
		// Records are whole when a build has ended.
	case r.CompletedAt == nil:
		return nil, status.Errorf(codes.FailedPrecondition, "build %s has not ended", req.Ref)
	case req.Delete:
		h.remove(i)
		err = s.withRecord(req.Ref, s.builds.Remove)
	default:
		r.Pinned = req.Pinned
		h.write(r)
		h.event(controlapi.BuildHistoryEventType_COMPLETE, r)
		err = s.withRecord(req.Ref, func(b builds.Record) error { return s.builds.Pin(b, req.Pinned) })
	}
	return &controlapi.UpdateBuildHistoryResponse{}, err
}

// started makes the record of a build.
func (h *history) started(j *job) *controlapi.BuildHistoryRecord {
	r := &controlapi.BuildHistoryRecord{
		Ref: j.ref, Frontend: j.req.Frontend, FrontendAttrs: j.recordedAttrs(), Exporters: j.req.Exporters, CreatedAt: timestamppb.Now(),
	}
	if j.req.Internal {
		return r
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if i, err := h.find(j.ref); err == nil {
		h.remove(i) // a ref that is used again is another build's
	}
	h.generation++
	r.Generation = h.generation
	h.records = append(h.records, r)
	h.event(controlapi.BuildHistoryEventType_STARTED, r)
	return r
}
