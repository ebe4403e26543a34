package buildkitapi

import (
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/registry"
)

// testJob is a job of a server that has nothing to build with: translating asks
// for no more, but for images.
func testJob(t testing.TB) *job {
	t.Helper()
	s := &Server{now: time.Now, o: Options{
		Platforms: []ocispec.Platform{{OS: "linux", Architecture: "amd64"}},
		Open: func(registry.Credentials) (*Store, error) {
			return &Store{Builder: &builder.Builder{}, Close: func() error { return nil }}, nil
		},
	}}
	j, err := s.newJob(context.Background(), &controlapi.SolveRequest{Ref: "ref", Session: "session"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.close)
	return j
}

// graph makes a definition; the last op added is its result.
type graph struct {
	t   testing.TB
	def pb.Definition
}

func (g *graph) add(op *pb.Op) *pb.Input {
	g.t.Helper()
	data, err := op.MarshalVT()
	if err != nil {
		g.t.Fatal(err)
	}
	g.def.Def = append(g.def.Def, data)
	return &pb.Input{Digest: digest.FromBytes(data).String()}
}

func (g *graph) end(in *pb.Input) *pb.Definition {
	g.add(&pb.Op{Inputs: []*pb.Input{in}})
	return &g.def
}

func localOp(name string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://" + name}}}
}

func fileOp(inputs []*pb.Input, actions ...*pb.FileAction) *pb.Op {
	return &pb.Op{Inputs: inputs, Op: &pb.Op_File{File: &pb.FileOp{Actions: actions}}}
}

func mkdir(input, output int64, path string) *pb.FileAction {
	return &pb.FileAction{Input: input, SecondaryInput: -1, Output: output, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: path, Mode: 0o755}}}
}

func execOp(inputs []*pb.Input, mounts ...*pb.Mount) *pb.Op {
	return &pb.Op{Inputs: inputs, Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"true"}, Cwd: "/"}, Mounts: mounts}}}
}

// TestTranslate compares plans, in their text form without the part before the
// first step.
func TestTranslate(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		make func(g *graph) *pb.Input
		want []string // in the plan's text
		err  string
	}{
		"a chain of actions is one step": {
			make: func(g *graph) *pb.Input {
				return g.add(fileOp(nil, mkdir(-1, -1, "/a"), mkdir(0, -1, "/b"), mkdir(1, 0, "/c")))
			},
			want: []string{"mkdir path=/a", "mkdir path=/b", "mkdir path=/c"},
		},
		"a copy has its source as an input": {
			make: func(g *graph) *pb.Input {
				src := g.add(localOp("context"))
				return g.add(fileOp([]*pb.Input{src}, &pb.FileAction{Input: -1, SecondaryInput: 0, Output: 0, Action: &pb.FileAction_Copy{
					Copy: &pb.FileActionCopy{Src: "/src", Dest: "dst/", Mode: -1, CreateDestPath: true},
				}}))
			},
			want: []string{"copy input=1 source=/src dest=/dst/ create-parents", "local"},
		},
		"the root is input and result 0, wherever its mount is": {
			make: func(g *graph) *pb.Input {
				src := g.add(localOp("context"))
				x := g.add(execOp([]*pb.Input{src}, &pb.Mount{Dest: "/in", Input: 0, Output: 0}, &pb.Mount{Dest: "/", Input: -1, Output: 1}))
				x.Index = 1
				return x
			},
			want: []string{"inputs scratch #", "mount bind target=/in input=1 output=1"},
		},
		"merge": {
			make: func(g *graph) *pb.Input {
				a, b := g.add(localOp("a")), g.add(localOp("b"))
				return g.add(&pb.Op{Inputs: []*pb.Input{a, b}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}})
			},
			want: []string{"merge (local://a, local://b)"},
		},
		"an input that is missing": {
			make: func(g *graph) *pb.Input { return &pb.Input{Digest: digest.FromString("none").String()} },
			err:  "missing input",
		},
		"an output that there is not": {
			make: func(g *graph) *pb.Input {
				in := g.add(localOp("a"))
				in.Index = 7
				return in
			},
			err: "no output 7",
		},
		"an action that starts from one after it": {
			make: func(g *graph) *pb.Input { return g.add(fileOp(nil, mkdir(1, -1, "/a"), mkdir(0, 0, "/b"))) },
			err:  "starts from 1",
		},
		"a process without a root": {
			make: func(g *graph) *pb.Input { return g.add(execOp(nil)) },
			err:  "without a root",
		},
		"a scheme that is not known": {
			make: func(g *graph) *pb.Input {
				return g.add(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "ftp://x"}}})
			},
			err: "unknown source scheme",
		},
		"a result of another build": {
			make: func(g *graph) *pb.Input {
				return g.add(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: schemeResult + "x"}}})
			},
			err: "no such",
		},
		"a diff of an input that there is not": {
			make: func(g *graph) *pb.Input {
				return g.add(&pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: 3}, Upper: &pb.UpperDiffInput{Input: -1}}}})
			},
			err: "invalid diff input index 3",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &graph{t: t}
			in, err := testJob(t).translate(context.Background(), g.end(tt.make(g)))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := (&plan.Build{Targets: []plan.Target{{Step: in.Step}}}).Text()
			for _, w := range tt.want {
				if !strings.Contains(text, w) {
					t.Errorf("%q is not in the plan:\n%s", w, text)
				}
			}
		})
	}
}

// A client can use what it got a reference to in a graph of its own.
func TestTranslateResult(t *testing.T) {
	t.Parallel()
	j := testJob(t)
	step := &plan.Step{Op: &plan.File{}, Name: "made before"}
	ref := j.reference(step, 0, nil)
	in, err := j.translate(context.Background(), ref.def)
	if err != nil {
		t.Fatal(err)
	}
	if in.Step != step {
		t.Errorf("got step %+v, want the one that the reference names", in.Step)
	}
}

