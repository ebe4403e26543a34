// Package builds keeps records of the last builds: what was asked for, what
// each step was made of, what it said and how it ended.
//
// builds/<time>-<ref>/ of the store holds one build:
//
//	build.json    a Record; replaced whole when the build ends
//	steps.json    what went into each step (see Step); written before the
//	              first one runs and when the build ends
//	files-<hex>   lists of files that steps used; see files.go
//	events.jsonl  its progress, and <n>.log the output of the vertex #n; see
//	              progress.Logs. The file is locked while the build runs.
//	pinned        is there if the build is to be kept
//
// Any number of processes add and remove builds. A build whose record says that
// it runs, but whose lock is free, was killed. The oldest builds go when there
// are too many, or they take too much, but for those that run or are pinned.
//
// Secrets are never in a record: builds know their IDs only, credentials in
// URLs are left out, and so are values of build arguments whose names say that
// they are secret.
package builds

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state"
)

// ErrNotFound: there is no record of such a build.
var ErrNotFound = errors.New("no such build")

// Status says how a build stands.
type Status string

// The states of a build.
const (
	Running   Status = "running"
	Completed Status = "completed"
	Failed    Status = "error"
	Canceled  Status = "canceled" // stopped by its user, or killed
)

// Record is what is known of a build as a whole. Requests are in the form of
// BuildKit's frontend attributes ("filename", "target", "platform",
// "build-arg:NAME", "context:NAME", "label:NAME", "no-cache", …) whether they
// came by its API or from the command line.
type Record struct {
	Ref string `json:"ref"` // names the build; see NewRef
	// Context is the build context as the user gave it: an absolute path, a
	// URL, "-", or empty.
	Context   string            `json:"context,omitempty"`
	Frontend  string            `json:"frontend,omitempty"` // "dockerfile.v0"; empty for LLB
	Attrs     map[string]string `json:"attrs,omitempty"`
	Exporters []Exporter        `json:"exporters,omitempty"`

	Status  Status    `json:"status"`
	Created time.Time `json:"created"`
	Ended   time.Time `json:"ended,omitzero"`
	Error   string    `json:"error,omitempty"`
	// Response is what the exporters said, by BuildKit's keys
	// ("containerimage.digest").
	Response map[string]string `json:"response,omitempty"`
	Counts   Counts            `json:"counts"`

	// Pinned builds are never removed on their own. It is kept apart from the
	// rest: see Store.Pin.
	Pinned bool `json:"-"`
	// Dir holds the files of the build.
	Dir string `json:"-"`
}

// Exporter is an output that was asked for.
type Exporter struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs,omitempty"`
}

// Counts are numbers of steps and warnings.
type Counts struct {
	Total     int32 `json:"total"`
	Cached    int32 `json:"cached"`
	Completed int32 `json:"completed"` // the cached ones included
	Warnings  int32 `json:"warnings,omitempty"`
}

// Limits bounds what is kept. The zero value is the default. Builds and Bytes
// may be exceeded by an eighth: old builds are not looked at after every build.
type Limits struct {
	Builds int           // how many builds are kept; 0 is 100
	Bytes  int64         // in all, of builds that are over; 0 is 256 MiB
	Age    time.Duration // builds that are older go; 0 is no limit
	Step   int64         // of the output of one step; 0 is half of Bytes. What is beyond is not kept.
}

func (l Limits) withDefaults() Limits {
	if l.Builds == 0 {
		l.Builds = 100
	}
	if l.Bytes == 0 {
		l.Bytes = 256 << 20
	}
	if l.Step == 0 {
		l.Step = l.Bytes / 2
	}
	return l
}

// Store is the directory of builds of a store root. It may be used by many
// goroutines.
type Store struct {
	root   *state.Root
	dir    string
	limits Limits
}

// Open returns the builds of a store root.
func Open(root *state.Root, limits Limits) *Store {
	return &Store{root: root, dir: root.Path("builds"), limits: limits.withDefaults()}
}

// NewRef makes a name for a build.
func NewRef() string { return strings.ToLower(rand.Text()) }

const (
	recordFile = "build.json"
	stepsFile  = "steps.json"
	pinnedFile = "pinned"
	timeFormat = "20060102T150405.000Z-"

	// maxFile bounds what is read of a file.
	maxFile = 64 << 20
)

