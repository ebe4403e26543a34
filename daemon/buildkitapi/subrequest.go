package buildkitapi

import (
	"context"
	"errors"
	"strconv"

	"github.com/moby/buildkit/solver/errdefs"

	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/parser/answer"
	"github.com/strake-build/strake/plan"
)

// subrequest answers a question about the build file instead of building it.
func (f *dockerfile) subrequest(ctx context.Context, id string, o parser.Options) (*result, error) {
	var a answer.Answer
	var err error
	switch id {
	case answer.RequestCheck:
		a, err = f.check(ctx, o)
	case answer.RequestOutline:
		a, err = f.outline(ctx, o)
	case answer.RequestTargets:
		a, err = f.targets()
	case answer.RequestDescribe:
		a = answer.Describe()
	default:
		return nil, errdefs.NewUnsupportedSubrequestError(id)
	}
	if err != nil {
		return nil, err
	}
	data, err := answer.JSON(a)
	if err != nil {
		return nil, err
	}
	md := map[string][]byte{"result.json": data, "result.txt": []byte(a.Text()), "version": []byte(answer.Version)}
	if c, ok := a.(answer.CheckResult); ok {
		md["result.statuscode"] = strconv.AppendInt(nil, int64(c.Status()), 10)
	}
	return &result{metadata: md}, nil
}

func (f *dockerfile) source() *plan.SourceFile {
	return &plan.SourceFile{Name: f.filename, Data: f.data}
}

func (f *dockerfile) check(ctx context.Context, o parser.Options) (answer.Answer, error) {
	o.AllStages = o.Target == ""
	build, err := f.plan(ctx, o)
	message := ""
	if err != nil {
		var e *plan.Error
		if !errors.As(err, &e) {
			return nil, err
		}
		message = clientText(err).Error()
	}
	return answer.Check(f.source(), build.Warnings, err, message), nil
}

func (f *dockerfile) outline(ctx context.Context, o parser.Options) (answer.Answer, error) {
	file, err := parser.Parse(f.filename, f.data)
	if err != nil {
		return nil, err
	}
	outline, err := file.Outline(ctx, o)
	if err != nil {
		return nil, err
	}
	return answer.Outline(f.source(), outline), nil
}

func (f *dockerfile) targets() (answer.Answer, error) {
	file, err := parser.Parse(f.filename, f.data)
	if err != nil {
		return nil, err
	}
	stages, err := file.List()
	if err != nil {
		return nil, err
	}
	return answer.Targets(f.source(), stages), nil
}
