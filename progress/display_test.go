package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }

// aBuild is a build with all kinds of events.
var aBuild = []Event{
	{Time: at(0), Kind: Start, Vertex: "i", Name: "[internal] load build definition", Internal: true},
	{Time: at(0), Kind: Done, Vertex: "i"},
	{Time: at(0), Kind: Start, Vertex: "b", Name: "[1/3] FROM docker.io/library/base:1"},
	{Time: at(0.1), Kind: Status, Vertex: "b", ID: "sha256:abc", Action: "downloading", Current: 10, Total: 2000},
	{Time: at(0.2), Kind: Status, Vertex: "b", ID: "sha256:abc", Action: "downloading", Current: 1000, Total: 2000},
	{Time: at(6), Kind: Status, Vertex: "b", ID: "sha256:abc", Action: "downloading", Current: 1999, Total: 2000},
	{Time: at(6.1), Kind: Status, Vertex: "b", ID: "sha256:abc", Action: "downloading", Current: 2000, Total: 2000},
	{Time: at(6.1), Kind: Status, Vertex: "b", ID: "sha256:abc", Action: "downloading", Current: 2000, Total: 2000},
	{Time: at(7), Kind: Done, Vertex: "b"},
	{Time: at(7), Kind: Cached, Vertex: "c", Name: "[2/3] COPY . /src"},
	{Time: at(7), Kind: Start, Vertex: "r", Name: "[3/3] RUN make \x1b[31mall"},
	{Time: at(7), Kind: Start, Vertex: "o", Name: "[other 1/1] RUN sleep"},
	{Time: at(7.123), Kind: Log, Vertex: "r", Stream: 1, Data: []byte("cc \x1b[1mmain.c\x1b[0m\nli")},
	{Time: at(7.2), Kind: Log, Vertex: "r", Stream: 2, Data: []byte("warning: x\n")},
	{Time: at(19.5), Kind: Log, Vertex: "r", Stream: 1, Data: []byte("nk\ntail")},
	{Time: at(20), Kind: Warning, Text: "LegacyKeyValueFormat: use ENV key=value", URL: "https://example.com/x"},
	{Time: at(20), Kind: Done, Vertex: "r", Error: "exit code: 2"},
	{Time: at(20), Kind: Done, Vertex: "o", Error: "canceled"},
}

