package timeline

import (
	_ "embed"
	"html/template"
	"io"
	"time"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

//go:embed page.html
var page string

// row is a span on the page, in percent of the build's time.
type row struct {
	Number      int
	Name, State string
	Left, Width float64
	Took        string
	Error       string
}

// WriteHTML writes a build as a page that needs nothing else: a bar for each
// step.
func WriteHTML(w io.Writer, r builds.Record, spans []Span) error {
	t, err := template.New("page").Parse(page)
	if err != nil {
		return err
	}
	first, last := r.Created, r.Ended
	for _, s := range spans {
		if s.Start.Before(first) {
			first = s.Start
		}
		if s.End.After(last) {
			last = s.End
		}
	}
	whole := max(last.Sub(first), time.Millisecond).Seconds()
	var rows []row
	for _, s := range byStart(spans) {
		state := "ran"
		switch {
		case s.Cached:
			state = "cached"
		case s.Error == "canceled":
			state = "canceled"
		case s.Error != "":
			state = "failed"
		case s.End.IsZero():
			state = "running"
		}
		took := s.took()
		rows = append(rows, row{
			Number: s.Number, Name: progress.Clean(s.Name), State: state, Error: progress.Clean(s.Error),
			Left: 100 * s.Start.Sub(first).Seconds() / whole, Width: max(0.15, 100*took.Seconds()/whole), Took: took.Round(time.Millisecond).String(),
		})
	}
	return t.Execute(w, map[string]any{
		"Ref": r.Ref, "Status": r.Status, "Created": r.Created.Format(time.RFC3339), "Context": r.Context,
		"Took": last.Sub(first).Round(time.Millisecond).String(), "Error": progress.Clean(r.Error), "Rows": rows,
	})
}