// Build is a build under way.
type Build struct {
	store  *Store
	record Record
	// Logs takes the build's events.
	Logs *progress.Logs

	mu    sync.Mutex
	last  []string // the builds before it
	order []any
	steps map[any][]Step
}

// SetSteps says what went into the steps of a plan that the build ran. A build
// may run several; if it runs one again, the last time counts.
func (b *Build) SetSteps(plan any, steps []Step) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.steps[plan]; !ok {
		b.order = append(b.order, plan)
	}
	b.steps[plan] = steps
}

// Plan is SetSteps before the first step of the plan runs: others can see what
// there is to do.
func (b *Build) Plan(plan any, steps []Step) error {
	b.SetSteps(plan, steps)
	return b.write(stepsFile, b.Steps())
}

// Steps are the steps of all plans that the build ran so far.
func (b *Build) Steps() []Step {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Step
	for _, plan := range b.order {
		first := len(all)
		for _, s := range b.steps[plan] {
			s.Inputs = slices.Clone(s.Inputs)
			for i := range s.Inputs {
				if s.Inputs[i].Step >= 0 {
					s.Inputs[i].Step += first
				}
			}
			all = append(all, s)
		}
	}
	return all
}

// Begin makes a record of a build that begins now. Ref and Created are made if
// they are empty.
func (s *Store) Begin(r Record) (*Build, error) {
	if r.Ref == "" {
		r.Ref = NewRef()
	}
	if r.Created.IsZero() {
		r.Created = time.Now().UTC()
	}
	r.Status = Running
	r.Dir = filepath.Join(s.dir, r.Created.UTC().Format(timeFormat)+dirRef(r.Ref))
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep a record of the build: %w", err)
	}
	logs, err := progress.OpenLogs(r.Dir, s.limits.Step)
	if err != nil {
		return nil, fmt.Errorf("keep a record of the build: %w", err)
	}
	r.Context, r.Attrs = scrubURL(r.Context), scrubAttrs(r.Attrs)
	b := &Build{store: s, record: r, Logs: logs, steps: map[any][]Step{}}
	if err := b.write(recordFile, b.record); err != nil {
		return nil, errors.Join(err, logs.Close())
	}
	return b, nil
}

// Record is what is known of the build so far.
func (b *Build) Record() Record { return b.record }

// End writes how the build ended: err is what it failed with. It closes the
// logs and removes builds that are too many.
func (b *Build) End(err error, response map[string]string) error {
	r := &b.record
	r.Ended, r.Response = time.Now().UTC(), response
	switch {
	case err == nil:
		r.Status = Completed
	case errors.Is(err, context.Canceled):
		r.Status = Canceled
	default:
		r.Status, r.Error = Failed, err.Error()
	}
	c := b.Logs.Counts()
	r.Counts = Counts{Total: int32(c.Vertices), Cached: int32(c.Cached), Completed: int32(c.Completed), Warnings: int32(c.Warnings)}
	var errs []error
	if steps := b.Steps(); len(steps) > 0 {
		b.linkFiles(steps)
		errs = append(errs, b.write(stepsFile, steps))
	}
	errs = append(errs, b.write(recordFile, r), b.store.prune(r.Dir, b.Logs.Written()), b.Logs.Close())
	return errors.Join(errs...)
}

// linkFiles keeps the lists of files that the steps refer to.
func (b *Build) linkFiles(steps []Step) {
	for _, s := range steps {
		for _, in := range s.Inputs {
			if d, ok := in.Content(); ok {
				b.HasFiles(d)
			}
		}
	}
}

func (b *Build) write(name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = b.store.root.WriteFile(filepath.Join(b.record.Dir, name), append(data, '\n'), 0o600, false)
	}
	if err != nil {
		return fmt.Errorf("keep a record of the build: %w", err)
	}
	return nil
}

// List returns all builds, the newest first. What can't be read is left out.
func (s *Store) List() ([]Record, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var list []Record
	for _, name := range names {
		if r, err := s.read(name); err == nil {
			list = append(list, r)
		}
	}
	return list, nil
}