func TestTranslateDeep(t *testing.T) {
	t.Parallel()
	g := &graph{t: t}
	in := g.add(localOp("a"))
	for range 20_000 {
		in = g.add(&pb.Op{Inputs: []*pb.Input{in}, Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Outputs: []int64{0}}}})
	}
	if _, err := testJob(t).translate(context.Background(), g.end(in)); err != nil {
		t.Fatal(err)
	}
}

// FuzzTranslate: a graph gives a sound plan, the same one each time, or an
// error, whatever it is.
func FuzzTranslate(f *testing.F) {
	seed := func(make func(g *graph) *pb.Input) {
		g := &graph{t: f}
		data, err := g.end(make(g)).MarshalVT()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	seed(func(g *graph) *pb.Input { return g.add(localOp("context")) })
	seed(func(g *graph) *pb.Input {
		return g.add(fileOp(nil, mkdir(-1, -1, "/a"), mkdir(0, 0, "/b"), mkdir(0, 1, "/c")))
	})
	seed(func(g *graph) *pb.Input {
		src := g.add(localOp("context"))
		return g.add(execOp([]*pb.Input{src}, &pb.Mount{Dest: "/", Input: 0}, &pb.Mount{Dest: "/c", Input: -1, Output: -1, MountType: pb.MountType_CACHE},
			&pb.Mount{Dest: "/s", Input: -1, Output: -1, MountType: pb.MountType_SECRET}, &pb.Mount{Dest: "/w", Input: 0, Output: 1}))
	})
	seed(func(g *graph) *pb.Input {
		src, other := g.add(localOp("context")), g.add(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "git://example.com/r.git#main:sub"}}})
		copied := g.add(fileOp([]*pb.Input{src, other}, &pb.FileAction{Input: 0, SecondaryInput: 1, Output: 0, Action: &pb.FileAction_Copy{
			Copy: &pb.FileActionCopy{Src: "../a*", Dest: "b", Mode: -1, AllowWildcard: true, FollowSymlink: true},
		}}))
		merged := g.add(&pb.Op{Inputs: []*pb.Input{src, copied}, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}, {Input: 1}}}}})
		return g.add(&pb.Op{Inputs: []*pb.Input{merged, src}, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: 1}, Upper: &pb.UpperDiffInput{Input: 0}}}})
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		def := &pb.Definition{}
		if def.UnmarshalVT(data) != nil {
			return
		}
		def, ok := relinked(def)
		if !ok {
			return
		}
		translate := func() (plan.Input, string, error) {
			in, err := testJob(t).translate(context.Background(), def)
			return in, (&plan.Build{Targets: []plan.Target{{Step: in.Step}}}).Text(), err
		}
		in, text, err := translate()
		if err != nil {
			return
		}
		checkSteps(t, in.Step)
		if _, again, err := translate(); err != nil || again != text {
			t.Errorf("translated again, %v:\n%s\nwas:\n%s", err, again, text)
		}
	})
}

// relinked is a definition whose ops name each other by the right digests, which
// a fuzzer doesn't find: the first byte of what an input has instead tells which
// of the ops before. It is none if an op looks at registries or clients.
func relinked(def *pb.Definition) (*pb.Definition, bool) {
	out := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}, Source: def.Source}
	metadata := slices.Sorted(maps.Keys(def.Metadata))
	var digests []string
	for i, d := range def.Def {
		op := &pb.Op{}
		if op.UnmarshalVT(d) != nil {
			continue
		}
		if id := op.GetSource().GetIdentifier(); strings.HasPrefix(id, "docker-image:") || strings.HasPrefix(id, "oci-layout:") {
			return nil, false
		}
		op.Inputs = slices.DeleteFunc(op.Inputs, func(in *pb.Input) bool { return in == nil || in.Digest == "" || len(digests) == 0 })
		for _, in := range op.Inputs {
			in.Digest = digests[int(in.Digest[0])%len(digests)]
		}
		if op.Op == nil && len(op.Inputs) == 0 {
			continue
		}
		d, err := op.MarshalVT()
		if err != nil {
			continue
		}
		dgst := digest.FromBytes(d).String()
		if i < len(metadata) {
			out.Metadata[dgst] = def.Metadata[metadata[i]]
		}
		out.Def, digests = append(out.Def, d), append(digests, dgst)
	}
	return out, len(out.Def) > 0
}

// checkSteps checks that what a builder takes for granted is so.
func checkSteps(t *testing.T, last *plan.Step) {
	t.Helper()
	seen := map[*plan.Step]bool{}
	todo := []*plan.Step{last}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if s == nil || seen[s] {
			continue
		}
		seen[s] = true
		plan.Canonical(s.Op)
		for _, in := range s.Inputs {
			todo = append(todo, in.Step)
		}
		switch op := s.Op.(type) {
		case *plan.Exec:
			if len(s.Inputs) == 0 {
				t.Error("a process without a root")
			}
			for _, m := range op.Mounts {
				if m.Input >= len(s.Inputs) || !path.IsAbs(m.Target) && m.Env == "" {
					t.Errorf("bad mount %+v", m)
				}
			}
		case *plan.File:
			for _, a := range op.Actions {
				if c, ok := a.(*plan.Copy); ok && (c.Input < 1 || c.Input >= len(s.Inputs) || !path.IsAbs(c.Source) || !path.IsAbs(c.Dest)) {
					t.Errorf("bad copy %+v", c)
				}
			}
		case *plan.Diff:
			if len(s.Inputs) != 2 {
				t.Errorf("a difference of %d trees", len(s.Inputs))
			}
		}
	}
}
