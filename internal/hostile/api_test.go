package hostile

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// serveAPI runs strake serve, and gives a client of it. At the end the daemon must
// be there still, and end well.
func (b *bed) serveAPI(use func(ctx context.Context, c controlapi.ControlClient)) {
	b.Helper()
	sock := filepath.Join(b.dir, "s.sock")
	cmd := b.s.Command("serve", "--addr", "unix://"+sock)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	b.must(cmd.Start())
	peak := make(chan int64)
	go watch(cmd.Process.Pid, peak)
	defer func() {
		if cmd.ProcessState == nil { // a failed case: say what it does
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			_ = cmd.Wait()
		}
		if b.Failed() {
			var ours strings.Builder
			for line := range strings.Lines(out.String()) {
				if !strings.HasPrefix(line, "\t") && strings.Contains(line, "strake-build") {
					ours.WriteString(line)
				}
			}
			b.Logf("serve:\n%.2000s\nits functions:\n%.5000s", out.String(), ours.String())
		}
	}()
	for begin := time.Now(); !exists(sock); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > b.time {
			b.Fatal("strake serve does not listen")
		}
	}
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	b.must(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), b.time)
	defer cancel()
	use(ctx, controlapi.NewControlClient(conn))
	if _, err := controlapi.NewControlClient(conn).ListWorkers(ctx, &controlapi.ListWorkersRequest{}); err != nil {
		b.Errorf("the daemon does not answer any more: %v", err)
	}
	b.must(cmd.Process.Signal(syscall.SIGTERM))
	_ = cmd.Wait()
	if rss := <-peak; rss > b.memory {
		b.Errorf("strake serve took %d MiB", rss)
	}
	b.innocent("the daemon's log", out.String())
}

// solve asks for a definition and returns the error.
func (b *bed) solve(ctx context.Context, c controlapi.ControlClient, name string, def *pb.Definition) error {
	b.Helper()
	_, err := c.Solve(ctx, &controlapi.SolveRequest{Ref: b.token + name, Definition: def})
	if ctx.Err() != nil {
		b.Fatalf("%s: no answer", name)
	}
	if err != nil && strings.Contains(err.Error(), "panic") {
		b.Errorf("%s: %v", name, err)
	}
	return err
}

// definition marshals ops; the last one's output is asked for. An input of -1 is
// the op before.
func (b *bed) definition(ops ...*pb.Op) *pb.Definition {
	b.Helper()
	def := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}}
	var last string
	for _, op := range append(ops, &pb.Op{}) {
		for _, in := range op.Inputs {
			if in.Digest == "previous" {
				in.Digest = last
			}
		}
		if op.Op == nil && len(op.Inputs) == 0 {
			op.Inputs = []*pb.Input{{Digest: last}}
		}
		data, err := op.Marshal()
		b.must(err)
		last = digest.FromBytes(data).String()
		def.Def = append(def.Def, data)
	}
	return def
}

func (b *bed) source(ref string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: ref}}, Platform: &pb.Platform{OS: "linux", Architecture: "amd64"}}
}

