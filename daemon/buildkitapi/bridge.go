package buildkitapi

import (
	"context"
	"fmt"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// keyBuild is the key in the metadata of calls that tells which build they are
// part of.
const keyBuild = "buildkit-controlapi-buildid"

// bridge answers clients that are frontends themselves. Its calls name the build
// that they are part of in their metadata.
type bridge struct {
	gwpb.UnimplementedLLBBridgeServer
	s *Server
}

func (b *bridge) job(ctx context.Context) (*job, error) {
	ids := metadata.ValueFromIncomingContext(ctx, keyBuild)
	if len(ids) != 1 {
		return nil, fmt.Errorf("no buildid found in context")
	}
	return b.s.job(ctx, ids[0])
}

func (b *bridge) Ping(ctx context.Context, _ *gwpb.PingRequest) (*gwpb.PongResponse, error) {
	if _, err := b.job(ctx); err != nil {
		return nil, err
	}
	return &gwpb.PongResponse{FrontendAPICaps: gwpb.Caps.All(), LLBCaps: pb.Caps.All(), Workers: b.s.workers()}, nil
}

func (b *bridge) Inputs(ctx context.Context, _ *gwpb.InputsRequest) (*gwpb.InputsResponse, error) {
	j, err := b.job(ctx)
	if err != nil {
		return nil, err
	}
	return &gwpb.InputsResponse{Definitions: j.req.FrontendInputs}, nil
}

// Solve plans what the client asks for. It is run when the client wants to see
// it, at once if it says so.
func (b *bridge) Solve(ctx context.Context, req *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	j, err := b.job(ctx)
	if err != nil {
		return nil, err
	}
	if err := addPolicies(j, req.SourcePolicies); err != nil {
		return nil, clientError(err)
	}
	var res *result
	if req.Frontend != "" {
		if len(req.GetDefinition().GetDef()) > 0 {
			return nil, fmt.Errorf("cannot solve with both Definition and Frontend specified")
		}
		res, err = j.frontend(req.Frontend, req.FrontendOpt, req.FrontendInputs)
	} else {
		res, err = j.solveLLB(req.Definition)
	}
	if err == nil && req.Evaluate {
		err = j.evaluateAll(res)
	}
	if err != nil {
		return nil, clientError(ended(j.ctx, err))
	}
	if !req.AllowResultReturn {
		out := &gwpb.SolveResponse{}
		if res.one != nil {
			out.Ref = res.one.id
		}
		return out, nil
	}
	return &gwpb.SolveResponse{Result: res.wire()}, nil
}

// Return ends the client's work: Control.Solve goes on with what it returned.
func (b *bridge) Return(ctx context.Context, req *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	j, err := b.job(ctx)
	if err != nil {
		return nil, err
	}
	var r returned
	if req.Error != nil {
		r.err = status.ErrorProto(req.Error)
	} else {
		r.res, r.err = j.unwire(req.Result)
	}
	select {
	case j.returned <- r:
		return &gwpb.ReturnResponse{}, nil
	default:
		return nil, fmt.Errorf("the result was returned before")
	}
}

func (b *bridge) refOf(ctx context.Context, id string) (*job, *reference, error) {
	j, err := b.job(ctx)
	if err != nil {
		return nil, nil, err
	}
	ref, err := j.lookup(id)
	return j, ref, err
}

func (b *bridge) Evaluate(ctx context.Context, req *gwpb.EvaluateRequest) (*gwpb.EvaluateResponse, error) {
	j, ref, err := b.refOf(ctx, req.Ref)
	if err == nil {
		err = j.evaluate(ref)
	}
	return &gwpb.EvaluateResponse{}, clientError(err)
}

func (b *bridge) ReadFile(ctx context.Context, req *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	j, ref, err := b.refOf(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	data, err := j.readFile(ref, req.FilePath, req.GetRange().GetOffset(), req.GetRange().GetLength())
	return &gwpb.ReadFileResponse{Data: data}, clientError(err)
}

func (b *bridge) ReadDir(ctx context.Context, req *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	j, ref, err := b.refOf(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	entries, err := j.readDir(ref, req.DirPath, req.IncludePattern)
	return &gwpb.ReadDirResponse{Entries: entries}, clientError(err)
}

func (b *bridge) StatFile(ctx context.Context, req *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	j, ref, err := b.refOf(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	st, err := j.statFile(ref, req.Path)
	return &gwpb.StatFileResponse{Stat: st}, clientError(err)
}

func (b *bridge) ResolveImageConfig(ctx context.Context, req *gwpb.ResolveImageConfigRequest) (*gwpb.ResolveImageConfigResponse, error) {
	j, err := b.job(ctx)
	if err != nil {
		return nil, err
	}
	if err := addPolicies(j, req.SourcePolicies); err != nil {
		return nil, clientError(err)
	}
	p := b.s.o.Platforms[0]
	if req.Platform != nil {
		p = req.Platform.Spec()
	}
	if req.StoreID != "" {
		_, dgst, _ := strings.Cut(req.Ref, "@")
		base, err := j.layout(ctx, req.SessionID, req.StoreID, dgst, p)
		if err != nil {
			return nil, clientError(err)
		}
		return &gwpb.ResolveImageConfigResponse{Digest: dgst, Config: base.Config, Ref: req.Ref}, nil
	}
	base, err := j.onlyImage(ctx, req.Ref, p, req.ResolveMode == pb.AttrImageResolveModeForcePull)
	if err != nil {
		return nil, clientError(err)
	}
	return &gwpb.ResolveImageConfigResponse{Digest: base.Digest.String(), Config: base.Config, Ref: base.Ref}, nil
}

func (b *bridge) ResolveSourceMeta(ctx context.Context, req *gwpb.ResolveSourceMetaRequest) (*gwpb.ResolveSourceMetaResponse, error) {
	conf := &gwpb.ResolveImageConfigRequest{Platform: req.Platform, ResolveMode: req.ResolveMode, SourcePolicies: req.SourcePolicies}
	scheme, ref, _ := strings.Cut(req.GetSource().GetIdentifier(), "://")
	switch scheme {
	case "docker-image":
	case "oci-layout":
		conf.StoreID, conf.SessionID = req.Source.Attrs[pb.AttrOCILayoutStoreID], req.Source.Attrs[pb.AttrOCILayoutSessionID]
	default:
		return &gwpb.ResolveSourceMetaResponse{Source: req.Source}, nil
	}
	conf.Ref = ref
	base, err := b.ResolveImageConfig(ctx, conf)
	if err != nil {
		return nil, err
	}
	src := req.Source.CloneVT()
	src.Identifier = scheme + "://" + base.Ref
	return &gwpb.ResolveSourceMetaResponse{
		Source: src, Image: &gwpb.ResolveSourceImageResponse{Digest: base.Digest, Config: base.Config},
	}, nil
}

// Warn shows a warning of the client's.
func (b *bridge) Warn(ctx context.Context, req *gwpb.WarnRequest) (*gwpb.WarnResponse, error) {
	j, err := b.job(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := digest.Parse(req.Digest); err != nil {
		return nil, err
	}
	j.board.warn(&controlapi.VertexWarning{
		Vertex: req.Digest, Level: req.Level, Short: req.Short, Detail: req.Detail, Url: req.Url, Info: req.Info, Ranges: req.Ranges,
	})
	return &gwpb.WarnResponse{}, nil
}
