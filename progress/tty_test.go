package progress

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/google/go-cmp/cmp"
)

// screen is as much of a terminal as the live view uses. It fails on anything
// else, so that no foreign escape sequence can get through.
type screen struct {
	mu            sync.Mutex
	t             *testing.T
	width, height int
	rows          []string // since the start; the terminal shows the last ones
	row, col      int
	wrapOff       bool
}

var csi = regexp.MustCompile(`^\x1b\[(\??)(\d*)([A-Za-z])`)

func (s *screen) size() (int, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.width, s.height, nil
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := p; len(b) > 0; {
		switch {
		case b[0] == '\r':
			s.col = 0
			b = b[1:]
		case b[0] == '\n':
			s.row++
			b = b[1:]
		case b[0] == 0x1b:
			m := csi.FindSubmatch(b)
			if m == nil {
				s.t.Errorf("escape sequence %.20q", b)
				return len(p), nil
			}
			b = b[len(m[0]):]
			s.control(string(m[1]), string(m[2]), string(m[3]))
		default:
			i := bytes.IndexAny(b, "\r\n\x1b")
			if i < 0 {
				i = len(b)
			}
			s.put(string(b[:i]))
			b = b[i:]
		}
		for len(s.rows) <= s.row {
			s.rows = append(s.rows, "")
		}
	}
	return len(p), nil
}

func (s *screen) control(private, n, final string) {
	if private != "" && n == "7" {
		s.wrapOff = final == "l"
	}
	if private != "" || final == "m" {
		return
	}
	switch final {
	case "A":
		var up int
		fmt.Sscan(n, &up)
		s.row = max(s.row-up, len(s.rows)-s.height, 0)
	case "K":
		s.rows[s.row] = cut(s.rows[s.row], s.col)
	case "J":
		s.rows = s.rows[:s.row+1]
		s.rows[s.row] = cut(s.rows[s.row], s.col)
	default:
		s.t.Errorf("control sequence %s%s%s", private, n, final)
	}
}

func cut(s string, cells int) string { return displaywidth.TruncateString(s, cells, "") }

func (s *screen) put(text string) {
	w := displaywidth.String(text)
	if s.wrapOff && s.col+w > s.width {
		s.t.Errorf("%q at column %d is wider than the screen (%d)", text, s.col, s.width)
	}
	old := s.rows[s.row]
	rest := ""
	if ow := displaywidth.String(old); ow > s.col+w {
		rest = old[len(cut(old, s.col+w)):]
	}
	s.rows[s.row] = cut(old, s.col) + text + rest
	s.col += w
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, r := range s.rows {
		b.WriteString(strings.TrimRight(r, " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// onTTY plays events with their times and returns what the screen shows at each
// of the times asked for, and in the end.
func onTTY(t *testing.T, width, height int, events []Event, when ...float64) (shots []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &screen{t: t, width: width, height: height, rows: []string{""}}
		d := NewDisplay(s, Options{Mode: TTY, Size: s.size, Color: true})
		begin := time.Now()
		until := func(sec float64) {
			time.Sleep(time.Until(begin.Add(time.Duration(sec * float64(time.Second)))))
			synctest.Wait()
		}
		for _, e := range events {
			sec := e.Time.Sub(t0).Seconds()
			for len(when) > 0 && when[0] < sec {
				until(when[0])
				shots = append(shots, s.String())
				when = when[1:]
			}
			until(sec)
			e.Time = time.Now()
			d.Event(e)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		shots = append(shots, s.String())
	})
	return shots
}

func TestTTY(t *testing.T) {
	t.Parallel()
	got := onTTY(t, 50, 24, aBuild, 3, 15)
	want := []string{`[+] Building 3.0s (0/1)
 => [1/3] FROM docker.io/library/base:1      3.0s
 => => downloading sha256:abc 1.00kB / 2.... 0.1s
`, `[+] Building 15.0s (2/4)
 => [1/3] FROM docker.io/library/base:1      7.0s
 => CACHED [2/3] COPY . /src                 0.0s
 => [3/3] RUN make all                       8.0s
 => => # cc main.c
 => => # warning: x
 => [other 1/1] RUN sleep                    8.0s
`, `[+] Building 20.0s (4/4) FINISHED
 => [1/3] FROM docker.io/library/base:1      7.0s
 => CACHED [2/3] COPY . /src                 0.0s
 => ERROR [3/3] RUN make all                13.0s
 => CANCELED [other 1/1] RUN sleep          13.0s

 1 warning found:
 - LegacyKeyValueFormat: use ENV key=value (https://example.com/x)
`}
	for i := range want {
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Errorf("screen %d (-want +got):\n%s", i, diff)
		}
	}
}

// TestTTYFits: whatever the size, no line is wider than the terminal and no
// frame higher; the screen checks the width.
func TestTTYFits(t *testing.T) {
	t.Parallel()
	var events []Event
	for i := range 30 {
		v := fmt.Sprint(i)
		events = append(events, Event{Time: at(float64(i) / 10), Kind: Start, Vertex: v,
			Name: fmt.Sprintf("[日本 %d/30] RUN \x1b]0;title\x07", i) + strings.Repeat("ö", i*5)})
		for j := range 10 {
			events = append(events, Event{Time: at(float64(i) / 10), Kind: Log, Vertex: v,
				Data: fmt.Appendf(nil, "line %d \xff\x1b[2J\x1b[999B %s\n", j, strings.Repeat("界", 50))})
		}
		if i%3 == 0 {
			events = append(events, Event{Time: at(float64(i)/10 + 0.05), Kind: Done, Vertex: v})
		}
	}
	for _, size := range [][2]int{{80, 24}, {20, 5}, {10, 3}, {1, 1}, {200, 100}, {4, 2}} {
		shots := onTTY(t, size[0], size[1], events, 1, 2, 2.85)
		for _, s := range shots[:len(shots)-1] {
			if n := strings.Count(s, "\n"); n > size[1] {
				t.Errorf("%v: a frame has %d lines:\n%s", size, n, s)
			}
		}
		last := shots[len(shots)-1]
		if n := strings.Count(last, " =>"); size[0] > 4 && n != 30 {
			t.Errorf("%v: the last frame tells of %d vertices, want 30:\n%s", size, n, last)
		}
	}
}

func TestTTYResize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &screen{t: t, width: 100, height: 20, rows: []string{""}}
		d := NewDisplay(s, Options{Mode: TTY, Size: s.size})
		d.Event(Event{Kind: Start, Vertex: "a", Name: "RUN one"})
		time.Sleep(150 * time.Millisecond)
		synctest.Wait()
		// The terminal becomes half as wide, and wraps the two lines of 99 and
		// 23 cells to three rows.
		s.mu.Lock()
		wide := s.rows[1]
		s.rows = []string{s.rows[0], cut(wide, 50), wide[50:], ""}
		s.row, s.width = 3, 50
		s.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := s.String(); strings.Count(got, "Building") != 1 || strings.Count(got, "RUN one") != 1 || strings.Count(got, "\n") != 2 {
			t.Errorf("after the resize:\n%s", got)
		}
		d.Close()
	})
}

func TestTTYWithNothingToShow(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := NewDisplay(&out, Options{Mode: TTY})
	if err := d.Close(); err != nil || out.Len() != 0 {
		t.Errorf("wrote %q, error %v", out.String(), err)
	}
}
