package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"
)

// ttyView redraws a picture of the build in place:
//
//	[+] Building 3.2s (5/9)
//	 => CACHED [build 1/4] FROM docker.io/library/golang:1.26        0.0s
//	 => [build 2/4] RUN make                                         2.1s
//	 => => # the last lines of its output
//
// One goroutine draws, at most every frameEvery, and each frame is one Write
// that overwrites the one before without clearing it first, so that nothing
// flickers.
type ttyView struct {
	w     io.Writer
	size  func() (width, height int, err error)
	color bool
	stop  chan struct{}
	ended chan struct{}

	// Of the drawing goroutine:
	drawn []int // widths of the lines on the screen
	last  string
	err   error
}

const (
	frameEvery = 100 * time.Millisecond
	tailLines  = 6 // of output shown for a running vertex
	tailKept   = 40
	// internalAfter is when an internal vertex that goes on is shown.
	internalAfter = 500 * time.Millisecond
)

// Escape sequences.
const (
	syncBegin  = "\x1b[?2026h" // terminals that know it show the frame at once
	syncEnd    = "\x1b[?2026l"
	cursorHide = "\x1b[?25l"
	cursorShow = "\x1b[?25h"
	wrapOff    = "\x1b[?7l"
	wrapOn     = "\x1b[?7h"
	clearRight = "\x1b[K"
	clearBelow = "\x1b[J"

	blue, red, yellow, faint, plain = "\x1b[34m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
)

func newTTY(d *Display, w io.Writer, o Options) *ttyView {
	t := &ttyView{w: w, size: o.Size, color: o.Color, stop: make(chan struct{}), ended: make(chan struct{})}
	if t.size == nil {
		t.size = func() (int, int, error) { return 80, 24, nil }
	}
	go t.run(d)
	return t
}

func (t *ttyView) run(d *Display) {
	defer close(t.ended)
	tick := time.NewTicker(frameEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
			d.mu.Lock()
			w, h := t.cells()
			lines := t.frame(d, time.Now(), h-1, false)
			d.mu.Unlock()
			t.draw(lines, w, h)
		}
	}
}

// cells returns the terminal's size, or a likely one.
func (t *ttyView) cells() (w, h int) {
	w, h, err := t.size()
	if err != nil || w <= 0 || h <= 0 {
		return 80, 24
	}
	return w, h
}

func (t *ttyView) event(*Display, *vertex, Event) {}

func (t *ttyView) line(_ *Display, v *vertex, _ time.Time, line []byte) {
	if len(v.tail) == tailKept {
		v.tail = append(v.tail[:0], v.tail[tailKept-tailLines+1:]...)
	}
	v.tail = append(v.tail, clean(line, ' '))
}

func (t *ttyView) close(d *Display) error {
	close(t.stop)
	<-t.ended
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.order) == 0 && len(d.warnings) == 0 {
		return t.err
	}
	w, h := t.cells()
	t.draw(t.frame(d, time.Now(), 0, true), w, h)
	t.warn(d.warnings)
	return t.err
}

// line is one line of a frame: text on the left, cut to fit, and a time on the
// right.
type line struct{ color, text, right string }

// frame makes the lines of a picture, at most height ones; the final one is
// not bounded.
func (t *ttyView) frame(d *Display, now time.Time, height int, final bool) []line {
	var shown, active []*vertex
	finished := 0
	for _, v := range d.order {
		if v.state == waiting {
			continue
		}
		if v.internal && v.state != failed && !(v.state == running && now.Sub(v.start) > internalAfter) {
			continue
		}
		shown = append(shown, v)
		switch v.state {
		case running:
			active = append(active, v)
		default:
			finished++
		}
	}
	head := fmt.Sprintf("[+] Building %.1fs (%d/%d)", now.Sub(d.start).Seconds(), finished, len(shown))
	if final {
		head += " FINISHED"
	}
	out := []line{{text: head}}
	if final {
		for _, v := range shown {
			out = append(out, v.row(now))
			for _, p := range v.parts {
				if p.total == 0 {
					out = append(out, p.row())
				}
			}
		}
		return out
	}

	// What runs comes first when the room is given out, then its details in
	// turn, then what was done last.
	room := height - 1
	if room <= 0 {
		return out[:min(1, max(height, 0))]
	}
	dropped := 0
	if len(active) > room {
		dropped = len(active) - room + 1
		active = active[:room-1]
		room--
	}
	room -= len(active)
	details := map[*vertex]int{}
	for more := true; more && room > 0; {
		more = false
		for _, v := range active {
			if room > 0 && details[v] < v.details() {
				details[v]++
				room--
				more = true
			}
		}
	}
	keep := map[*vertex]bool{}
	for _, v := range slices.Backward(shown) {
		if v.state != running && room > 0 {
			keep[v] = true
			room--
		}
	}
	for _, v := range shown {
		if v.state == running {
			if len(active) == 0 || v.n > active[len(active)-1].n {
				continue
			}
			out = append(out, v.row(now))
			out = append(out, v.detailRows(details[v])...)
		} else if keep[v] {
			out = append(out, v.row(now))
		}
	}
	if dropped > 0 {
		out = append(out, line{text: fmt.Sprintf(" => ... and %d more", dropped)})
	}
	return out
}

