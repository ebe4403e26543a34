package builds

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/tonistiigi/go-csvvalue"
)

// Filter reports whether a build is one that was asked for.
type Filter func(Record) bool

// ParseFilters reads filters in BuildKit's form, one of which has to match. Each
// is a list of conditions with commas, all of which have to: on ref, status,
// repository and target in containerd's form ("status==error", "ref~=^abc"), on
// startedAt, completedAt and duration with <, <=, > or >=, and a duration or a
// time. No filters match every build.
func ParseFilters(list []string) (Filter, error) {
	if len(list) == 0 {
		return func(Record) bool { return true }, nil
	}
	var any []Filter
	for _, f := range list {
		one, err := parseFilter(f)
		if err != nil {
			return nil, fmt.Errorf("filter %q: %w", f, err)
		}
		any = append(any, one)
	}
	return func(r Record) bool {
		for _, w := range any {
			if w(r) {
				return true
			}
		}
		return false
	}, nil
}

func parseFilter(text string) (Filter, error) {
	fields, err := csvvalue.Fields(text, nil)
	if err != nil {
		return nil, err
	}
	var all []Filter
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
	return func(r Record) bool {
		for _, w := range all {
			if !w(r) {
				return false
			}
		}
		return static.Match(filters.AdapterFunc(r.field))
	}, nil
}

// timeFilter reads a condition on a time; nil if it is another.
func timeFilter(text string) (Filter, error) {
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
	var compare func(Record) (int, bool)
	switch {
	case key == "duration" && derr != nil:
		return nil, derr
	case key == "duration":
		compare = func(r Record) (int, bool) {
			return cmp.Compare(r.Ended.Sub(r.Created), d), !r.Ended.IsZero()
		}
	case key != "startedAt" && key != "completedAt":
		return nil, nil
	case derr != nil && terr != nil:
		return nil, terr
	default:
		if derr == nil {
			t = time.Now().Add(-d)
		}
		compare = func(r Record) (int, bool) {
			at := r.Created
			if key == "completedAt" {
				at = r.Ended
			}
			return at.Truncate(time.Second).Compare(t.Truncate(time.Second)), !at.IsZero()
		}
	}
	return func(r Record) bool {
		c, ok := compare(r)
		return ok && (c < 0 && op == "<" || c > 0 && op == ">" || c == 0 && equal)
	}, nil
}

// field is what filters know of a build.
func (r Record) field(path []string) (string, bool) {
	switch strings.Join(path, ".") {
	case "ref":
		return r.Ref, true
	case "status":
		return string(r.Status), true
	case "target":
		target, ok := r.Attrs["target"]
		return target, ok
	case "repository":
		if v, ok := r.Attrs["vcs:source"]; ok {
			return v, true
		}
		return r.Context, strings.Contains(r.Context, "://")
	}
	return "", false
}
