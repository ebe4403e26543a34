package parser

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/strake-build/strake/plan"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// testOptions are the options of a golden file, by their names in JSON.
type testOptions struct {
	Target        string
	Args, Labels  map[string]string
	Platforms     []string
	Contexts      map[string]Context
	Exclude       []string
	NoCache       bool
	NoCacheStages []string
	Network       plan.NetworkMode
	Hosts         []plan.Host
	Ulimits       []plan.Ulimit
	ShmSize       int64
	Resources     plan.Resources
	Hostname      string
	Epoch         *time.Time
}

func (o testOptions) options(t testing.TB, images map[string]json.RawMessage) Options {
	t.Helper()
	out := Options{
		Target: o.Target, Args: o.Args, Labels: o.Labels, Contexts: o.Contexts, Exclude: o.Exclude, IgnoreFile: ".dockerignore",
		NoCache: o.NoCache, NoCacheStages: o.NoCacheStages, Network: o.Network, Hosts: o.Hosts, Ulimits: o.Ulimits, ShmSize: o.ShmSize,
		Resources: o.Resources, Hostname: o.Hostname, Epoch: o.Epoch, BuildPlatform: amd64, Resolve: resolver(images),
	}
	for _, p := range o.Platforms {
		parsed, err := platforms.Parse(p)
		if err != nil {
			t.Fatal(err)
		}
		out.Platforms = append(out.Platforms, parsed)
	}
	return out
}

// resolver is a registry: alpine, any oci-layout, and the images given.
func resolver(images map[string]json.RawMessage) func(context.Context, string, ocispec.Platform) (Resolved, error) {
	return func(ctx context.Context, ref string, p ocispec.Platform) (Resolved, error) {
		config, ok := images[ref]
		switch {
		case ok:
		case strings.HasPrefix(ref, "docker.io/library/alpine:"), strings.HasPrefix(ref, "oci-layout://"):
			config = json.RawMessage(fmt.Sprintf(`{"architecture": %q, "os": %q, "variant": %q, "created": "2020-01-01T00:00:00Z",
				"config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"], "Image": "x", "Domainname": "x"},
				"rootfs": {"type": "layers", "diff_ids": ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]},
				"history": [{"created_by": "ADD rootfs.tar /"}, {"created_by": "CMD [\"/bin/sh\"]", "empty_layer": true}]}`,
				p.Architecture, p.OS, p.Variant))
		default:
			return Resolved{}, fmt.Errorf("%s: not found", ref)
		}
		r := Resolved{Ref: ref, Digest: digest.FromString(ref + platforms.Format(p)), Config: config}
		if rest, ok := strings.CutPrefix(ref, "oci-layout://"); ok {
			r.Layout, _, _ = strings.Cut(rest, ":")
			r.Ref = "docker.io/library/" + r.Layout + ":layout"
		}
		return r, nil
	}
}

// A golden file holds a build file and what comes of it:
//
//	Dockerfile     the input
//	options.json   testOptions, if any
//	images.json    configurations of images by reference, if any
//	plan, config   what was planned, or
//	error          why it wasn't
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".txtar")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in := map[string][]byte{}
			for _, f := range ar.Files {
				in[f.Name] = f.Data
			}
			got := planGolden(t, in)
			_, failed := got["error"]
			if wantFail := strings.HasPrefix(name, "error/"); failed != wantFail {
				t.Errorf("failed: %v, want %v\n%s", failed, wantFail, got["error"])
			}
			var out []txtar.File
			for _, f := range ar.Files {
				if f.Name == "Dockerfile" || strings.HasSuffix(f.Name, ".json") {
					out = append(out, f)
				}
			}
			for _, section := range []string{"plan", "config", "error"} {
				if text, ok := got[section]; ok {
					out = append(out, txtar.File{Name: section, Data: []byte(text)})
				}
				if *update {
					continue
				}
				if d := cmp.Diff(string(in[section]), got[section]); d != "" {
					t.Errorf("%s (-want +got):\n%s", section, d)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(&txtar.Archive{Comment: ar.Comment, Files: out}), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// planGolden returns the sections that the input comes to.
func planGolden(t *testing.T, in map[string][]byte) map[string]string {
	t.Helper()
	var o testOptions
	images := map[string]json.RawMessage{}
	for name, v := range map[string]any{"options.json": &o, "images.json": &images} {
		if data, ok := in[name]; ok {
			if err := json.Unmarshal(data, v); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	f, err := Parse("Dockerfile", in["Dockerfile"])
	var b *plan.Build
	if err == nil {
		b, err = f.Plan(t.Context(), o.options(t, images))
	}
	if err != nil {
		text := err.Error() + "\n"
		var fault *plan.Error
		if errors.As(err, &fault) {
			text += fault.Source.Excerpt()
		}
		return map[string]string{"error": text}
	}
	checkBuild(t, b)
	config := ""
	for _, target := range b.Targets {
		data, err := json.MarshalIndent(target.Image, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		config += string(data) + "\n"
	}
	return map[string]string{"plan": b.Text(), "config": config}
}

// checkBuild checks what any plan must keep to.
func checkBuild(t *testing.T, b *plan.Build) {
	t.Helper()
	checkBuildOn(t, b, 1)
}

// checkBuildOn is checkBuild where images have that many layers.
func checkBuildOn(t *testing.T, b *plan.Build, imageLayers int) {
	t.Helper()
	state := map[*plan.Step]int{}
	var visit func(s *plan.Step) int
	visit = func(s *plan.Step) int {
		if s == nil {
			return 0
		}
		if state[s] != 0 {
			return state[s]
		}
		layers := 0
		for i, in := range s.Inputs {
			n := visit(in.Step)
			if _, merge := s.Op.(*plan.Merge); merge || i == 0 {
				layers += n
			}
		}
		if s.Name == "" {
			t.Errorf("a step without a name: %+v", s.Op)
		}
		switch op := s.Op.(type) {
		case *plan.Exec:
			layers++
			for _, m := range op.Mounts {
				if m.Input >= len(s.Inputs) || m.Target == "" && m.Env == "" || m.Target != "" && !filepath.IsAbs(m.Target) {
					t.Errorf("%s: bad mount %+v", s.Name, m)
				}
			}
		case *plan.File:
			layers++
			for _, a := range op.Actions {
				if c, ok := a.(*plan.Copy); ok && (c.Input < 1 || c.Input >= len(s.Inputs) || !filepath.IsAbs(c.Dest) || !filepath.IsAbs(c.Source)) {
					t.Errorf("%s: bad copy %+v", s.Name, c)
				}
			}
		case *plan.Image:
			layers += imageLayers
		case *plan.Local:
			layers++
		}
		state[s] = layers
		return layers
	}
	for _, target := range b.Targets {
		want := visit(target.Step)
		got := 0
		for _, h := range target.Image.History {
			if !h.EmptyLayer {
				got++
			}
		}
		if got != want {
			t.Errorf("history has %d layers, the steps %d", got, want)
		}
	}
}