// row is the vertex's own line.
func (v *vertex) row(now time.Time) line {
	l := line{text: " => "}
	end := v.end
	switch v.state {
	case running:
		end = now
	case cached:
		l.color, l.text = blue, " => CACHED "
	case done:
		l.color = blue
	case failed:
		l.color, l.text = red, " => ERROR "
	case canceled:
		l.color, l.text = yellow, " => CANCELED "
	}
	l.text += v.name
	l.right = fmt.Sprintf("%.1fs", max(end.Sub(v.start), 0).Seconds())
	return l
}

// openParts are the parts that are not done, and the last one that is if there
// is no other.
func (v *vertex) openParts() []*part {
	var open []*part
	for _, p := range v.parts {
		if !p.done {
			open = append(open, p)
		}
	}
	if open == nil && len(v.parts) > 0 {
		open = v.parts[len(v.parts)-1:]
	}
	return open
}

// details is how many lines the vertex has to show below its own.
func (v *vertex) details() int {
	return min(len(v.openParts()), tailLines) + min(len(v.tail), tailLines)
}

func (v *vertex) detailRows(n int) []line {
	var out []line
	tail := min(len(v.tail), tailLines, n)
	if parts := v.openParts(); n > tail {
		for _, p := range parts[:min(n-tail, len(parts))] {
			out = append(out, p.row())
		}
	}
	for _, l := range v.tail[len(v.tail)-tail:] {
		out = append(out, line{color: faint, text: " => => # " + l})
	}
	return out
}

func (p *part) row() line {
	return line{text: " => => " + p.text(), right: fmt.Sprintf("%.1fs", max(p.last.Sub(p.first), 0).Seconds())}
}

// warn prints the warnings below the last frame.
func (t *ttyView) warn(ws []Event) {
	if len(ws) == 0 || t.err != nil {
		return
	}
	var b strings.Builder
	head := "1 warning found:"
	if len(ws) > 1 {
		head = fmt.Sprintf("%d warnings found:", len(ws))
	}
	if t.color {
		head = yellow + head + plain
	}
	b.WriteString("\r\n " + head + "\r\n")
	for _, w := range ws {
		b.WriteString(" - " + warningText(w) + "\r\n")
	}
	_, t.err = io.WriteString(t.w, b.String())
}

// draw puts lines in the place of the ones drawn before.
func (t *ttyView) draw(lines []line, width, height int) {
	if t.err != nil {
		return
	}
	var b strings.Builder
	// A terminal that was made narrower has wrapped the old lines: they take
	// more rows now. What has gone above the top can't be reached.
	up := 0
	for _, w := range t.drawn {
		up += max(1, (w+width-1)/width)
	}
	up = min(up, height-1)
	b.WriteString(syncBegin + cursorHide + wrapOff)
	if up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	b.WriteString("\r")
	t.drawn = t.drawn[:0]
	for _, l := range lines {
		text, w := l.layout(width)
		if t.color && l.color != "" {
			text = l.color + text + plain
		}
		b.WriteString(text)
		b.WriteString(clearRight + "\r\n")
		t.drawn = append(t.drawn, w)
	}
	b.WriteString(clearBelow + wrapOn + cursorShow + syncEnd)
	s := b.String()
	if s == t.last && up == len(lines) {
		return
	}
	t.last = s
	_, t.err = io.WriteString(t.w, s)
}

// layout fits a line into width cells, less one: the last column makes some
// terminals wrap.
func (l line) layout(width int) (string, int) {
	room := max(width-1, 1)
	right := l.right
	if room < 24 { // no room for times
		right = ""
	}
	if right != "" {
		room -= len(right) + 1
	}
	text := l.text
	w := displaywidth.String(text)
	if w > room {
		more := "..."
		if room < 12 {
			more = ""
		}
		text = displaywidth.TruncateString(text, room, more)
		w = displaywidth.String(text)
	}
	if right != "" {
		pad := max(room-w, 0)
		text += strings.Repeat(" ", pad+1) + right
		w += pad + 1 + len(right)
	}
	return text, w
}
