package builder

import (
	"context"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state/builds"
)

// outcome is what became of a vertex, for the record of the build.
type outcome struct {
	what  builds.Outcome
	miss  string
	start time.Time
	took  time.Duration
}

// note takes note of an event.
func (o *outcome) note(e progress.Event) {
	switch e.Kind {
	case progress.Start:
		o.start = e.Time
	case progress.Cached:
		o.what = builds.Cached
	case progress.Done:
		o.took = e.Time.Sub(o.start)
		switch {
		case e.Error == "":
			o.what = builds.Ran
		case e.IsCanceled():
			o.what = builds.StepStopped
		default:
			o.what = builds.StepFailed
		}
	}
}

// missed says why a stored result was passed over.
func (v *vertex) missed(why string) {
	v.mu.Lock()
	v.outcome.miss = why
	v.mu.Unlock()
}

// steps says what went into the vertices, and what became of them.
func (bd *build) steps() []builds.Step {
	var list []builds.Step
	index := map[*vertex]int{}
	for _, v := range bd.order {
		if bd.vertices[v.step] != v {
			continue // one of our own, behind a plan.Local
		}
		kind, parts := partsOf(v.step)
		if id, ok := v.remote.peek(); ok {
			parts = append(parts, builds.Part{Kind: "content", Value: id})
		}
		s := builds.Step{
			Vertex: v.id, Name: v.step.Name, Source: v.step.Source.String(), Internal: v.step.Internal,
			Platform: platforms.FormatAll(v.step.Platform), Kind: kind, Parts: parts,
		}
		v.mu.Lock()
		s.Outcome, s.Miss, s.Took = v.outcome.what, v.outcome.miss, v.outcome.took
		v.mu.Unlock()
		if k, ok := v.key.peek(); ok {
			s.Key = string(k)
		}
		ids, _ := v.ids.peek()
		for i, in := range v.inputs {
			input := builds.Input{Step: -1}
			if in != nil {
				input.Step = index[in]
			}
			if ids != nil {
				input.ID = ids[i]
			}
			s.Inputs = append(s.Inputs, input)
		}
		index[v] = len(list)
		list = append(list, s)
	}
	return list
}

// selection is the digest of what v uses of its input i, and keeps the list of
// it, unless the last builds had the same.
func (bd *build) selection(ctx context.Context, v *vertex, i int, in file.Input) (digest.Digest, error) {
	d, files, err := selected(ctx, v.step.Op, i, in)
	if err != nil || bd.r.Record == nil || d == "" || bd.r.Record.HasFiles(d) {
		return d, err
	}
	return d, bd.r.Record.KeepFiles(d, func(w *builds.FileWriter) error {
		for _, s := range files {
			if err := s.List(func(f file.Listed) error {
				return w.Add(builds.File{Path: f.Path, Type: string(rune(f.Type)), Mode: f.Mode, UID: f.UID, GID: f.GID, Sum: f.Sum})
			}); err != nil {
				return err
			}
		}
		return nil
	})
}
