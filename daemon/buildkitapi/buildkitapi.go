// Package buildkitapi serves the API of BuildKit's daemon, so that its clients
// (buildctl, docker buildx, its Go client) can build with strake.
//
// A client opens a session (a connection turned around, over which we ask it
// for files, secrets and credentials) and sends a Solve. That either names the
// frontend dockerfile.v0, or carries a graph in BuildKit's form (LLB), or has
// neither: then the client itself is the frontend, and drives the build by
// calls to LLBBridge until it sends a Return. All three become plans. A result
// is a reference to a plan that nobody has run: steps run when files of it are
// asked for, or when it is exported.
//
//	s, err := buildkitapi.New(buildkitapi.Options{Root: root, Open: open, …})
//	err = s.Serve(ctx, listener) // until ctx ends
//
// Clients are not trusted further than the build files they send: what they say
// is checked, graphs are bounded, and an error in one build ends that build.
package buildkitapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/grpcerrors"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/cache/remote/connect"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/state"
	"github.com/strake-build/strake/state/builds"
)

// Options is what a Server works with.
type Options struct {
	Root *state.Root
	// Open opens the store for one build, with the credentials of its client.
	Open func(registry.Credentials) (*Store, error)
	// Platforms are those that can be built for; the first is this machine's.
	Platforms []ocispec.Platform
	Version   string
	// Allow are the entitlements that a client may ask for
	// ("network.host", "security.insecure").
	Allow []string
	// ProvenanceEnv is added to the internal parameters of provenance.
	ProvenanceEnv map[string]any
	// Log takes what nobody else is told; nil: nothing is logged.
	Log *slog.Logger
}

// Store is what one build works with. It holds leases until it is closed.
type Store struct {
	Builder *builder.Builder
	Packer  *image.Packer
	// Caches opens remote caches; nil: there are none.
	Caches *connect.Connector
	Close  func() error
}

// Server serves BuildKit's API. It may serve several listeners.
type Server struct {
	controlapi.UnimplementedControlServer
	o        Options
	id       string // of the worker
	sessions *session.Manager
	contexts contexts
	grpc     *grpc.Server
	health   *health.Server
	now      func() time.Time

	mu      sync.Mutex
	jobs    map[string]*job
	waiting map[string]chan struct{} // closed when the job is there
	history *history
	builds  *builds.Store
	pruning sync.Mutex
	// stopping is closed when the server is.
	stopping chan struct{}
}

// The bounds of one message, and how long a call waits for the build it is
// about: clients make calls for a build before the one that starts it.
const (
	maxMessage = 16 << 20
	jobWait    = 5 * time.Second
)

// New returns a server.
func New(o Options) (*Server, error) {
	if len(o.Platforms) == 0 {
		return nil, errors.New("the platform of this machine is not known")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	s := &Server{
		o: o, sessions: sessions, health: health.NewServer(), now: time.Now,
		jobs: map[string]*job{}, waiting: map[string]chan struct{}{}, stopping: make(chan struct{}),
	}
	if s.id, err = workerID(o.Root); err != nil {
		return nil, err
	}
	s.contexts.root = o.Root
	s.builds = builds.Open(o.Root, builds.Limits{})
	if s.history, err = openHistory(o.Root, func(err error) { o.Log.Warn(err.Error()) }); err != nil {
		return nil, err
	}
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(s.unary, grpcerrors.UnaryServerInterceptor),
		grpc.ChainStreamInterceptor(s.stream, grpcerrors.StreamServerInterceptor),
	}
	s.grpc = grpc.NewServer(opts...)
	controlapi.RegisterControlServer(s.grpc, s)
	gwpb.RegisterLLBBridgeServer(s.grpc, &bridge{s: s})
	contentapi.RegisterContentServer(s.grpc, contentService{blobs: s.history.blobs})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	return s, nil
}

// errStopping is why builds end when the daemon does.
var errStopping = errors.New("the daemon is stopping")

// stopWait is how long builds may take to stop when the server does.
const stopWait = 10 * time.Second

// Serve answers on l until ctx ends, and then lets no build go on. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.shutdown()
	})
	err := s.grpc.Serve(l)
	if stop() {
		return err
	}
	<-stopped
	return nil
}

// shutdown cancels all builds, and ends connections when they have ended.
func (s *Server) shutdown() {
	close(s.stopping)
	s.health.Shutdown()
	s.mu.Lock()
	for _, j := range s.jobs {
		j.cancel(errStopping)
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	// Sessions are streams that have no end of their own.
	deadline := time.NewTimer(stopWait)
	defer deadline.Stop()
	idle := time.NewTicker(20 * time.Millisecond)
	defer idle.Stop()
	for s.busy() {
		select {
		case <-deadline.C:
			s.grpc.Stop()
			<-done
			return
		case <-idle.C:
		}
	}
	s.grpc.Stop()
	<-done
}

func (s *Server) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.jobs) > 0
}

// unary and stream keep a bug that one request meets from ending all builds.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
	defer s.recover(info.FullMethod, &err)
	return next(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer s.recover(info.FullMethod, &err)
	return next(srv, ss)
}

func (s *Server) recover(method string, err *error) {
	if r := recover(); r != nil {
		s.o.Log.Error("bug", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "%s: bug in the daemon: %v", method, r)
	}
}

// addJob makes a job known.
func (s *Server) addJob(j *job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.jobs[j.ref]; ok {
		return fmt.Errorf("job ID %s exists", j.ref)
	}
	s.jobs[j.ref] = j
	if ch, ok := s.waiting[j.ref]; ok {
		close(ch)
		delete(s.waiting, j.ref)
	}
	return nil
}

func (s *Server) dropJob(j *job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.jobs, j.ref)
}

func (s *Server) running(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[ref] != nil
}

// job finds a build, waiting for it a little.
func (s *Server) job(ctx context.Context, ref string) (*job, error) {
	ctx, cancel := context.WithTimeout(ctx, jobWait)
	defer cancel()
	for {
		s.mu.Lock()
		j, ok := s.jobs[ref]
		if !ok && s.waiting[ref] == nil {
			s.waiting[ref] = make(chan struct{})
		}
		ch := s.waiting[ref]
		s.mu.Unlock()
		if ok {
			return j, nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			s.mu.Lock()
			if s.waiting[ref] == ch {
				delete(s.waiting, ref)
			}
			s.mu.Unlock()
			return nil, status.Errorf(codes.NotFound, "no such job %s", ref)
		}
	}
}
