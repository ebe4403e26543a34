package buildkitapi

import (
	"context"
	"errors"
	"strings"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/plan"
)

// clientError gives an error the form that BuildKit's clients know: the place in
// the build file, the vertex and the exit code are details, which they print in
// their own way, and not part of the text.
func clientError(err error) error {
	if err == nil {
		return nil
	}
	var coded interface{ Code() codes.Code }
	if errors.As(err, &coded) {
		return err
	}
	var step *builder.StepError
	if errors.As(err, &step) {
		inner := clientText(step.Err)
		if step.Exit != 0 {
			inner = &gwpb.ExitError{ExitCode: uint32(step.Exit), Err: inner}
		}
		return withSource(inner, step.Step.Source)
	}
	return clientText(err)
}

// clientText takes the places out of an error's text.
func clientText(err error) error {
	var e *plan.Error
	if !errors.As(err, &e) {
		return err
	}
	text := e.Err.Error()
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	if outer, ok := strings.CutSuffix(err.Error(), e.Error()); ok {
		text = outer + text
	}
	return withSource(&worded{text: text, err: e.Err}, e.Source)
}

// worded is an error with another text.
type worded struct {
	text string
	err  error
}

func (w *worded) Error() string { return w.text }
func (w *worded) Unwrap() error { return w.err }

func withSource(err error, s *plan.Source) error {
	if s == nil || s.File == nil {
		return err
	}
	return errdefs.WithSource(err, &errdefs.Source{Info: sourceInfo(s.File), Ranges: sourceRanges(s)})
}

func sourceInfo(f *plan.SourceFile) *pb.SourceInfo {
	return &pb.SourceInfo{Filename: f.Name, Data: f.Data, Language: "Dockerfile"}
}

func sourceRanges(s *plan.Source) []*pb.Range {
	out := make([]*pb.Range, 0, len(s.Ranges))
	for _, r := range s.Ranges {
		out = append(out, &pb.Range{
			Start: &pb.Position{Line: int32(r.StartLine), Character: int32(r.StartColumn)},
			End:   &pb.Position{Line: int32(r.EndLine), Character: int32(r.EndColumn)},
		})
	}
	return out
}

// ended returns the cause of the end of ctx in place of err, if it has ended:
// what else went wrong then is its echo.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
