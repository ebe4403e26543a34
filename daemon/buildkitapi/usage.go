package buildkitapi

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strake-build/strake/state/gc"
)

// keeper looks after the store. It has to be closed.
func (s *Server) keeper() (*gc.Store, func() error, error) {
	st, err := s.o.Open(nil)
	if err != nil {
		return nil, nil, err
	}
	b := st.Builder
	return &gc.Store{Root: b.Root, Layers: b.Layers, Blobs: b.Blobs, Images: b.Images, Cache: b.Cache}, st.Close, nil
}

// DiskUsage lists what is in the store.
func (s *Server) DiskUsage(ctx context.Context, req *controlapi.DiskUsageRequest) (_ *controlapi.DiskUsageResponse, err error) {
	match, err := usageFilters(req.Filter)
	if err != nil {
		return nil, err
	}
	keeper, done, err := s.keeper()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	entries, err := keeper.Usage(ctx)
	if err != nil {
		return nil, err
	}
	out := &controlapi.DiskUsageResponse{}
	for _, e := range entries {
		u := usageRecord(e)
		if u != nil && older(e, time.Duration(req.AgeLimit)) && match(u) {
			out.Record = append(out.Record, u)
		}
	}
	return out, nil
}

// older reports whether an entry was last used d ago or before.
func older(e gc.Entry, d time.Duration) bool {
	at := e.Used
	if at.IsZero() {
		at = e.Created
	}
	return time.Since(at) >= d
}

// recordTypes are BuildKit's names for the types of what it stores. Blobs and
// pieces of layers are parts of images that it counts with their layers.
var recordTypes = map[gc.Type]string{
	gc.TypeLayer: "regular", gc.TypeBlob: "regular", gc.TypeCacheMount: "exec.cachemount",
	gc.TypeContext: "source.local",
}

// usageRecord is an entry in BuildKit's form; nil if that has none for it: what
// is listed is build cache, and what only images need is not.
func usageRecord(e gc.Entry) *controlapi.UsageRecord {
	t, ok := recordTypes[e.Type]
	if !ok || e.Image && !e.Cache {
		return nil
	}
	u := &controlapi.UsageRecord{
		ID: e.ID, Size: e.Size, Description: e.Description, RecordType: t, UsageCount: 1,
		InUse: e.InUse, Shared: e.Image, Mutable: e.Type == gc.TypeCacheMount,
	}
	if !e.Created.IsZero() {
		u.CreatedAt = timestamppb.New(e.Created)
	}
	if !e.Used.IsZero() {
		u.LastUsedAt = timestamppb.New(e.Used)
	}
	return u
}

// Prune removes build cache, and tells what went.
func (s *Server) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) (err error) {
	match, err := usageFilters(req.Filter)
	if err != nil {
		return err
	}
	s.pruning.Lock()
	defer s.pruning.Unlock()
	if err := s.rest(); err != nil {
		return err
	}
	keeper, done, err := s.keeper()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	o := gc.Options{
		All: req.All, KeepDuration: time.Duration(req.KeepDuration),
		MaxUsed: req.MaxUsedSpace, MinFree: req.MinFreeSpace, Reserved: req.ReservedSpace,
	}
	if len(req.Filter) > 0 {
		entries, err := keeper.Usage(stream.Context())
		if err != nil {
			return err
		}
		for _, e := range entries {
			if u := usageRecord(e); u != nil && match(u) {
				o.IDs = append(o.IDs, e.ID)
			}
		}
		if len(o.IDs) == 0 {
			return nil
		}
	}
	removed, err := keeper.Prune(stream.Context(), o)
	for _, e := range removed {
		if u := usageRecord(e); u != nil {
			if err := stream.Send(u); err != nil {
				return err
			}
		}
	}
	return err
}

// rest gives up the lease that the daemon itself has if no build goes on. Blobs
// that are younger than any lease are not pruned, and what the daemon writes for
// itself, which is all done with then, has nothing to do with them.
func (s *Server) rest() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) > 0 {
		return nil
	}
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	return s.o.Root.Release()
}

// usageFilters reads filters in containerd's form, one of which has to match:
// "type==exec.cachemount,id~=^abc", "inuse".
func usageFilters(list []string) (func(*controlapi.UsageRecord) bool, error) {
	f, err := filters.ParseAll(list...)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "filter: %v", err)
	}
	return func(u *controlapi.UsageRecord) bool {
		return f.Match(filters.AdapterFunc(func(path []string) (string, bool) { return usageField(u, path) }))
	}, nil
}

func usageField(u *controlapi.UsageRecord, path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "id":
		return u.ID, true
	case "description":
		return u.Description, u.Description != ""
	case "type":
		return u.RecordType, true
	case "inuse":
		return "", u.InUse
	case "mutable":
		return "", u.Mutable
	case "immutable":
		return "", !u.Mutable
	case "shared":
		return "", u.Shared
	case "private":
		return "", !u.Shared
	}
	return "", false
}
