package buildkitapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/network"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/state"
)

func TestMain(m *testing.M) {
	linux.Main() // sandboxes start this program again
	os.Exit(m.Run())
}

// mutations is how many requests TestMutatedRequests sends.
const mutations = 10_000

// TestMutatedRequests sends requests that were damaged in transit, or by
// somebody with a purpose, to a server that real builds go on at: each gets an
// answer, none makes the server panic, and the builds end as they should.
func TestMutatedRequests(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: processes of mutated requests are run in sandboxes, which only root can make here")
	}
	log := &panics{}
	c := startServer(t, log)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	stop := make(chan struct{})
	var good atomic.Int32
	var builds sync.WaitGroup
	builds.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			_, err := controlapi.NewControlClient(c).Solve(ctx, &controlapi.SolveRequest{
				Ref: "good" + digest.FromString(string(rune(n))).Encoded()[:20], Definition: mkfileGraph(t, "content "+string(rune(n))),
			})
			if err != nil {
				t.Errorf("build %d beside the mutations: %v", n, err)
				return
			}
			good.Add(1)
		}
	})

	seeds := requests(t)
	var next atomic.Int64
	var senders sync.WaitGroup
	for w := range 8 {
		senders.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			for next.Add(1) <= mutations {
				s := seeds[r.IntN(len(seeds))]
				send(ctx, c, s, mutated(r, s.body, seeds), r.IntN(3) > 0)
			}
		})
	}
	senders.Wait()
	close(stop)
	builds.Wait()
	if ctx.Err() != nil {
		t.Error("the requests took more than two minutes")
	}
	if good.Load() == 0 {
		t.Error("no build ended beside the mutations")
	}
	if found := log.found(); found != "" {
		t.Errorf("the server met a bug:\n%s", found)
	}
	t.Logf("%d mutated requests, %d builds beside them", mutations, good.Load())
}

// seed is a request that means something.
type seed struct {
	method string
	stream bool
	body   []byte
}

type marshaler interface{ MarshalVT() ([]byte, error) }

// liveRef is a build that waits for its client throughout.
const liveRef = "live"

