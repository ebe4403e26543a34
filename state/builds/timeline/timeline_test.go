package timeline

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state"
	"github.com/strake-build/strake/state/builds"
)

// aBuild has two steps at once, one of which fails, and a cached one before.
func aBuild(t *testing.T) (builds.Record, []Span) {
	t.Helper()
	root, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s := builds.Open(root, builds.Limits{})
	at := func(s int) time.Time { return time.Date(2026, 1, 2, 3, 4, s, 0, time.UTC) }
	b, err := s.Begin(builds.Record{Ref: "r", Created: at(0)})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []progress.Event{
		{Time: at(1), Kind: progress.Cached, Vertex: "a", Name: "RUN a"},
		{Time: at(1), Kind: progress.Start, Vertex: "b", Name: "RUN <b>"},
		{Time: at(2), Kind: progress.Start, Vertex: "c", Name: "RUN c"},
		{Time: at(3), Kind: progress.Log, Vertex: "b", Data: []byte("12345")},
		{Time: at(4), Kind: progress.Done, Vertex: "b", Error: "exit code: 1"},
		{Time: at(5), Kind: progress.Done, Vertex: "c", Error: "canceled"},
	} {
		b.Logs.Event(e)
	}
	if err := b.End(errors.New("exit code: 1"), nil); err != nil {
		t.Fatal(err)
	}
	spans, err := Read(b.Record())
	if err != nil {
		t.Fatal(err)
	}
	want := []Span{
		{Number: 1, Name: "RUN a", Start: at(1), End: at(1), Cached: true},
		{Number: 2, Name: "RUN <b>", Start: at(1), End: at(4), Error: "exit code: 1", Bytes: 5},
		{Number: 3, Name: "RUN c", Start: at(2), End: at(5), Error: "canceled"},
	}
	if diff := cmp.Diff(want, spans); diff != "" {
		t.Fatalf("spans (-want +got):\n%s", diff)
	}
	return b.Record(), spans
}

// Spans at the same time are on different lines of a trace.
func TestChrome(t *testing.T) {
	t.Parallel()
	r, spans := aBuild(t)
	var b bytes.Buffer
	if err := WriteChrome(&b, r, spans); err != nil {
		t.Fatal(err)
	}
	var got struct {
		TraceEvents []struct {
			Name, Ph string
			Dur      int64
			TID      int
		}
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	e := got.TraceEvents
	if len(e) != 4 || e[2].Name != "RUN <b>" || e[2].Dur != 3_000_000 || e[2].Ph != "X" || e[2].TID == e[3].TID {
		t.Errorf("events are %+v", e)
	}
}

func TestOTLP(t *testing.T) {
	t.Parallel()
	r, spans := aBuild(t)
	var b bytes.Buffer
	if err := WriteOTLP(&b, r, spans); err != nil {
		t.Fatal(err)
	}
	var got struct {
		ResourceSpans []struct {
			ScopeSpans []struct {
				Spans []struct {
					TraceID, SpanID, ParentSpanID, StartTimeUnixNano string
					Status                                           struct{ Code int }
				}
			}
		}
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	list := got.ResourceSpans[0].ScopeSpans[0].Spans
	ids := map[string]bool{}
	for _, s := range list {
		ids[s.SpanID] = true
		if len(s.TraceID) != 32 || len(s.SpanID) != 16 || s.TraceID != list[0].TraceID {
			t.Errorf("IDs of %+v", s)
		}
	}
	if len(ids) != 4 || list[2].ParentSpanID != list[0].SpanID || list[2].Status.Code != 2 || list[1].Status.Code != 1 || list[1].StartTimeUnixNano != "1767323041000000000" {
		t.Errorf("spans are %+v", list)
	}
}

func TestHTML(t *testing.T) {
	t.Parallel()
	r, spans := aBuild(t)
	var b bytes.Buffer
	if err := WriteHTML(&b, r, spans); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"RUN &lt;b&gt;", `class="bar failed"`, `class="bar canceled"`, "cached"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, &b)
		}
	}
}
