package buildkitapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/parser"
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
		if _, ok := step.Step.Op.(*plan.File); ok && errors.Is(err, file.ErrNotFound) {
			inner = fmt.Errorf("failed to compute cache key: failed to calculate checksum of ref %s: %w", stepName(step.Step), inner)
		}
		if step.Exit != 0 {
			inner = &gwpb.ExitError{ExitCode: uint32(step.Exit), Err: inner}
		}
		var vertex *errdefs.VertexError
		if errors.As(err, &vertex) {
			inner = errdefs.WrapVertex(inner, digest.Digest(vertex.Digest))
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
	var syntax *parser.InstructionError
	if errors.As(e.Err, &syntax) {
		text = fmt.Sprintf("dockerfile parse error on line %d: %s", syntax.Line, text)
	}
	if e.Hint != "" {
		text += " (" + suggestion.ReplaceAllString(e.Hint, "did you mean $1?") + ")"
	}
	if outer, ok := strings.CutSuffix(err.Error(), e.Error()); ok {
		text = outer + text
	}
	return withSource(&worded{text: text, err: e.Err}, e.Source)
}

// suggestion is how a hint quotes what was probably meant.
var suggestion = regexp.MustCompile(`^did you mean "([^"]*)"\?$`)

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
	return &pb.SourceInfo{Filename: f.Name, Data: f.Data, Language: "Dockerfile", Definition: sourceDefinition(f.Name)}
}

// sourceDefinition says where a client finds the build file.
func sourceDefinition(name string) *pb.Definition {
	follow, _ := json.Marshal([]string{name}) // can't fail
	return definition(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{
		Identifier: "local://dockerfile", Attrs: map[string]string{pb.AttrFollowPaths: string(follow)},
	}}}, "[internal] load build definition from "+name)
}

// stepName is a name for a step in messages, without spaces.
func stepName(s *plan.Step) string {
	return digest.FromBytes(plan.Canonical(s.Op)).Encoded()[:25]
}

func sourceRanges(s *plan.Source) []*pb.Range {
	out := make([]*pb.Range, 0, len(s.Ranges))
	// Clients expect a range for each line.
	for _, r := range s.Ranges {
		last := max(r.StartLine, r.EndLine)
		for n := r.StartLine; n <= last; n++ {
			from, to := 0, 0
			if n == r.StartLine {
				from = r.StartColumn
			}
			if n == last {
				to = r.EndColumn
			}
			out = append(out, &pb.Range{
				Start: &pb.Position{Line: int32(n), Character: int32(from)},
				End:   &pb.Position{Line: int32(n), Character: int32(to)},
			})
		}
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
