package buildkitapi

import (
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/tonistiigi/go-csvvalue"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strake-build/strake/parser"
)

// wanted reports whether a record is one that was asked for.
type wanted func(*controlapi.BuildHistoryRecord) bool

// historyFilters reads filters of the history, one of which has to match. Each
// is a list of conditions with commas, all of which have to: on ref, status and
// repository in containerd's form ("status==error"), on startedAt, completedAt
// and duration with <, <=, > or >=, and a duration or a time.
func historyFilters(list []string) (wanted, error) {
	if len(list) == 0 {
		return func(*controlapi.BuildHistoryRecord) bool { return true }, nil
	}
	var any []wanted
	for _, f := range list {
		one, err := historyFilter(f)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "filter %q: %v", f, err)
		}
		any = append(any, one)
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		for _, w := range any {
			if w(r) {
				return true
			}
		}
		return false
	}, nil
}

func historyFilter(text string) (wanted, error) {
	fields, err := csvvalue.Fields(text, nil)
	if err != nil {
		return nil, err
	}
	var all []wanted
	var rest []string
	for _, f := range fields {
		w, err := timeFilter(f)
		if err != nil {
			return nil, err
		}
		if w == nil {
			rest = append(rest, f)
			continue
		}
		all = append(all, w)
	}
	static, err := filters.ParseAll(strings.Join(rest, ","))
	if err != nil {
		return nil, err
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		for _, w := range all {
			if !w(r) {
				return false
			}
		}
		return static.Match(filters.AdapterFunc(func(path []string) (string, bool) { return historyField(r, path) }))
	}, nil
}

// timeFilter reads a condition on a time; nil if it is another.
func timeFilter(text string) (wanted, error) {
	at := strings.IndexAny(text, "<>")
	if at < 0 {
		return nil, nil
	}
	key, op, value := text[:at], text[at:at+1], text[at+1:]
	equal := strings.HasPrefix(value, "=")
	value = strings.TrimPrefix(value, "=")
	d, derr := time.ParseDuration(value)
	t, terr := time.Parse(time.RFC3339, value)
	// compare says where a record stands.
	var compare func(*controlapi.BuildHistoryRecord) (int, bool)
	switch {
	case key == "duration" && derr != nil:
		return nil, derr
	case key == "duration":
		compare = func(r *controlapi.BuildHistoryRecord) (int, bool) {
			if r.CompletedAt == nil {
				return 0, false
			}
			took := r.CompletedAt.AsTime().Sub(r.CreatedAt.AsTime())
			return int(min(max(took-d, -1), 1)), true
		}
	case key != "startedAt" && key != "completedAt":
		return nil, nil
	case derr != nil && terr != nil:
		return nil, terr
	default:
		if derr == nil {
			t = time.Now().Add(-d)
		}
		compare = func(r *controlapi.BuildHistoryRecord) (int, bool) {
			at := r.CreatedAt
			if key == "completedAt" {
				at = r.CompletedAt
			}
			return at.AsTime().Truncate(time.Second).Compare(t.Truncate(time.Second)), at != nil
		}
	}
	return func(r *controlapi.BuildHistoryRecord) bool {
		c, ok := compare(r)
		return ok && (c < 0 && op == "<" || c > 0 && op == ">" || c == 0 && equal)
	}, nil
}

func historyField(r *controlapi.BuildHistoryRecord, path []string) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch path[0] {
	case "ref":
		return r.Ref, true
	case "status":
		switch {
		case r.CompletedAt == nil:
			return "running", true
		case r.Error == nil:
			return "completed", true
		case codes.Code(r.Error.Code) == codes.Canceled || strings.Contains(r.Error.Message, "context canceled"):
			return "canceled", true
		}
		return "error", true
	case "repository":
		if v, ok := r.FrontendAttrs["vcs:source"]; ok {
			return v, true
		}
		if git, ok, err := parser.Git(r.FrontendAttrs["context"]); ok && err == nil {
			return git.Remote, true
		}
	}
	return "", false
}
