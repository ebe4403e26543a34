package timeline

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/strake-build/strake/state/builds"
)

// WriteChrome writes a build in the Trace Event Format, which chrome://tracing,
// Perfetto and Speedscope read.
func WriteChrome(w io.Writer, r builds.Record, spans []Span) error {
	type event struct {
		Name  string         `json:"name"`
		Phase string         `json:"ph"`
		Time  int64          `json:"ts"` // microseconds
		Took  int64          `json:"dur,omitempty"`
		PID   int            `json:"pid"`
		TID   int            `json:"tid"`
		Args  map[string]any `json:"args,omitempty"`
	}
	sorted := byStart(spans)
	events := []event{{Name: "process_name", Phase: "M", PID: 1, Args: map[string]any{"name": "build " + r.Ref}}}
	for i, lane := range lanes(sorted) {
		s := sorted[i]
		args := map[string]any{"vertex": s.Number, "cached": s.Cached}
		if s.Error != "" {
			args["error"] = s.Error
		}
		if s.Bytes > 0 {
			args["output bytes"] = s.Bytes
		}
		events = append(events, event{
			Name: s.Name, Phase: "X", Time: s.Start.UnixMicro(), Took: max(1, s.took().Microseconds()), PID: 1, TID: lane + 1, Args: args,
		})
	}
	return encode(w, map[string]any{"displayTimeUnit": "ms", "traceEvents": events})
}

func (s Span) took() time.Duration {
	if s.End.IsZero() {
		return 0
	}
	return s.End.Sub(s.Start)
}

func byStart(spans []Span) []Span {
	sorted := slices.Clone(spans)
	slices.SortStableFunc(sorted, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return sorted
}

// WriteOTLP writes a build as the JSON of an OTLP trace export request: a span
// for the build, and in it one for each vertex.
func WriteOTLP(w io.Writer, r builds.Record, spans []Span) error {
	type attribute map[string]any
	str := func(k, v string) attribute { return attribute{"key": k, "value": map[string]any{"stringValue": v}} }
	boolean := func(k string, v bool) attribute {
		return attribute{"key": k, "value": map[string]any{"boolValue": v}}
	}
	nano := func(t time.Time) string { return strconv.FormatInt(t.UnixNano(), 10) }
	trace := id(r.Ref, 16)
	root := id(r.Ref+" build", 8)
	status := func(err string) map[string]any {
		if err == "" {
			return map[string]any{"code": 1}
		}
		return map[string]any{"code": 2, "message": err}
	}
	ended := r.Ended
	if ended.IsZero() {
		ended = r.Created
		for _, s := range spans {
			if s.End.After(ended) {
				ended = s.End
			}
		}
	}
	list := []map[string]any{{
		"traceId": trace, "spanId": root, "name": "build", "kind": 1,
		"startTimeUnixNano": nano(r.Created), "endTimeUnixNano": nano(ended), "status": status(r.Error),
		"attributes": []attribute{str("strake.build.ref", r.Ref), str("strake.build.status", string(r.Status))},
	}}
	for _, s := range spans {
		end := s.End
		if end.IsZero() {
			end = s.Start
		}
		list = append(list, map[string]any{
			"traceId": trace, "spanId": id(fmt.Sprint(r.Ref, s.Number), 8), "parentSpanId": root, "name": s.Name, "kind": 1,
			"startTimeUnixNano": nano(s.Start), "endTimeUnixNano": nano(end), "status": status(s.Error),
			"attributes": []attribute{boolean("strake.cached", s.Cached), boolean("strake.internal", s.Internal)},
		})
	}
	return encode(w, map[string]any{"resourceSpans": []any{map[string]any{
		"resource":   map[string]any{"attributes": []attribute{str("service.name", "strake")}},
		"scopeSpans": []any{map[string]any{"scope": map[string]any{"name": "strake"}, "spans": list}},
	}}})
}

// id makes an ID of n bytes.
func id(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:n])
}

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
