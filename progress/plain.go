package progress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// plainView prints lines that begin with the number of the vertex:
//
//	#3 [build 2/4] RUN make
//	#3 0.123 a line of its output
//	#3 DONE 0.4s
//
// or CACHED, CANCELED, ERROR: … in place of DONE.
type plainView struct {
	w       *spool
	buf     bytes.Buffer // of one event
	printed bool
	headed  map[int]bool // vertices whose name was printed
}

// statusEvery is how often a part that goes on is printed again.
const statusEvery = 5 * time.Second

func (p *plainView) head(v *vertex) {
	if p.headed[v.n] {
		return
	}
	if p.headed == nil {
		p.headed = map[int]bool{}
	}
	p.headed[v.n] = true
	if p.printed {
		fmt.Fprintln(&p.buf)
	}
	p.printed = true
	fmt.Fprintf(&p.buf, "#%d %s\n", v.n, v.name)
}

func (p *plainView) event(d *Display, v *vertex, e Event) {
	p.print(v, e)
	p.w.Write(p.buf.Bytes())
	p.buf.Reset()
}

func (p *plainView) print(v *vertex, e Event) {
	if v == nil {
		if e.Kind == Warning {
			fmt.Fprintf(&p.buf, "WARN: %s\n", warningText(e))
			p.printed = true
		}
		return
	}
	if v.internal && v.state != failed && e.Kind != Warning {
		return
	}
	switch e.Kind {
	case Start:
		p.head(v)
	case Cached:
		p.head(v)
		fmt.Fprintf(&p.buf, "#%d CACHED\n", v.n)
	case Status:
		p.head(v)
		q := v.part
		if !q.over && (q.done || q.shown.IsZero() || q.last.Sub(q.shown) >= statusEvery) {
			p.part(v, q)
		}
	case Warning:
		p.head(v)
		fmt.Fprintf(&p.buf, "#%d WARN: %s\n", v.n, warningText(e))
	case Done:
		p.head(v)
		switch v.state {
		case failed:
			fmt.Fprintf(&p.buf, "#%d ERROR: %s\n", v.n, v.err)
		case canceled:
			fmt.Fprintf(&p.buf, "#%d CANCELED\n", v.n)
		default:
			fmt.Fprintf(&p.buf, "#%d DONE %.1fs\n", v.n, max(v.end.Sub(v.start), 0).Seconds())
		}
		v.parts, v.part = nil, nil
	}
}

func (p *plainView) part(v *vertex, q *part) {
	t := ""
	if dt := q.last.Sub(q.first); dt > 10*time.Millisecond {
		t = fmt.Sprintf(" %.1fs", dt.Seconds())
	}
	if q.done {
		t += " done"
	}
	q.shown, q.over = q.last, q.done
	fmt.Fprintf(&p.buf, "#%d %s%s\n", v.n, q.text(), t)
}

func (p *plainView) line(d *Display, v *vertex, at time.Time, line []byte) {
	if v.internal {
		return
	}
	p.head(v)
	b := append(p.buf.AvailableBuffer(), '#')
	b = strconv.AppendInt(b, int64(v.n), 10)
	b = append(b, ' ')
	b = append(b, seconds(at.Sub(v.start))...)
	b = append(b, ' ')
	if plainASCII(line) {
		b = append(b, line...)
	} else {
		b = append(b, clean(line, '\t')...)
	}
	p.buf.Write(append(b, '\n'))
}

func (p *plainView) close(*Display) error { return p.w.Close() }

func warningText(e Event) string {
	t := Clean(e.Text)
	if e.URL != "" {
		t += " (" + Clean(e.URL) + ")"
	}
	return t
}

// jsonView prints events as they are.
type jsonView struct{ w *spool }

func (j *jsonView) event(_ *Display, _ *vertex, e Event) {
	b, err := json.Marshal(e)
	if err != nil { // a time out of range; nothing else can't be encoded
		return
	}
	j.w.Write(append(b, '\n'))
}

func (j *jsonView) line(*Display, *vertex, time.Time, []byte) {}

func (j *jsonView) close(*Display) error { return j.w.Close() }