// requests are sound ones of all kinds.
func requests(t *testing.T) (out []seed) {
	add := func(method string, stream bool, m marshaler) {
		data, err := m.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, seed{method, stream, data})
	}
	const control, bridge = "/moby.buildkit.v1.Control/", "/moby.buildkit.v1.frontend.LLBBridge/"
	graphs := []*pb.Definition{mkfileGraph(t, "x"), execGraph(t), fileGraph(t), sourceGraph(t)}
	for _, def := range graphs {
		add(control+"Solve", false, &controlapi.SolveRequest{
			Ref: "solve", Definition: def, Entitlements: []string{"network.host"},
			Exporters: []*controlapi.Exporter{{Type: "image", Attrs: map[string]string{"name": "a:1", "compression": "zstd", "annotation.k": "v"}}},
			Cache:     &controlapi.CacheOptions{Imports: []*controlapi.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"src": "x"}}}},
		})
		add(bridge+"Solve", false, &gwpb.SolveRequest{Definition: def, Evaluate: true, AllowResultReturn: true})
		add(bridge+"Solve", false, &gwpb.SolveRequest{Frontend: frontendDockerfile, FrontendInputs: map[string]*pb.Definition{"dockerfile": def, "context": def}, FrontendOpt: map[string]string{
			"platform": "linux/amd64,linux/arm64", "build-arg:A": "b", "context:x": "input:context", "add-hosts": "a=1.2.3.4", "ulimit": "nofile=1:2",
			"attest:provenance": "mode=max", "no-cache": "a,b", "requestid": "frontend.lint", "shm-size": "1024",
		}})
		add(bridge+"Return", false, &gwpb.ReturnRequest{Result: &gwpb.Result{
			Result: &gwpb.Result_Ref{Ref: &gwpb.Ref{Id: "x", Def: def}}, Metadata: map[string][]byte{keyPlatforms: []byte(`{"Platforms":[{"ID":"linux/amd64"}]}`), keyConfig: []byte(`{}`)},
		}})
	}
	add(bridge+"ReadFile", false, &gwpb.ReadFileRequest{Ref: "x", FilePath: "/f", Range: &gwpb.FileRange{Offset: 1, Length: 2}})
	add(bridge+"ReadDir", false, &gwpb.ReadDirRequest{Ref: "x", DirPath: "/", IncludePattern: "*"})
	add(bridge+"StatFile", false, &gwpb.StatFileRequest{Ref: "x", Path: "/f"})
	add(bridge+"Evaluate", false, &gwpb.EvaluateRequest{Ref: "x"})
	add(bridge+"Warn", false, &gwpb.WarnRequest{Digest: digest.FromString("v").String(), Level: 1, Short: []byte("short"), Info: &pb.SourceInfo{Filename: "f"}})
	add(bridge+"ResolveSourceMeta", false, &gwpb.ResolveSourceMetaRequest{Source: &pb.SourceOp{Identifier: "local://x"}, Platform: &pb.Platform{OS: "linux"}})
	add(control+"Status", true, &controlapi.StatusRequest{Ref: "solve"})
	add(control+"DiskUsage", false, &controlapi.DiskUsageRequest{Filter: []string{"type==regular"}, AgeLimit: 1})
	add(control+"ListWorkers", false, &controlapi.ListWorkersRequest{Filter: []string{"id==x"}})
	add(control+"ListenBuildHistory", true, &controlapi.BuildHistoryRequest{EarlyExit: true, Filter: []string{"startedAt>1h,status==error"}, Limit: 3})
	add(control+"UpdateBuildHistory", false, &controlapi.UpdateBuildHistoryRequest{Ref: "solve", Pinned: true})
	add(control+"Prune", true, &controlapi.PruneRequest{Filter: []string{"id~=^x"}, KeepDuration: 1 << 40, MaxUsedSpace: 1 << 40})
	// The first message of a session is the beginning of HTTP/2.
	add(control+"Session", true, &controlapi.BytesMessage{Data: []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")})
	out = append(out, seed{"/containerd.services.content.v1.Content/Read", true, contentRequest(t)})
	return out
}

func contentRequest(t *testing.T) []byte {
	t.Helper()
	req := &contentapi.ReadContentRequest{Digest: digest.FromString("x").String(), Offset: 3, Size: 4}
	data, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mkfileGraph(t testing.TB, data string) *pb.Definition {
	g := &graph{t: t}
	return g.end(g.add(fileOp(nil, &pb.FileAction{Input: -1, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Mkfile{
		Mkfile: &pb.FileActionMkFile{Path: "/Dockerfile", Data: []byte("FROM scratch\nARG A\nCOPY Dockerfile /f\n# " + data), Mode: 0o644},
	}})))
}

// execGraph would run a process; there is no such program.
func execGraph(t testing.TB) *pb.Definition {
	g := &graph{t: t}
	base := g.add(fileOp(nil, mkdir(-1, 0, "/d")))
	return g.end(g.add(&pb.Op{Inputs: []*pb.Input{base}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{
		Meta: &pb.Meta{Args: []string{"/bin/true"}, Env: []string{"A=b"}, Cwd: "/", User: "1:2", ProxyEnv: &pb.ProxyEnv{HttpProxy: "p"}},
		Mounts: []*pb.Mount{
			{Input: 0, Dest: "/", Output: 0},
			{Input: -1, Dest: "/tmp", MountType: pb.MountType_TMPFS, Output: -1, TmpfsOpt: &pb.TmpfsOpt{Size: 4096}},
			{Input: -1, Dest: "/s", MountType: pb.MountType_SECRET, Output: -1, SecretOpt: &pb.SecretOpt{ID: "s", Mode: 0o400}},
			{Input: -1, Dest: "/c", MountType: pb.MountType_CACHE, Output: -1, CacheOpt: &pb.CacheOpt{ID: "c"}},
		},
		Secretenv: []*pb.SecretEnv{{ID: "s", Name: "S"}},
	}}}))
}

func fileGraph(t testing.TB) *pb.Definition {
	g := &graph{t: t}
	from := g.add(fileOp(nil, mkdir(-1, 0, "/d")))
	made := g.add(fileOp([]*pb.Input{from, from},
		&pb.FileAction{Input: 0, SecondaryInput: 1, Output: -1, Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: "/d", Dest: "/e", Mode: -1, AllowWildcard: true, CreateDestPath: true}}},
		&pb.FileAction{Input: 2, SecondaryInput: -1, Output: -1, Action: &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{Oldpath: "/e", Newpath: "/l"}}},
		&pb.FileAction{Input: 3, SecondaryInput: -1, Output: 0, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/d", AllowNotFound: true}}},
	))
	merged := g.add(&pb.Op{Inputs: []*pb.Input{from, made}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}})
	return g.end(g.add(&pb.Op{Inputs: []*pb.Input{from, merged}, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: 0}, Upper: &pb.UpperDiffInput{Input: 1}}}}))
}

func sourceGraph(t testing.TB) *pb.Definition {
	g := &graph{t: t}
	return g.end(g.add(&pb.Op{Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}, Op: &pb.Op_Source{Source: &pb.SourceOp{
		Identifier: "local://context", Attrs: map[string]string{pb.AttrIncludePatterns: `["a"]`, pb.AttrFollowPaths: `["b"]`, pb.AttrSharedKeyHint: "h"},
	}}}))
}