// names are the directories of builds, the newest first.
func (s *Store) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read builds: %w", err)
	}
	var names []string
	for _, e := range slices.Backward(entries) {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (s *Store) read(name string) (Record, error) {
	r := Record{Dir: filepath.Join(s.dir, name)}
	if err := readJSON(filepath.Join(r.Dir, recordFile), &r); err != nil {
		return r, err
	}
	if _, err := os.Lstat(filepath.Join(r.Dir, pinnedFile)); err == nil {
		r.Pinned = true
	}
	if r.Status == Running && !progress.LogsBusy(r.Dir) {
		// It may have ended just now.
		if err := readJSON(filepath.Join(r.Dir, recordFile), &r); err != nil {
			return r, err
		}
		if r.Status == Running {
			r.Status, r.Error = Canceled, "the process that built was killed"
		}
	}
	return r, nil
}

// Get finds a build by its ref or the beginning of it. "^" is the last build,
// "^1" the one before it, and so on.
func (s *Store) Get(ref string) (Record, error) {
	list, err := s.List()
	if err != nil {
		return Record{}, err
	}
	if rest, ok := strings.CutPrefix(ref, "^"); ok {
		n := 0
		if _, err := fmt.Sscanf(rest, "%d", &n); rest != "" && err != nil || n < 0 {
			return Record{}, fmt.Errorf("%s: ^ or ^N is meant, with N a number: the last build, or the Nth before it", ref)
		}
		if n >= len(list) {
			return Record{}, fmt.Errorf("%s: %w: %d are kept", ref, ErrNotFound, len(list))
		}
		return list[n], nil
	}
	var found []Record
	for _, r := range list {
		if r.Ref == ref {
			return r, nil
		}
		if ref != "" && strings.HasPrefix(r.Ref, ref) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return Record{}, fmt.Errorf("%s: %w", ref, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Record{}, fmt.Errorf("%s: %d builds begin like that; give more of the name", ref, len(found))
}

// Steps reads what went into the steps of a build; none if it was killed.
func (r Record) Steps() ([]Step, error) {
	var steps []Step
	err := readJSON(filepath.Join(r.Dir, stepsFile), &steps)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return steps, err
}

func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Pin keeps a build, or no longer.
func (s *Store) Pin(r Record, pinned bool) error {
	path := filepath.Join(r.Dir, pinnedFile)
	if pinned {
		return s.root.WriteFile(path, nil, 0o600, false)
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Remove removes a build that is over.
func (s *Store) Remove(r Record) error {
	if progress.LogsBusy(r.Dir) {
		return fmt.Errorf("%s: the build has not ended", r.Ref)
	}
	return os.RemoveAll(r.Dir)
}

// prune removes builds that are too many, too old or too large, the oldest
// first. written is what the build in dir wrote.
func (s *Store) prune(dir string, written int64) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	keep := s.limits.Builds
	few := len(names) <= keep+keep/8 && written <= s.limits.Bytes/int64(keep)
	if few && (s.limits.Age == 0 || len(names) == 0 || !s.tooOld(names[len(names)-1])) {
		return nil // if every build is like this one, none is too many
	}
	var total int64
	var errs []error
	for i, name := range names {
		d := filepath.Join(s.dir, name)
		files, err := os.ReadDir(d)
		if err != nil {
			continue // another process was faster
		}
		pinned := false
		var size int64
		for _, f := range files {
			pinned = pinned || f.Name() == pinnedFile
			if info, err := f.Info(); err == nil {
				// Builds share lists of files.
				size += info.Size() / max(1, int64(info.Sys().(*syscall.Stat_t).Nlink))
			}
		}
		if pinned {
			continue
		}
		total += size
		if i < keep && total <= s.limits.Bytes && !s.tooOld(name) || d == dir || progress.LogsBusy(d) {
			continue
		}
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

func (s *Store) tooOld(name string) bool {
	if s.limits.Age == 0 || len(name) < len(timeFormat) {
		return false
	}
	t, err := time.Parse(timeFormat, name[:len(timeFormat)])
	return err == nil && time.Since(t) > s.limits.Age
}

// dirRef is ref in the name of a directory.
func dirRef(ref string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_.-", r)
	}
	if ref != "" && len(ref) <= 64 && ref[0] != '.' && ref[0] != '-' && strings.IndexFunc(ref, func(r rune) bool { return !plain(r) }) < 0 {
		return ref
	}
	sum := sha256.Sum256([]byte(ref))
	return hex.EncodeToString(sum[:16])
}

// Read calls fn for the events of a build in their order, output included: its
// chunks may be joined to larger ones.
func (r Record) Read(fn func(n int, e progress.Event) error) error {
	return progress.ReadLogs(r.Dir, fn)
}
