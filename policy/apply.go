package policy

import (
	"context"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
)

// Step has the policies decide about what a step fetches, and changes the step's
// op if another source is to be used. Images must have been looked up with Image
// before. Steps that fetch nothing are left alone.
func Step(policies []*Policy, s *plan.Step, local func(string) string) error {
	src, ok := SourceOf(s.Op, local)
	if !ok || len(policies) == 0 {
		return nil
	}
	if img, ok := s.Op.(*plan.Image); ok && img.Layout == "" {
		return nil
	}
	next, err := Evaluate(policies, src)
	if err == nil && !same(src, next) {
		s.Op, err = convertOp(s.Op, next)
	}
	if err != nil && s.Source != nil {
		return &plan.Error{Source: s.Source, Err: err}
	}
	return err
}

func convertOp(op plan.Op, next Source) (plan.Op, error) {
	made, err := next.Op()
	if err != nil {
		return op, err
	}
	if file, ok := op.(*plan.HTTP); ok { // the name in the tree is what other steps expect
		if to, ok := made.(*plan.HTTP); ok {
			to.Filename = file.Filename
		}
	}
	return made, nil
}

func same(a, b Source) bool {
	if a.Identifier != b.Identifier || len(a.Attrs) != len(b.Attrs) {
		return false
	}
	for k, v := range a.Attrs {
		if b.Attrs[k] != v {
			return false
		}
	}
	return true
}

// Build applies Step to all steps of a plan, which nobody has run.
func Build(policies []*Policy, b *plan.Build, local func(string) string) error {
	if len(policies) == 0 {
		return nil
	}
	return b.Walk(func(s *plan.Step) error { return Step(policies, s, local) })
}

// Image has the policies decide about an image: by its reference before it is
// looked up, and with its digest after. lookup looks references up and returns
// the digest; it may be called again for the image that another is converted to.
// If the image is converted to something that is no image, that is the step that
// is returned, and lookup's result means nothing.
func Image(ctx context.Context, policies []*Policy, ref string, p ocispec.Platform, lookup func(ctx context.Context, ref string) (digest string, err error)) (*plan.Step, error) {
	if len(policies) == 0 {
		_, err := lookup(ctx, ref)
		return nil, err
	}
	for range maxConversions {
		src, err := Evaluate(policies, Source{Identifier: SchemeImage + ref})
		if err != nil {
			return nil, err
		}
		to, ok := strings.CutPrefix(src.Identifier, SchemeImage)
		if !ok {
			return instead(src, ref, p)
		}
		d, err := lookup(ctx, to)
		if err != nil {
			return nil, err
		}
		if d == "" || strings.Contains(to, "@") {
			return nil, nil
		}
		pinned := SchemeImage + to + "@" + d
		src, err = Evaluate(policies, Source{Identifier: pinned})
		if err != nil {
			return nil, err
		}
		if src.Identifier == pinned {
			return nil, nil
		}
		if ref, ok = strings.CutPrefix(src.Identifier, SchemeImage); !ok {
			return instead(src, to, p)
		}
	}
	return nil, fmt.Errorf("source policy: %s: more than %d conversions", ref, maxConversions)
}

// instead is the step of a source that an image was converted to.
func instead(src Source, ref string, p ocispec.Platform) (*plan.Step, error) {
	op, err := src.Op()
	if err != nil {
		return nil, err
	}
	return &plan.Step{Op: op, Platform: p, Name: "[internal] " + src.Identifier + " for " + ref}, nil
}