// mutated damages a message: bits, lengths, lost and doubled pieces, and pieces
// of other messages.
func mutated(r *rand.Rand, body []byte, seeds []seed) []byte {
	b := bytes.Clone(body)
	for range 1 + r.IntN(4) {
		if len(b) == 0 {
			return []byte{byte(r.Uint32())}
		}
		at := r.IntN(len(b))
		to := min(len(b), at+1+r.IntN(16))
		switch r.IntN(7) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte(r.Uint32())
		case 2:
			b[at] = []byte{0, 0x7f, 0x80, 0xff, 1}[r.IntN(5)]
		case 3:
			b = append(b[:at:at], b[to:]...)
		case 4:
			b = append(b[:to:to], b[at:]...)
		case 5:
			b = b[:at]
		case 6:
			other := seeds[r.IntN(len(seeds))].body
			cut := r.IntN(len(other) + 1)
			b = append(append(b[:at:at], other[cut:min(len(other), cut+64)]...), b[at:]...)
		}
	}
	return b
}

// raw sends bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "proto" }

// send makes one call, of a build if live is set, and reads a little of the
// answer. How it ends is the server's affair.
func send(ctx context.Context, c *grpc.ClientConn, s seed, body []byte, live bool) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	ref := liveRef
	if !live {
		ref = string(body[:min(len(body), 8)])
		ref = strings.ToValidUTF8(strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, ref), "")
	}
	ctx = metadata.AppendToOutgoingContext(ctx, keyBuild, ref)
	var answer []byte
	if !s.stream {
		_ = c.Invoke(ctx, s.method, &body, &answer, grpc.ForceCodec(raw{}))
		return
	}
	st, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, s.method, grpc.ForceCodec(raw{}))
	if err != nil {
		return
	}
	_ = st.SendMsg(&body)
	_ = st.CloseSend()
	for range 100 {
		if st.RecvMsg(&answer) != nil {
			return
		}
	}
}

// panics is where the server's log goes; it keeps what tells of a bug.
type panics struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *panics) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("msg=bug")) {
		p.mu.Lock()
		p.text.Write(b)
		p.mu.Unlock()
	}
	return len(b), nil
}

func (p *panics) found() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()[:min(p.text.Len(), 8<<10)]
}

// startServer serves a store of its own, with a build of liveRef under way.
func startServer(t *testing.T, log io.Writer) *grpc.ClientConn {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	root, err := state.Open(t.TempDir())
	must(err)
	t.Cleanup(func() { root.Close() })
	records, err := cache.Open(root, func(err error) { t.Log(err) })
	must(err)
	t.Cleanup(func() { records.Close() })
	index, err := source.OpenIndex(root.Path("index"))
	must(err)
	t.Cleanup(func() { index.Close() })
	segments := compress.OpenSegments(root.Path("segments"), root.Path("blobs", "sha256"), root.TempFile)
	client, err := registry.New(registry.Options{ConfigDir: t.TempDir()})
	must(err)
	runner, err := linux.New(linux.Options{})
	must(err)
	sandboxes, err := network.New(network.Options{StateDir: t.TempDir()})
	must(err)
	t.Cleanup(func() { sandboxes.Close() })
	whole := &builder.Builder{Root: root, Cache: records, Index: index, Slots: 4, Runner: runner, Network: sandboxes}
	open := func(ask registry.Credentials) (*Store, error) {
		own := root.Share()
		blobs, err := blob.Open(own.Path("blobs"), own.TempFile)
		if err != nil {
			return nil, err
		}
		layers, err := snapshot.Open(own, snapshot.Options{Driver: &copydir.Driver{}})
		if err != nil {
			return nil, err
		}
		images, err := image.OpenStore(own, blobs)
		if err != nil {
			return nil, err
		}
		return &Store{
			Builder: whole.For(builder.Own{Root: own, Layers: layers, Blobs: blobs, Images: images, Registry: client.For(ask, blobs, nil)}),
			Packer:  &image.Packer{Layers: layers, Blobs: blobs, Segments: segments}, Close: own.Close,
		}, nil
	}
	s, err := New(Options{
		Root: root, Open: open, Platforms: []ocispec.Platform{{OS: "linux", Architecture: "amd64"}},
		Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	// A client that is its own frontend, and takes its time.
	go func() {
		for ctx.Err() == nil {
			_, _ = controlapi.NewControlClient(c).Solve(ctx, &controlapi.SolveRequest{Ref: liveRef})
		}
	}()
	t.Cleanup(func() {
		cancel()
		c.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}
