package buildkitapi

import (
	"context"
	"errors"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/state"
)

// workerID is the identity of the store, made at random once.
func workerID(root *state.Root) (string, error) {
	const name = "workerid"
	data, err := readSmall(root.Path(name))
	if err == nil && len(data) > 0 {
		return string(data), nil
	}
	id := identity.NewID()
	return id, root.WriteFile(root.Path(name), []byte(id), 0o644, false)
}

// Session gives the daemon a way to call the client.
func (s *Server) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-closed:
			cancel(errors.New("the client closed its session"))
		case <-stop:
		}
	}()
	return s.sessions.HandleConn(ctx, conn, opts)
}

// Status streams the progress of a build until it ends.
func (s *Server) Status(req *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	if r := s.history.recorded(req.Ref); r != nil && !s.running(req.Ref) {
		return s.history.replay(r, stream.Send)
	}
	j, err := s.job(stream.Context(), req.Ref)
	if err != nil {
		return err
	}
	return j.board.follow(stream.Context(), stream.Send)
}

// Solve builds.
func (s *Server) Solve(ctx context.Context, req *controlapi.SolveRequest) (_ *controlapi.SolveResponse, err error) {
	if req.Ref == "" {
		return nil, status.Error(codes.InvalidArgument, "the build has no ref")
	}
	j, err := s.newJob(ctx, req)
	if err != nil {
		return nil, err
	}
	defer j.close()
	if err := s.addJob(j); err != nil {
		return nil, err
	}
	defer s.dropJob(j)
	defer j.board.close()
	j.beginRecord()
	rec := s.history.started(j)
	var response map[string]string
	defer func() {
		s.history.ended(j, rec, response, err)
		j.endRecord(response, err)
	}()
	response, err = j.solve()
	if err != nil {
		return nil, clientError(ended(ctx, err))
	}
	return &controlapi.SolveResponse{ExporterResponse: response}, nil
}

func (j *job) solve() (map[string]string, error) {
	outputs, err := j.outputs()
	if err != nil {
		return nil, err
	}
	if err := j.openCaches(); err != nil {
		return nil, err
	}
	response, err := j.buildAndExport(outputs)
	response, ferr := j.finishCaches(response)
	if err == nil {
		err = ferr
	}
	return response, err
}

func (j *job) buildAndExport(outputs []output) (map[string]string, error) {
	res, err := j.build()
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	j.done = res
	j.mu.Unlock()
	for {
		response, err := j.export(res, outputs)
		if err == nil || !j.again(err) {
			return response, err
		}
	}
}

// build makes the result that is to be exported.
func (j *job) build() (*result, error) {
	req := j.req
	switch {
	case req.Definition != nil && len(req.Definition.Def) > 0 && req.Frontend == "":
		res, err := j.solveLLB(req.Definition)
		if err != nil {
			return nil, err
		}
		return res, j.evaluate(res.one)
	case req.Frontend != "":
		res, err := j.frontend(req.Frontend, req.FrontendAttrs, req.FrontendInputs)
		if err != nil {
			return nil, err
		}
		return res, j.evaluateAll(res)
	}
	select {
	case r := <-j.returned:
		if r.err != nil {
			return nil, r.err
		}
		return r.res, j.evaluateAll(r.res)
	case <-j.ctx.Done():
		return nil, context.Cause(j.ctx)
	}
}

func (j *job) evaluateAll(r *result) error {
	refs := []*reference{r.one}
	for _, ref := range r.many {
		refs = append(refs, ref)
	}
	return j.evaluate(refs...)
}

// ListWorkers tells of the one worker there is.
func (s *Server) ListWorkers(ctx context.Context, req *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	return &controlapi.ListWorkersResponse{Record: s.workers()}, nil
}

func (s *Server) workers() []*apitypes.WorkerRecord {
	return []*apitypes.WorkerRecord{{
		ID: s.id,
		Labels: map[string]string{
			"org.mobyproject.buildkit.worker.executor":    "strake",
			"org.mobyproject.buildkit.worker.snapshotter": "overlayfs",
		},
		Platforms:       pb.PlatformsFromSpec(s.o.Platforms),
		BuildkitVersion: s.version(),
	}}
}

func (s *Server) version() *apitypes.BuildkitVersion {
	return &apitypes.BuildkitVersion{
		Package: "github.com/strake-build/strake", Version: s.o.Version, DockerfileVersion: parser.Version,
	}
}

// Info tells the version.
func (s *Server) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{BuildkitVersion: s.version()}, nil
}

// unsupported is the answer to what we don't do.
func unsupported(format string, args ...any) error {
	return status.Errorf(codes.Unimplemented, format+" is not supported", args...)
}
