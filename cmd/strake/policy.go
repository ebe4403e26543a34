package main

import (
	"context"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/policy"
)

// policyOptions are the flags about what may be fetched.
type policyOptions struct{ policies []string }

func (o *policyOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.policies, "source-policy-file", nil, "have a source policy `FILE` (JSON, as BuildKit's) decide which images, repositories and URLs may be used; may be repeated (default $EXPERIMENTAL_BUILDKIT_SOURCE_POLICY)")
}

// maxPolicy bounds a policy file.
const maxPolicy = 8 << 20

// load reads the policies.
func (o policyOptions) load(e *env) ([]*policy.Policy, error) {
	files := o.policies
	if name := e.getenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"); name != "" && len(files) == 0 {
		files = []string{name}
	}
	var out []*policy.Policy
	for _, name := range files {
		data, err := readFile(name, maxPolicy)
		if err != nil {
			return nil, fmt.Errorf("source policy: %w", err)
		}
		p, err := policy.Parse(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// clientName is the user's name of a directory of a plan.
func clientName(name string) string { return strings.TrimPrefix(name, "context:") }

// decide looks images up as policies want it.
func decide(policies []*policy.Policy, look lookup) func(context.Context, string, ocispec.Platform) (parser.Resolved, error) {
	return func(ctx context.Context, ref string, p ocispec.Platform) (parser.Resolved, error) {
		var base builder.Base
		step, err := policy.Image(ctx, policies, ref, p, func(ctx context.Context, ref string) (_ string, err error) {
			base, err = look(ctx, ref, p)
			return base.Pin.String(), err
		})
		if err != nil || step != nil {
			return parser.Resolved{Step: step}, err
		}
		return parser.Resolved{Ref: base.Ref, Digest: base.Digest, Config: base.Config}, nil
	}
}