func play(d *Display, events []Event) {
	for _, e := range events {
		d.Event(e)
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := NewDisplay(&out, Options{Mode: Auto})
	play(d, aBuild)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	want := `#2 [1/3] FROM docker.io/library/base:1
#2 downloading sha256:abc 10B / 2.00kB
#2 downloading sha256:abc 2.00kB / 2.00kB 5.9s
#2 downloading sha256:abc 2.00kB / 2.00kB 6.0s done
#2 DONE 7.0s

#3 [2/3] COPY . /src
#3 CACHED

#4 [3/3] RUN make all

#5 [other 1/1] RUN sleep
#4 0.123 cc main.c
#4 0.200 warning: x
#4 12.50 link
WARN: LegacyKeyValueFormat: use ENV key=value (https://example.com/x)
#4 13.00 tail
#4 ERROR: exit code: 2
#5 CANCELED
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	d.Event(Event{Kind: Start, Vertex: "late", Name: "late"}) // must not panic or write
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestPlainShowsFailedInternalVertex(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := NewDisplay(&out, Options{Mode: Plain})
	d.Event(Event{Time: at(0), Kind: Start, Vertex: "i", Name: "[internal] load metadata", Internal: true})
	d.Event(Event{Time: at(1), Kind: Done, Vertex: "i", Error: "no route to host"})
	d.Close()
	if got, want := out.String(), "#1 [internal] load metadata\n#1 ERROR: no route to host\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRawJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := NewDisplay(&out, Options{Mode: RawJSON})
	play(d, aBuild)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var got []Event
	for dec := json.NewDecoder(&out); ; {
		var e Event
		if err := dec.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if diff := cmp.Diff(aBuild, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := NewDisplay(&out, Options{Mode: Quiet, Size: func() (int, int, error) { return 80, 24, nil }})
	play(d, aBuild)
	if err := d.Close(); err != nil || out.Len() != 0 {
		t.Errorf("wrote %q, error %v", out.String(), err)
	}
}

func TestParseMode(t *testing.T) {
	t.Parallel()
	if m, err := ParseMode("plain"); m != Plain || err != nil {
		t.Errorf("plain: %q, %v", m, err)
	}
	if _, err := ParseMode("fancy"); err == nil || !strings.Contains(err.Error(), "rawjson") {
		t.Errorf("fancy: error %v does not name the modes", err)
	}
}

// gate is a writer that blocks until it is opened.
type gate struct {
	open chan struct{}
	bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.Buffer.Write(p)
}

func TestSlowWriterDoesNotHoldUpTheBuild(t *testing.T) {
	t.Parallel()
	g := &gate{open: make(chan struct{})}
	d := NewDisplay(g, Options{Mode: Plain})
	d.Event(Event{Time: at(0), Kind: Start, Vertex: "v", Name: "RUN yes"})
	line := []byte(strings.Repeat("y", 1023) + "\n")
	const n = 8 << 10 // 8 MiB, much more than is kept in memory
	for range n {
		d.Event(Event{Time: at(1), Kind: Log, Vertex: "v", Data: line})
	}
	s := d.view.(*plainView).w
	s.mu.Lock()
	if len(s.mem) > spoolMemory {
		t.Errorf("%d bytes are kept in memory", len(s.mem))
	}
	s.mu.Unlock()
	close(g.open)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(g.String(), "#1 1.000 yyy"); got != n {
		t.Errorf("%d lines came through, want %d", got, n)
	}
}

func TestSpoolKeepsOrder(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	s := newSpool(w, t.TempDir())
	const n = 300_000
	go func() {
		for i := range n {
			fmt.Fprintf(s, "%d\n", i)
		}
		s.Close()
		w.Close()
	}()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	if len(lines) != n {
		t.Fatalf("%d lines, want %d", len(lines), n)
	}
	for i, l := range lines {
		if l != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
}

type brokenWriter struct{ n int }

func (b *brokenWriter) Write(p []byte) (int, error) {
	b.n++
	return 0, errors.New("broken pipe")
}

func TestBrokenWriter(t *testing.T) {
	t.Parallel()
	for _, mode := range []Mode{Plain, RawJSON, TTY} {
		w := &brokenWriter{}
		d := NewDisplay(w, Options{Mode: mode})
		play(d, aBuild)
		if err := d.Close(); err == nil || !strings.Contains(err.Error(), "broken pipe") {
			t.Errorf("%s: Close gives %v", mode, err)
		}
		if w.n > 1 {
			t.Errorf("%s: written to %d times after the failure", mode, w.n-1)
		}
	}
}

func TestEventsFromManyGoroutines(t *testing.T) {
	t.Parallel()
	logs, err := OpenLogs(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDisplay(io.Discard, Options{Mode: TTY, Logs: logs})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			v := fmt.Sprint("v", i)
			d.Event(Event{Kind: Start, Vertex: v, Name: v})
			for j := range 200 {
				d.Event(Event{Kind: Log, Vertex: v, Data: fmt.Appendf(nil, "%s %d\n", v, j)})
			}
			d.Event(Event{Kind: Done, Vertex: v})
		})
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 16 {
		b, err := os.ReadFile(logs.Path(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		v, _, _ := strings.Cut(string(b), " ")
		if n := strings.Count(string(b), v+" "); n != 200 || strings.Count(string(b), "\n") != 200 {
			t.Errorf("log %d has %d lines of %s in:\n%.1000s", i+1, n, v, b)
		}
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	logs, err := OpenLogs(root, 19)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDisplay(io.Discard, Options{Mode: Quiet, Logs: logs})
	play(d, aBuild)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(logs.Path(d.NumberOf("[3/3] RUN make all")))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), "cc \x1b[1mmain.c\x1b[0m\nl\n[strake keeps 19B of a step's output: the rest is not in this file]\n"; got != want {
		t.Errorf("log is %q, want %q", got, want)
	}
	b, err = os.ReadFile(filepath.Join(logs.Dir(), eventsFile))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("\n")); n != len(aBuild)-2 {
		t.Errorf("%d events are kept, want all %d but two of the output, of which no more is kept", n, len(aBuild))
	}
	if !bytes.Contains(b, []byte(`{"n":4,"time":"2026-01-02T03:04:25Z","kind":"done","vertex":"r","error":"exit code: 2"}`)) {
		t.Errorf("the failure is not among the events:\n%s", b)
	}
}

// What is kept can be played again.
func TestReadLogs(t *testing.T) {
	t.Parallel()
	logs, err := OpenLogs(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range aBuild {
		logs.Event(e)
	}
	if !LogsBusy(logs.Dir()) {
		t.Error("nobody could tell that the build is under way")
	}
	want := Counts{Vertices: 4, Cached: 1, Completed: 2, Warnings: 1}
	if diff := cmp.Diff(want, logs.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	if err := logs.Close(); err != nil {
		t.Fatal(err)
	}
	if LogsBusy(logs.Dir()) {
		t.Error("a build that ended is taken for one under way")
	}
	var got []Event
	if err := ReadLogs(logs.Dir(), func(n int, e Event) error {
		e.Data = bytes.Clone(e.Data)
		got = append(got, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(aBuild, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// Small writes are not worth an event each.
func TestLogsJoinOutput(t *testing.T) {
	t.Parallel()
	logs, err := OpenLogs(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		logs.Event(Event{Time: at(float64(i) / 1000), Kind: Log, Vertex: "v", Stream: 1, Data: []byte("y\n")})
	}
	if err := logs.Close(); err != nil {
		t.Fatal(err)
	}
	events, bytes := 0, 0
	if err := ReadLogs(logs.Dir(), func(n int, e Event) error {
		events++
		bytes += len(e.Data)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if events > 11 || bytes != 2000 {
		t.Errorf("%d events with %d bytes, want 10 with 2000", events, bytes)
	}
}

func TestSeconds(t *testing.T) {
	t.Parallel()
	for in, want := range map[time.Duration]string{
		-time.Second:             "0.000",
		1500 * time.Microsecond:  "0.002",
		12345 * time.Millisecond: "12.35",
		100 * time.Second:        "100.0",
		5000 * time.Second:       "5000",
	} {
		if got := seconds(in); got != want {
			t.Errorf("seconds(%v) = %q, want %q", in, got, want)
		}
	}
}

func TestTTYDrawsAtABoundedRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n countingWriter
		d := NewDisplay(&n, Options{Mode: TTY})
		d.Event(Event{Kind: Start, Vertex: "v", Name: "RUN yes"})
		for range 100_000 {
			d.Event(Event{Kind: Log, Vertex: "v", Data: []byte("y\n")})
			time.Sleep(10 * time.Microsecond)
		}
		d.Close()
		if n > 12 {
			t.Errorf("%d frames in a second", n)
		}
	})
}

type countingWriter int

func (n *countingWriter) Write(p []byte) (int, error) {
	*n++
	return len(p), nil
}

// BenchmarkLog is what the output of a step costs.
func BenchmarkLog(b *testing.B) {
	for _, m := range []Mode{Quiet, Plain, TTY} {
		b.Run(string(m), func(b *testing.B) {
			logs, err := OpenLogs(b.TempDir(), 1<<30)
			if err != nil {
				b.Fatal(err)
			}
			d := NewDisplay(io.Discard, Options{Mode: m, Logs: logs})
			d.Event(Event{Kind: Start, Vertex: "v", Name: "RUN yes"})
			data := bytes.Repeat([]byte(strings.Repeat("y", 63)+"\n"), 512)
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				d.Event(Event{Kind: Log, Vertex: "v", Data: data})
			}
			if err := d.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
