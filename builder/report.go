package builder

import (
	"time"

	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// started tells that a vertex runs.
func (bd *build) started(v *vertex) {
	v.mu.Lock()
	v.reported = true
	v.mu.Unlock()
	bd.event(v, progress.Event{Kind: progress.Start, Name: v.step.Name, Internal: v.step.Internal})
}

// done tells that it ended.
func (bd *build) done(v *vertex, err error) {
	e := progress.Event{Kind: progress.Done}
	if err != nil {
		e.Error = err.Error()
	}
	bd.event(v, e)
}

// cached tells that a vertex will not run, once.
func (bd *build) cached(v *vertex) {
	v.mu.Lock()
	again := v.reported
	v.reported = true
	v.mu.Unlock()
	if !again {
		bd.event(v, progress.Event{Kind: progress.Cached, Name: v.step.Name, Internal: v.step.Internal})
	}
}

// reportCached tells of the steps behind a result that was found: nobody asked
// for them.
func (bd *build) reportCached(v *vertex) {
	seen := map[*vertex]bool{}
	var walk func(*vertex)
	walk = func(v *vertex) {
		if v == nil || seen[v] {
			return
		}
		seen[v] = true
		for _, in := range v.inputs {
			walk(in)
		}
		bd.cached(v)
	}
	walk(v)
}

func (bd *build) event(v *vertex, e progress.Event) {
	e.Time = time.Now()
	e.Vertex = v.id
	v.mu.Lock()
	v.outcome.note(e)
	v.mu.Unlock()
	bd.r.Progress(e)
}

// pulling tells that a base image is being downloaded.
func (bd *build) pulling(v *vertex) {
	v.mu.Lock()
	again := v.open
	v.open = true
	v.mu.Unlock()
	if !again {
		bd.started(v)
	}
}

// pulled tells that nothing more will be downloaded for v, if anything was.
func (bd *build) pulled(v *vertex) {
	for v != nil {
		if _, ok := v.step.Op.(*plan.Image); ok {
			v.mu.Lock()
			open := v.open
			v.open = false
			v.mu.Unlock()
			if open {
				bd.done(v, nil)
			}
			return
		}
		if len(v.inputs) == 0 {
			return
		}
		v = v.inputs[0]
	}
}
