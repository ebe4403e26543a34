package buildkitapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
)

// parsePolicies reads the source policy of a request. One that the client itself
// would decide by is refused: nothing may pass that it would have denied.
func parsePolicies(req *controlapi.SolveRequest) ([]*policy.Policy, error) {
	if req.SourcePolicySession != "" {
		return nil, unsupported("a source policy that the client decides by (SourcePolicySession)")
	}
	if req.SourcePolicy == nil {
		return nil, nil
	}
	data, err := json.Marshal(req.SourcePolicy)
	if err != nil {
		return nil, err
	}
	p, err := policy.Parse(data)
	if err != nil {
		return nil, err
	}
	return []*policy.Policy{p}, nil
}

// policy are the policies of the job.
func (j *job) policy() []*policy.Policy {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.policies
}

// addPolicies adds those of one of the client's calls, for the rest of the build:
// they can only forbid more.
func addPolicies[P any](j *job, list []P) error {
	for _, one := range list {
		data, err := json.Marshal(one)
		if err != nil {
			return err
		}
		p, err := policy.Parse(data)
		if err != nil {
			return err
		}
		j.mu.Lock()
		j.policies = append(slices.Clip(j.policies), p)
		j.mu.Unlock()
	}
	return nil
}

// image looks an image up as the policies want it: what stands in for it may be
// a step.
func (j *job) image(ctx context.Context, ref string, p ocispec.Platform, pull bool) (base builder.Base, instead *plan.Step, err error) {
	instead, err = policy.Image(ctx, j.policy(), ref, p, func(ctx context.Context, ref string) (_ string, err error) {
		base, err = j.resolve(ctx, ref, p, pull)
		return base.Pin.String(), err
	})
	return base, instead, err
}

// onlyImage is image where nothing else will do.
func (j *job) onlyImage(ctx context.Context, ref string, p ocispec.Platform, pull bool) (builder.Base, error) {
	base, instead, err := j.image(ctx, ref, p, pull)
	if err == nil && instead != nil {
		err = fmt.Errorf("%s: the source policy has %s used, which is no image", ref, strings.TrimPrefix(instead.Name, "[internal] "))
	}
	return base, err
}

// plannedName is the client's name of a directory, of a plan that is not bound.
func plannedName(name string) string {
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "context:"), "\x00")
	return name
}
