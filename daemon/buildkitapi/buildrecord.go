package buildkitapi

import (
	"cmp"
	"errors"
	"maps"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"

	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/state/builds"
)

// Builds of clients are in the records of builds, too, which the commands about
// past builds read (strake history, why and graph). What the API tells of past
// builds is kept apart, in the form that its clients know; see history.

// recordedAttrs are the attributes of the frontend without those that may have
// credentials in them.
func (j *job) recordedAttrs() map[string]string {
	attrs := maps.Clone(j.req.FrontendAttrs)
	delete(attrs, "cache-imports")
	return attrs
}

// beginRecord begins a record of the build. That it can't is no reason not to
// build.
func (j *job) beginRecord() {
	if j.req.Internal {
		return
	}
	attrs := j.recordedAttrs()
	r := builds.Record{
		Ref: j.ref, Context: cmp.Or(attrs["context"], attrs["vcs:localdir:context"]), Frontend: j.req.Frontend, Attrs: attrs,
	}
	for _, x := range j.req.Exporters {
		r.Exporters = append(r.Exporters, builds.Exporter{Type: x.Type, Attrs: x.Attrs})
	}
	b, err := j.s.builds.Begin(r)
	if err != nil {
		j.s.o.Log.Warn("record of a build", "ref", j.ref, "error", err)
		return
	}
	j.mu.Lock()
	j.record = b // clients that know the job already may be building
	j.mu.Unlock()
	j.board.keep(b.Logs.Event)
}

// endRecord completes it.
func (j *job) endRecord(response map[string]string, failed error) {
	if j.record == nil {
		return
	}
	if err := j.record.End(failed, response); err != nil {
		j.s.o.Log.Warn("record of a build", "ref", j.ref, "error", err)
	}
}

// withRecord calls fn with the record of a build, if there is one.
func (s *Server) withRecord(ref string, fn func(builds.Record) error) error {
	r, err := s.builds.Get(ref)
	if errors.Is(err, builds.ErrNotFound) || err == nil && r.Ref != ref {
		return nil
	}
	if err != nil {
		return err
	}
	return fn(r)
}

// recordOf is what filters of the history look at.
func recordOf(r *controlapi.BuildHistoryRecord) builds.Record {
	out := builds.Record{Ref: r.Ref, Status: builds.Completed, Context: r.FrontendAttrs["context"], Attrs: r.FrontendAttrs, Created: r.CreatedAt.AsTime()}
	if git, ok, err := parser.Git(out.Context); ok && err == nil {
		out.Context = git.Remote
	}
	if r.CompletedAt == nil {
		out.Status = builds.Running
		return out
	}
	out.Ended = r.CompletedAt.AsTime()
	switch {
	case r.Error == nil:
	case codes.Code(r.Error.Code) == codes.Canceled || strings.Contains(r.Error.Message, "context canceled"):
		out.Status = builds.Canceled
	default:
		out.Status = builds.Failed
	}
	return out
}
