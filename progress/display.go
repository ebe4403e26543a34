package progress

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// Mode is a way to show events: a value of --progress.
type Mode string

// The modes.
const (
	Auto    Mode = "auto"    // TTY on a terminal, else Plain
	TTY     Mode = "tty"     // a live view
	Plain   Mode = "plain"   // lines, good to read and to grep
	RawJSON Mode = "rawjson" // every Event as one line of JSON
	Quiet   Mode = "quiet"   // nothing
)

// ParseMode checks the value of --progress.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Auto, TTY, Plain, RawJSON, Quiet:
		return m, nil
	}
	return "", fmt.Errorf("invalid progress mode %q: it is auto, tty, plain, rawjson or quiet", s)
}

// Options says how a Display shows events. The zero value is Plain without
// logs.
type Options struct {
	Mode Mode
	// Size returns the terminal's size in cells; nil if the writer is none.
	// It is asked anew for every redraw.
	Size func() (width, height int, err error)
	// Color: the live view is coloured.
	Color bool
	// Logs keeps all events and the output of all steps; nil: nobody does.
	// Whoever opened it closes it, after the Display.
	Logs *Logs
}

// Display shows events. No output of a step is lost: the plain and the JSON
// form wait on disk for a writer that is slow, and the live view, which shows
// the last lines only, leaves out redraws. The build waits for neither, and
// memory does not grow with the output.
type Display struct {
	mu       sync.Mutex
	logs     *Logs
	view     view
	start    time.Time
	vertices map[string]*vertex
	order    []*vertex
	warnings []Event
	closed   bool
}

// view is one way to show. Its methods are called with the Display's lock held,
// except close.
type view interface {
	// event is called after d and v took note of e. v is nil if e belongs to
	// the build itself.
	event(d *Display, v *vertex, e Event)
	// line is called for every line of output, cleaned.
	line(d *Display, v *vertex, at time.Time, line []byte)
	// close shows what is left.
	close(d *Display) error
}

type vertexState int

const (
	waiting vertexState = iota
	running
	cached
	done
	failed
	canceled
)

// vertex is what is known of a vertex.
type vertex struct {
	n          int // from 1, in the order they were first heard of
	id, name   string
	internal   bool
	state      vertexState
	start, end time.Time
	err        string
	parts      []*part
	part       *part       // the last one that was told of
	lines      [2]splitter // of stdout and stderr
	tail       []string    // last lines, for the live view
}

// part is a part of a vertex that Status events tell of.
type part struct {
	id, action     string
	current, total int64
	first, last    time.Time
	done           bool
	shown          time.Time // plain: when it was last printed
	over           bool      // plain: its end was printed
}

func (p *part) text() string {
	t := p.action
	if p.id != "" {
		if t != "" {
			t += " "
		}
		t += p.id
	}
	switch {
	case p.total > 0:
		t += fmt.Sprintf(" %s / %s", Bytes(p.current), Bytes(p.total))
	case p.current > 0:
		t += " " + Bytes(p.current)
	}
	return t
}

// NewDisplay returns a display that writes to w. Close must be called.
func NewDisplay(w io.Writer, o Options) *Display {
	d := &Display{logs: o.Logs, start: time.Now(), vertices: map[string]*vertex{}}
	mode := o.Mode
	if mode == Auto {
		mode = Plain
		if o.Size != nil {
			mode = TTY
		}
	}
	spill := ""
	if o.Logs != nil {
		spill = o.Logs.Dir()
	}
	switch mode {
	case TTY:
		d.view = newTTY(d, w, o)
	case RawJSON:
		d.view = &jsonView{w: newSpool(w, spill)}
	case Quiet:
		d.view = quietView{}
	default:
		d.view = &plainView{w: newSpool(w, spill)}
	}
	return d
}

