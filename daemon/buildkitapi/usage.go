package buildkitapi

import (
	"context"
	"fmt"
	"slices"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers"
)

// DiskUsage lists the stored results.
func (s *Server) DiskUsage(ctx context.Context, req *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	if len(req.Filter) > 0 {
		return nil, unsupported("a filter of the disk usage")
	}
	records, err := s.o.Builder.Cache.All()
	if err != nil {
		return nil, err
	}
	out := &controlapi.DiskUsageResponse{}
	for _, r := range records {
		if !since(r.Used, req.AgeLimit) {
			continue
		}
		u, err := s.usage(r)
		if err != nil {
			return nil, err
		}
		out.Record = append(out.Record, u)
	}
	return out, nil
}

func (s *Server) usage(r cache.Record) (*controlapi.UsageRecord, error) {
	// A result's own part is the last layer of its trees: the others are of
	// the steps before it.
	var own []layers.ID
	for _, t := range r.Outputs {
		if n := len(t); n > 0 && !slices.Contains(own, t[n-1]) {
			own = append(own, t[n-1])
		}
	}
	size, err := s.o.Builder.Layers.Usage(own...)
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", r.Key, err)
	}
	return &controlapi.UsageRecord{
		ID: string(r.Key), Size: size, Description: r.Why.Name, RecordType: "regular", UsageCount: 1,
		CreatedAt: timestamppb.New(r.Made), LastUsedAt: timestamppb.New(r.Used),
	}, nil
}

// Prune forgets stored results. Layers that nothing refers to any more are
// removed when the store is collected.
func (s *Server) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	if len(req.Filter) > 0 {
		return unsupported("a filter of what to prune")
	}
	records, err := s.o.Builder.Cache.All()
	if err != nil {
		return err
	}
	for _, r := range records {
		if !since(r.Used, req.KeepDuration) {
			continue
		}
		u, err := s.usage(r)
		if err != nil {
			return err
		}
		if err := s.o.Builder.Cache.Delete(r.Key); err != nil {
			return err
		}
		if err := stream.Send(u); err != nil {
			return err
		}
	}
	return nil
}
