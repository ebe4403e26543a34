package buildkitapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
)

// subrequest answers a question about the build file instead of building it.
func (f *dockerfile) subrequest(ctx context.Context, id string, o parser.Options) (*result, error) {
	switch id {
	case "frontend.lint":
		return f.lint(ctx, o)
	}
	return nil, errdefs.NewUnsupportedSubrequestError(id)
}

// The answer to frontend.lint, as JSON.
type (
	lintResult struct {
		Warnings []lintWarning    `json:"warnings"`
		Sources  []*pb.SourceInfo `json:"sources"`
		Error    *lintError       `json:"buildError,omitempty"`
	}
	lintWarning struct {
		Rule        string       `json:"ruleName"`
		Description string       `json:"description,omitempty"`
		URL         string       `json:"url,omitempty"`
		Detail      string       `json:"detail,omitempty"`
		Location    *pb.Location `json:"location,omitempty"`
	}
	lintError struct {
		Message  string       `json:"message"`
		Location *pb.Location `json:"location"`
	}
)

func (f *dockerfile) lint(ctx context.Context, o parser.Options) (*result, error) {
	out := lintResult{Sources: []*pb.SourceInfo{sourceInfo(&plan.SourceFile{Name: f.filename, Data: f.data})}}
	o.AllStages = o.Target == ""
	build, err := f.plan(ctx, o)
	for _, w := range build.Warnings {
		out.Warnings = append(out.Warnings, lintWarning{
			Rule: w.Rule, Description: w.Detail, URL: w.URL, Detail: w.Text, Location: location(w.Source),
		})
	}
	if err != nil {
		var e *plan.Error
		if !errors.As(err, &e) {
			return nil, err
		}
		out.Error = &lintError{Message: clientText(err).Error(), Location: location(e.Source)}
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return nil, err
	}
	code := "0"
	if len(out.Warnings) > 0 || out.Error != nil {
		code = "1"
	}
	return &result{metadata: map[string][]byte{
		"result.json": data, "result.txt": []byte(out.text()), "result.statuscode": []byte(code), "version": []byte("1.0.0"),
	}}, nil
}

func location(s *plan.Source) *pb.Location {
	if s == nil {
		return &pb.Location{}
	}
	return &pb.Location{Ranges: sourceRanges(s)}
}

func (r lintResult) text() string {
	var b strings.Builder
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "\nWARNING: %s", w.Rule)
		if w.URL != "" {
			fmt.Fprintf(&b, " - %s", w.URL)
		}
		fmt.Fprintf(&b, "\n%s\n", w.Detail)
	}
	if r.Error != nil {
		fmt.Fprintf(&b, "\nERROR: %s\n", r.Error.Message)
	}
	return b.String()
}