// Event takes an event. It is a Func.
func (d *Display) Event(e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if d.closed { // logs go on
		if d.logs != nil {
			d.logs.Event(e)
		}
		if e.Vertex != "" {
			d.note(d.vertex(e), e)
		}
		return
	}
	if e.Kind == Warning {
		d.warnings = append(d.warnings, e)
	}
	if e.Vertex == "" {
		if d.logs != nil {
			d.logs.Event(e)
		}
		d.view.event(d, nil, e)
		return
	}
	v := d.vertex(e)
	if d.logs != nil {
		d.logs.Event(e)
	}
	d.note(v, e)
	if _, quiet := d.view.(quietView); e.Kind == Log && !quiet {
		stream := 0
		if e.Stream == 2 {
			stream = 1
		}
		v.lines[stream].write(e.Data, func(l []byte) { d.view.line(d, v, e.Time, l) })
	}
	if e.Kind == Done {
		for i := range v.lines {
			v.lines[i].flush(func(l []byte) { d.view.line(d, v, e.Time, l) })
		}
	}
	d.view.event(d, v, e)
}

// vertex returns the vertex of an event, made when it is first heard of.
func (d *Display) vertex(e Event) *vertex {
	v := d.vertices[e.Vertex]
	if v == nil {
		v = &vertex{n: len(d.order) + 1, id: e.Vertex, name: Clean(e.Vertex), start: e.Time}
		d.vertices[e.Vertex] = v
		d.order = append(d.order, v)
	}
	if e.Name != "" {
		v.name = Clean(e.Name)
	}
	v.internal = v.internal || e.Internal
	return v
}

// note changes v as e tells.
func (d *Display) note(v *vertex, e Event) {
	switch e.Kind {
	case Start:
		v.state, v.start = running, e.Time
	case Cached:
		v.state, v.start, v.end = cached, e.Time, e.Time
	case Done:
		v.end = e.Time
		switch {
		case e.Error == "":
			v.state = done
		case e.IsCanceled():
			v.state = canceled
		default:
			v.state, v.err = failed, Clean(e.Error)
		}
	case Status:
		id, action := Clean(e.ID), Clean(e.Action)
		var p *part
		for _, q := range v.parts {
			if q.id == id && q.action == action {
				p = q
				break
			}
		}
		if p == nil {
			if len(v.parts) == maxParts { // the oldest that is done, or just the oldest, is forgotten
				k := 0
				for i, q := range v.parts {
					if q.done {
						k = i
						break
					}
				}
				v.parts = append(v.parts[:k], v.parts[k+1:]...)
			}
			p = &part{id: id, action: action, first: e.Time}
			v.parts = append(v.parts, p)
		}
		p.current, p.total, p.last = e.Current, e.Total, e.Time
		p.done = e.Total > 0 && e.Current >= e.Total
		v.part = p
	}
}

// maxParts bounds the parts of a vertex that are remembered.
const maxParts = 256

// Close shows what is left and waits until all is written. Events that come
// later are not shown. The error is the first one of writing.
func (d *Display) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	return d.view.close(d)
}

// NumberOf returns the number by which the failed vertex of that name is shown,
// 0 if there is none.
func (d *Display) NumberOf(name string) int {
	name = Clean(name)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.order {
		if v.state == failed && v.name == name {
			return v.n
		}
	}
	return 0
}

// Bytes gives a number of bytes as people read it, in decimal units: "1.05MB".
func Bytes(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB", "PB"} {
		if f < 1000 {
			break
		}
		f, unit = f/1000, u
	}
	if unit == "B" {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.2f%s", f, unit)
}

// seconds gives d in five characters, as long as it is shorter than a day.
func seconds(d time.Duration) string {
	s := max(d, 0).Seconds()
	digits := 0
	switch {
	case s < 10:
		digits = 3
	case s < 100:
		digits = 2
	case s < 1000:
		digits = 1
	}
	return strconv.FormatFloat(s, 'f', digits, 64)
}

type quietView struct{}

func (quietView) event(*Display, *vertex, Event)            {}
func (quietView) line(*Display, *vertex, time.Time, []byte) {}
func (quietView) close(*Display) error                      { return nil }
