// Package timeline shows when the steps of a recorded build ran: as a trace for
// other programs, or as a page to look at.
package timeline

import (
	"time"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

// Span is a vertex of a build in time.
type Span struct {
	Number     int // as displays show it
	Name       string
	Internal   bool
	Start, End time.Time // End is zero while it runs
	Cached     bool
	Error      string // "canceled" if it was stopped
	Bytes      int64  // of output
}

// Read reads the spans of a build, in the order of their first events. What was
// still running when the build ended, or was killed, ends with it.
func Read(r builds.Record) ([]Span, error) {
	var spans []Span
	index := map[int]int{}
	last := r.Created
	err := r.Read(func(n int, e progress.Event) error {
		if e.Time.After(last) {
			last = e.Time
		}
		if n == 0 {
			return nil
		}
		i, ok := index[n]
		if !ok {
			i = len(spans)
			index[n] = i
			spans = append(spans, Span{Number: n, Name: e.Vertex, Start: e.Time})
		}
		s := &spans[i]
		if e.Name != "" {
			s.Name = e.Name
		}
		s.Internal = s.Internal || e.Internal
		switch e.Kind {
		case progress.Start:
			s.Start = e.Time
		case progress.Cached:
			s.Start, s.End, s.Cached = e.Time, e.Time, true
		case progress.Done:
			s.End = e.Time
			if s.Error = e.Error; e.IsCanceled() {
				s.Error = "canceled"
			}
		case progress.Log:
			s.Bytes += int64(len(e.Data))
		}
		return nil
	})
	if r.Status != builds.Running {
		for i := range spans {
			if spans[i].End.IsZero() {
				spans[i].End = last
			}
		}
	}
	return spans, err
}

// lanes puts spans on as few lines as there were running at once: the line of
// each.
func lanes(spans []Span) []int {
	var free []time.Time // when each line is free again
	lane := make([]int, len(spans))
	for i, s := range spans {
		k := 0
		for k < len(free) && free[k].After(s.Start) {
			k++
		}
		if k == len(free) {
			free = append(free, time.Time{})
		}
		free[k] = s.End
		lane[i] = k
	}
	return lane
}
