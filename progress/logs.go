package progress

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Logs keeps what a build said in a directory of its own: "events.jsonl" has
// every event but output, and "<n>.log" the output of the vertex that displays
// show as #n, byte for byte. The directory's name begins with the time.
type Logs struct {
	root, dir string
	limits    LogLimits
	events    *os.File // locked, as a sign that the build is under way
	steps     map[int]*stepLog
	written   int64 // bytes, of all files
	err       error
}

// LogLimits bounds logs. The zero value is the default. Builds and Bytes may be
// exceeded by an eighth: old logs are not looked at after every build.
type LogLimits struct {
	Builds int   // how many builds' logs are kept; 0 is 100
	Bytes  int64 // in all, of builds that are over; 0 is 256 MiB
	Step   int64 // of one step; 0 is 1 GiB. What is beyond is not kept.
}

func (l LogLimits) withDefaults() LogLimits {
	if l.Builds == 0 {
		l.Builds = 100
	}
	if l.Bytes == 0 {
		l.Bytes = 256 << 20
	}
	if l.Step == 0 {
		l.Step = 1 << 30
	}
	return l
}

// stepLog is a step's log file; f is nil when it is closed.
type stepLog struct {
	f    *os.File
	n    int64
	full bool
}

// OpenLogs makes a directory in root for the logs of a build that begins now.
func OpenLogs(root string, limits LogLimits) (*Logs, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(root, time.Now().UTC().Format("20060102T150405.000Z-"))
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, eventsFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return &Logs{root: root, dir: dir, limits: limits.withDefaults(), events: f, steps: map[int]*stepLog{}}, nil
}

const eventsFile = "events.jsonl"

// Dir is the build's directory.
func (l *Logs) Dir() string { return l.dir }

// Path is the file of the vertex with the number n, whether or not it wrote
// anything; see Display.Number.
func (l *Logs) Path(n int) string { return filepath.Join(l.dir, fmt.Sprintf("%d.log", n)) }

// event keeps an event of vertex n. The first error ends the keeping, and comes
// from close: a build does not fail for its logs.
func (l *Logs) event(n int, e Event) {
	if l.err != nil {
		return
	}
	if e.Kind == Log {
		l.err = l.output(n, e.Data)
		return
	}
	b, err := json.Marshal(struct {
		N int `json:"n,omitempty"`
		Event
	}{n, e})
	if err == nil {
		l.written += int64(len(b)) + 1
		_, err = l.events.Write(append(b, '\n'))
	}
	l.err = err
	if s := l.steps[n]; e.Kind == Done && s != nil && s.f != nil {
		l.err = errors.Join(l.err, s.f.Close())
		s.f = nil
	}
}

func (l *Logs) output(n int, data []byte) error {
	s := l.steps[n]
	if s == nil {
		s = &stepLog{}
		l.steps[n] = s
	}
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
	if s.n+int64(len(data)) > l.limits.Step {
		s.full = true
		data = fmt.Appendf(data[:l.limits.Step-s.n:l.limits.Step-s.n],
			"\n[strake keeps %s of a step's output: the rest is not in this file]\n", Bytes(l.limits.Step))
	}
	s.n += int64(len(data))
	l.written += int64(len(data))
	_, err := s.f.Write(data)
	return err
}

// close closes the files and removes the oldest builds that are too many.
func (l *Logs) close() error {
	errs := []error{l.err}
	for _, s := range l.steps {
		if s.f != nil {
			errs = append(errs, s.f.Close())
			s.f = nil
		}
	}
	errs = append(errs, l.prune(), l.events.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("keep logs in %s: %w", l.dir, err)
	}
	return nil
}

// prune removes old logs, the oldest first, but those of builds under way.
func (l *Logs) prune() error {
	names, err := os.ReadDir(l.root)
	if err != nil {
		return err
	}
	builds := l.limits.Builds
	if len(names) <= builds+builds/8 && l.written <= l.limits.Bytes/int64(builds) {
		return nil // if every build is like this one, none is too many
	}
	slices.SortFunc(names, func(a, b fs.DirEntry) int { return strings.Compare(b.Name(), a.Name()) })
	var total int64
	var errs []error
	for i, e := range names {
		dir := filepath.Join(l.root, e.Name())
		if !e.IsDir() || dir == l.dir {
			continue
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // another process was faster
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				total += info.Size()
			}
		}
		if i < l.limits.Builds && total <= l.limits.Bytes || busy(dir) {
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// busy reports whether the build that writes to dir is under way.
func busy(dir string) bool {
	f, err := os.Open(filepath.Join(dir, eventsFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}