func (b *bed) exec(args []string, meta func(*pb.ExecOp)) *pb.Op {
	e := &pb.ExecOp{Meta: &pb.Meta{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/"}, Mounts: []*pb.Mount{{Dest: "/", Input: 0, Output: 0}}}
	if meta != nil {
		meta(e)
	}
	return &pb.Op{Inputs: []*pb.Input{{Digest: "previous"}}, Op: &pb.Op_Exec{Exec: e}}
}

func apiAttacks() []attack {
	return []attack{
		{name: "api/definitions that make no sense", after: "CVE-2024-23650", outcome: "refused; the daemon lives on", memory: 256, run: func(b *bed) {
			b.serveAPI(func(ctx context.Context, c controlapi.ControlClient) {
				src := b.source("docker-image://" + b.base)
				other := digest.FromString("x").String()
				for i, def := range []*pb.Definition{
					{Def: [][]byte{nil}}, {Def: [][]byte{{0xff}}}, {Def: [][]byte{[]byte(strings.Repeat("\x0a\x02", 1000))}},
					b.definition(&pb.Op{Inputs: []*pb.Input{{Digest: other}}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}}),
					b.definition(&pb.Op{Op: &pb.Op_Exec{}}),
					b.definition(&pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{nil, {}}}}}),
					b.definition(src, b.exec(nil, func(e *pb.ExecOp) { e.Meta = nil })),
					b.definition(src, b.exec(nil, nil)),
					b.definition(src, b.exec([]string{"true"}, func(e *pb.ExecOp) { e.Mounts = nil })),
					b.definition(src, b.exec([]string{"true"}, func(e *pb.ExecOp) { e.Mounts[0].Input = 1 << 40 })),
					b.definition(src, b.exec([]string{"true"}, func(e *pb.ExecOp) { e.Mounts[0].Input = -7 })),
					b.definition(src, b.exec([]string{"true"}, func(e *pb.ExecOp) { e.Mounts[0].Output = 1 << 40 })),
					b.definition(src, b.exec([]string{"true"}, func(e *pb.ExecOp) { e.Mounts = append(e.Mounts, nil) })),
					b.definition(src, &pb.Op{Inputs: []*pb.Input{{Digest: "previous", Index: -1}}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}}),
					b.definition(src, &pb.Op{Inputs: []*pb.Input{{Digest: "previous", Index: 1 << 40}}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 99}, {Input: -1}}}}}),
					b.definition(src, &pb.Op{Inputs: []*pb.Input{{Digest: "previous"}}, Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}}),
					b.definition(src, &pb.Op{Inputs: []*pb.Input{{Digest: "previous"}}, Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: 99}}}),
				} {
					if err := b.solve(ctx, c, fmt.Sprint("-", i), def); err == nil {
						b.Errorf("definition %d was accepted", i)
					}
				}
			})
		}},
		{name: "api/file actions and mounts that lead out", after: "CVE-2026-33747 CVE-2024-23652", outcome: "nothing outside is written", memory: 256, run: func(b *bed) {
			b.serveAPI(func(ctx context.Context, c controlapi.ControlClient) {
				base := b.image(b.archive(symlink("x", b.host)))
				src := b.source("docker-image://" + base)
				act := func(a *pb.FileAction) *pb.Definition {
					return b.definition(src, &pb.Op{Inputs: []*pb.Input{{Digest: "previous"}}, Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{a}}}})
				}
				for i, p := range []string{up + b.host[1:] + "/pwned", "/x/pwned", "x/../../../" + b.token, b.host + "/pwned", "/x/../" + up + b.token} {
					for j, a := range []*pb.FileAction{
						{Input: 0, SecondaryInput: -1, Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{Path: p, Data: []byte("x"), Mode: 0o644, Timestamp: -1}}},
						{Input: 0, SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: p, Mode: 0o755, MakeParents: true, Timestamp: -1}}},
						{Input: 0, SecondaryInput: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: strings.Replace(p, "pwned", "secret", 1), AllowNotFound: true, AllowWildcard: true}}},
						{Input: 0, SecondaryInput: -1, Action: &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{Oldpath: b.host, Newpath: p}}},
						{Input: 0, SecondaryInput: 0, Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: strings.Replace(p, "pwned", "secret", 1), Dest: "/leak", FollowSymlink: true, Timestamp: -1}}},
						{Input: 0, SecondaryInput: 0, Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: "/etc/passwd", Dest: p, CreateDestPath: true, Timestamp: -1}}},
					} {
						_ = b.solve(ctx, c, fmt.Sprintf("-%d-%d", i, j), act(a))
					}
					_ = b.solve(ctx, c, fmt.Sprintf("-m%d", i), b.definition(src, b.exec([]string{"touch", p}, func(e *pb.ExecOp) {
						e.Mounts = append(e.Mounts, &pb.Mount{Dest: p, Input: -1, Output: -1, MountType: pb.MountType_TMPFS}, &pb.Mount{Dest: p + "2", Input: 0, Output: -1, Selector: up + b.host[1:], Readonly: true},
							&pb.Mount{Dest: p + "3", Input: -1, Output: -1, MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: up + b.host[1:]}})
					})))
				}
			})
		}},
		{name: "api/entitlements that were not granted", after: "CVE-2024-23653", outcome: "refused", memory: 256, run: func(b *bed) {
			b.serveAPI(func(ctx context.Context, c controlapi.ControlClient) {
				src := b.source("docker-image://" + b.base)
				for i, f := range []func(*pb.ExecOp){
					func(e *pb.ExecOp) { e.Security = pb.SecurityMode_INSECURE },
					func(e *pb.ExecOp) { e.Network = pb.NetMode_HOST },
					func(e *pb.ExecOp) { e.CdiDevices = []*pb.CDIDevice{{Name: "v.com/x=y"}} },
				} {
					if err := b.solve(ctx, c, fmt.Sprint("-", i), b.definition(src, b.exec([]string{"true"}, f))); err == nil {
						b.Errorf("%d was allowed", i)
					}
				}
			})
		}},
		{name: "api/sources of the daemon's machine", after: "CVE-2026-33748 CVE-2024-23650", outcome: "refused: local files come from the client only", memory: 256, run: func(b *bed) {
			b.serveAPI(func(ctx context.Context, c controlapi.ControlClient) {
				for i, id := range []string{"local://" + b.host, "local://../../x", "oci-layout://" + b.host + "@sha256:" + strings.Repeat("1", 64), "git://file://" + b.host, "git://-oProxyCommand=touch " + b.host + "/pwned", "http://file://" + b.host + "/secret", "https://[", "blob://x", "docker-image+blob://" + b.host, "bogus://x", ""} {
					if err := b.solve(ctx, c, fmt.Sprint("-", i), b.definition(b.source(id))); err == nil {
						b.Errorf("%q was accepted", id)
					}
				}
			})
		}},
		{name: "api/messages that are no messages", after: "CVE-2024-23650", outcome: "refused; bounded memory", memory: 256, time: 15 * time.Second, run: func(b *bed) {
			b.serveAPI(func(ctx context.Context, c controlapi.ControlClient) {
				// Operations nested as deep as fits, and a graph where each of 60 operations has the one
				// before twice: 2^60 paths.
				var nested []byte
				for range 10000 {
					nested = protowire.AppendBytes(protowire.AppendTag(nil, 10, protowire.BytesType), nested)
					if len(nested) > 1<<20 {
						break
					}
				}
				_ = b.solve(ctx, c, "-nested", &pb.Definition{Def: [][]byte{nested}})
				ops := []*pb.Op{b.source("docker-image://" + b.base)}
				for range 60 {
					ops = append(ops, &pb.Op{Inputs: []*pb.Input{{Digest: "previous"}, {Digest: "previous"}}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}})
				}
				if err := b.solve(ctx, c, "-doubling", b.definition(ops...)); err == nil || !strings.Contains(err.Error(), "the merged tree would have") {
					b.Errorf("merges that double: %v", err)
				}
				_, err := c.Solve(ctx, &controlapi.SolveRequest{Ref: "x", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"context": up + b.host[1:], "filename": up + b.host[1:] + "/secret", "target": "\x1b[2J", "platform": "../../x", "source": b.host}})
				if err == nil {
					b.Error("attributes that make no sense were accepted")
				}
				_, err = c.Solve(ctx, &controlapi.SolveRequest{Ref: "../../" + b.token, Session: "../../" + b.token, Frontend: "gateway.v0", FrontendAttrs: map[string]string{"source": "../../x"}})
				if err == nil {
					b.Error("a gateway without an image was accepted")
				}
			})
			_, err := os.Stat(filepath.Join(b.dir, b.token))
			if err == nil {
				b.Error("a path of a request was made")
			}
		}},
	}
}
