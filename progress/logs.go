package progress

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Logs keeps what a build said in a directory: "events.jsonl" has every event
// but the bytes of output, and "<n>.log" the output of the vertex that displays
// show as #n, byte for byte. An event of output tells from which byte of that
// file on it was written at what time and to which stream.
type Logs struct {
	dir   string
	limit int64 // of a step's output

	mu       sync.Mutex
	events   *os.File // locked, as a sign that the build is under way; nil when closed
	steps    map[int]*stepLog
	vertices map[string]int
	written  int64 // bytes, of all files
	counts   Counts
	err      error
}

// Counts are numbers of vertices, internal ones not among them, and warnings.
type Counts struct {
	Vertices  int // that ran or were cached
	Cached    int
	Completed int // the cached ones included
	Warnings  int
}

// count takes note of an event.
func (c *Counts) count(e Event, s *stepLog) {
	switch {
	case e.Kind == Warning:
		c.Warnings++
	case e.Vertex == "" || e.Internal || s.internal:
		s.internal = true
	case e.Kind == Start || e.Kind == Cached:
		if !s.counted {
			s.counted = true
			c.Vertices++
		}
		if e.Kind == Cached {
			c.Cached++
			c.Completed++
		}
	case e.Kind == Done && e.Error == "":
		c.Completed++
	}
}

// stepLog is a step's log file; f is nil when it is closed.
type stepLog struct {
	f     *os.File
	n     int64
	full  bool
	marks int
	mark  Event // the last one of output that was told of

	internal, counted bool
}

const (
	// Output is told of in events at most this often, and so many times for
	// a step, unless it comes from the other stream.
	markEvery = 100 * time.Millisecond
	maxMarks  = 10_000
)

// keptEvent is a line of events.jsonl.
type keptEvent struct {
	N int `json:"n,omitempty"`
	Event
}

const eventsFile = "events.jsonl"

// OpenLogs begins to keep logs in dir, of each step no more than limit bytes.
func OpenLogs(dir string, limit int64) (*Logs, error) {
	f, err := os.OpenFile(filepath.Join(dir, eventsFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return &Logs{dir: dir, limit: limit, events: f, steps: map[int]*stepLog{}, vertices: map[string]int{}}, nil
}

// Dir is the directory.
func (l *Logs) Dir() string { return l.dir }

// Path is the file of the vertex with the number n, whether or not it wrote
// anything; see Display.NumberOf.
func (l *Logs) Path(n int) string { return filepath.Join(l.dir, logName(n)) }

func logName(n int) string { return fmt.Sprintf("%d.log", n) }

// Written is how many bytes were kept so far.
func (l *Logs) Written() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written
}

// Counts are the numbers so far.
func (l *Logs) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Event keeps an event. It is a Func. Vertices are numbered from 1 as they are
// first heard of, as a Display does. The first error ends the keeping, and comes
// from Close: a build does not fail for its logs.
func (l *Logs) Event(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	if e.Vertex != "" {
		if n = l.vertices[e.Vertex]; n == 0 {
			n = len(l.vertices) + 1
			l.vertices[e.Vertex] = n
		}
	}
	s := l.steps[n]
	if s == nil {
		s = &stepLog{}
		l.steps[n] = s
	}
	l.counts.count(e, s)
	if l.err != nil || l.events == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Kind == Log {
		l.err = l.output(n, s, e)
		return
	}
	l.err = l.keep(n, e)
	if e.Kind == Done && s.f != nil {
		l.err = errors.Join(l.err, s.f.Close())
		s.f = nil
	}
}

func (l *Logs) keep(n int, e Event) error {
	b, err := json.Marshal(keptEvent{n, e})
	if err == nil {
		l.written += int64(len(b)) + 1
		_, err = l.events.Write(append(b, '\n'))
	}
	return err
}

func (l *Logs) output(n int, s *stepLog, e Event) error {
	if s.full {
		return nil
	}
	if s.f == nil {
		f, err := os.OpenFile(l.Path(n), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		s.f = f
	}
	if s.marks == 0 || s.marks < maxMarks && (e.Stream != s.mark.Stream || e.Time.Sub(s.mark.Time) >= markEvery) {
		s.marks++
		s.mark = Event{Time: e.Time, Kind: Log, Vertex: e.Vertex, Stream: e.Stream, Current: s.n}
		if err := l.keep(n, s.mark); err != nil {
			return err
		}
	}
	data := e.Data
	if s.n+int64(len(data)) > l.limit {
		s.full = true
		data = fmt.Appendf(data[:l.limit-s.n:l.limit-s.n],
			"\n[strake keeps %s of a step's output: the rest is not in this file]\n", Bytes(l.limit))
	}
	s.n += int64(len(data))
	l.written += int64(len(data))
	_, err := s.f.Write(data)
	return err
}

// Close ends the keeping, and returns the first error of it.
func (l *Logs) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.events == nil {
		return nil
	}
	errs := []error{l.err}
	for _, s := range l.steps {
		if s.f != nil {
			errs = append(errs, s.f.Close())
			s.f = nil
		}
	}
	errs = append(errs, l.events.Close())
	l.events = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("keep logs in %s: %w", l.dir, err)
	}
	return nil
}

// LogsBusy reports whether the build that writes to dir is under way.
func LogsBusy(dir string) bool {
	f, err := os.Open(filepath.Join(dir, eventsFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// ReadLogs calls fn for the events in dir with the numbers of their vertices,
// in the order in which they came. Output comes in pieces of at most 32 KiB,
// whose Data is good until fn returns.
func ReadLogs(dir string, fn func(n int, e Event) error) error {
	// Where the output that an event tells of ends, its successor tells.
	marks := map[int][]int64{}
	err := eachKept(dir, func(k keptEvent) error {
		if k.Kind == Log {
			marks[k.N] = append(marks[k.N], k.Current)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return eachKept(dir, func(k keptEvent) error {
		if k.Kind != Log {
			return fn(k.N, k.Event)
		}
		end := int64(-1)
		if rest := marks[k.N]; len(rest) > 1 {
			end, marks[k.N] = rest[1], rest[1:]
		}
		return readOutput(filepath.Join(dir, logName(k.N)), end, k, fn)
	})
}

func eachKept(dir string, fn func(keptEvent) error) error {
	f, err := os.Open(filepath.Join(dir, eventsFile))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var k keptEvent
		if json.Unmarshal(lines.Bytes(), &k) != nil {
			continue // torn, or being written
		}
		if err := fn(k); err != nil {
			return err
		}
	}
	return lines.Err()
}

func readOutput(path string, end int64, k keptEvent, fn func(int, Event) error) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = io.NewSectionReader(f, k.Current, 1<<62)
	if end >= 0 {
		r = io.LimitReader(r, end-k.Current)
	}
	e := k.Event
	e.Current = 0
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			e.Data = buf[:n]
			if err := fn(k.N, e); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
