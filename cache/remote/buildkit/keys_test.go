package buildkit

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
)

// What BuildKit has exported is kept in testdata. -update has a buildkitd at
// $BUILDKIT_HOST build the files anew, on the image $BASE (a reference with a
// shell in it), by buildctl.
var update = flag.Bool("update", false, "export the caches in testdata anew")

// files are the build context of all cases. Directories have mode 0755, what
// ends in "@" is a symlink.
var files = map[string]string{
	"a.txt": "hello\n", "b.txt": "b\n", "dir/x": "x\n", "dir/sub/y": "y\n", "dir/sub/deep/z": "", "dir/l@": "x", "dl@": "dir", "l2@": "dl/x",
}

var modes = map[string]uint32{"dir/sub/y": 0o600, "b.txt": 0o755}

// tree is files as a Tree.
type tree map[string]string

func (t tree) Lookup(p string) (layers.Entry, error) {
	if data, ok := t[p]; ok {
		mode := modes[p]
		if mode == 0 {
			mode = 0o644
		}
		return layers.Entry{Path: p, Type: layers.Regular, Mode: mode, Size: int64(len(data))}, nil
	}
	if link, ok := t[p+"@"]; ok {
		return layers.Entry{Path: p, Type: layers.Symlink, Mode: 0o777, Link: link}, nil
	}
	for name := range t {
		if p == "." || strings.HasPrefix(name, p+"/") {
			return layers.Entry{Path: p, Type: layers.Dir, Mode: 0o755}, nil
		}
	}
	return layers.Entry{}, fs.ErrNotExist
}

func (t tree) ReadDir(p string) ([]layers.Entry, error) {
	names := map[string]bool{}
	for name := range t {
		rest, ok := strings.CutPrefix(name, p+"/")
		if p == "." {
			rest, ok = name, true
		}
		if ok {
			first, _, _ := strings.Cut(rest, "/")
			names[strings.TrimSuffix(first, "@")] = true
		}
	}
	var list []layers.Entry
	for _, name := range slices.Sorted(maps.Keys(names)) {
		e, err := t.Lookup(path.Join(p, name))
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

func (t tree) Open(_ context.Context, p string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(t[p])), nil
}

// base is the image that the cases are built on.
type base struct {
	Digest digest.Digest
	Config json.RawMessage
}

func readBase(t *testing.T) (b base, img ocispec.Image) {
	t.Helper()
	data, err := os.ReadFile("testdata/base.json")
	if err == nil {
		err = json.Unmarshal(data, &b)
	}
	if err == nil {
		err = json.Unmarshal(b.Config, &img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b, img
}

// planOf plans the Dockerfile of a case, with a graph that reads the context.
func planOf(t *testing.T, name string, context tree) (*plan.Build, *Graph) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	return planned(t, data, context)
}

func planned(t *testing.T, dockerfile []byte, context tree) (*plan.Build, *Graph) {
	t.Helper()
	b, img := readBase(t)
	file, err := parser.Parse("Dockerfile", dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	build, err := file.Plan(t.Context(), parser.Options{
		BuildPlatform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Resolve: func(_ ctx, ref string, _ ocispec.Platform) (parser.Resolved, error) {
			return parser.Resolved{Ref: ref, Digest: b.Digest, Config: b.Config}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return build, NewGraph(Sources{
		Image: func(ctx, *plan.Step) (digest.Digest, []digest.Digest, error) {
			return b.Digest, img.RootFS.DiffIDs, nil
		},
		Tree: func(ctx, plan.Input) (Tree, error) { return Tree{Files: context}, nil },
	})
}

type ctx = context.Context

func readCache(t *testing.T, name string) *Manifest {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name, "cache.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Config json.RawMessage
		Layers []ocispec.Descriptor
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	m, err := Parse(c.Config, c.Layers)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// steps are those of a build that have results.
func steps(t *testing.T, b *plan.Build) (list []*plan.Step) {
	t.Helper()
	err := b.Walk(func(s *plan.Step) error {
		switch s.Op.(type) {
		case *plan.Exec, *plan.File, *plan.Merge:
			list = append(list, s)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func cases(t *testing.T) (names []string) {
	list, err := filepath.Glob("testdata/*/Dockerfile")
	if err != nil || len(list) == 0 {
		t.Fatal(err, list)
	}
	for _, p := range list {
		names = append(names, filepath.Base(filepath.Dir(p)))
	}
	return names
}

// Every step of every case is found in what BuildKit has exported of it.
func TestFindsWhatBuildKitExports(t *testing.T) {
	for _, name := range cases(t) {
		if *update {
			export(t, name)
		}
		build, g := planOf(t, name, files)
		m := readCache(t, name)
		for _, s := range steps(t, build) {
			k := g.Key(t.Context(), plan.Input{Step: s})
			if k == nil {
				t.Errorf("%s: %s: has no key", name, s.Name)
				continue
			}
			// BuildKit keeps no results of what has no inputs.
			results, err := m.Find(t.Context(), k, true)
			if err != nil || len(results) == 0 && len(k.deps) > 0 || !m.Knows(t.Context(), k) {
				t.Errorf("%s: %s: not found (%v)", name, s.Name, err)
			}
		}
	}
}

// What is another step is not found, nor is what is behind it.
func TestFindsNothingElse(t *testing.T) {
	other := maps.Clone(files)
	other["a.txt"] = "hellO\n"
	changed := map[string]struct {
		old, new string
		files    tree
		first    string // the first step that is not found
	}{
		"file":    {"", "", other, "COPY --chown=user a.txt"},
		"command": {"RUN echo $A > /a", "RUN echo $A >> /a", files, "RUN echo"},
		"env":     {"A=3", "A=4", files, "RUN echo"},
		"dir":     {"WORKDIR bar", "WORKDIR baz", files, "WORKDIR ba"},
		"arg":     {"ARG X=1", "ARG X=2", files, "RUN echo 3"},
		"user":    {"USER user:user", "USER user", files, "RUN echo 1 >/dev"},
		"chmod":   {"--chmod=u+x", "--chmod=u-x", files, "COPY --chown=5:6"},
		"link":    {"ADD --link dir /ldir", "ADD dir /ldir", files, "ADD dir"},
	}
	data, err := os.ReadFile("testdata/env/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range changed {
		if !bytes.Contains(data, []byte(c.old)) {
			t.Fatalf("%s: the Dockerfile has no %q", name, c.old)
		}
		build, g := planned(t, bytes.Replace(data, []byte(c.old), []byte(c.new), 1), c.files)
		m := readCache(t, "env")
		begun := false
		for _, s := range steps(t, build) {
			if !strings.HasPrefix(s.Name, "[one ") {
				continue // of another stage
			}
			begun = begun || strings.Contains(s.Name, c.first)
			if found := m.Knows(t.Context(), g.Key(t.Context(), plan.Input{Step: s})); found == begun && !linked(s) {
				t.Errorf("%s: %s: found is %v", name, s.Name, found)
			}
		}
		if !begun {
			t.Errorf("%s: there is no step %q", name, c.first)
		}
	}
}

// linked reports whether a step does not depend on those before it.
func linked(s *plan.Step) bool {
	_, ok := s.Op.(*plan.File)
	return ok && s.Inputs[0].Step == nil
}

// export has BuildKit build a case.
func export(t *testing.T, name string) {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	for p, data := range files {
		link := strings.TrimSuffix(p, "@")
		file := filepath.Join(dir, link)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil && link != p {
			err = os.Symlink(data, file)
		} else if err == nil {
			mode := fs.FileMode(0o644)
			if m, ok := modes[p]; ok {
				mode = fs.FileMode(m)
			}
			if err = os.WriteFile(file, []byte(data), mode); err == nil {
				err = os.Chmod(file, mode)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("buildctl", "build", "--no-cache", "--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile=testdata/"+name,
		"--opt", "context:base=docker-image://"+os.Getenv("BASE"), "--opt", "platform=linux/amd64", "--secret", "id=s,src=testdata/"+name+"/Dockerfile", "--ssh", "default",
		"--export-cache", "type=local,mode=max,dest="+out)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, text)
	}
	read := func(d digest.Digest) []byte {
		data, err := os.ReadFile(filepath.Join(out, "blobs", "sha256", d.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	index, err := os.ReadFile(filepath.Join(out, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	x, err := manifest.ParseIndex(index)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse(read(x.Manifests[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range m.Layers {
		m.Layers[i].Annotations = map[string]string{Uncompressed: l.Annotations[Uncompressed]}
	}
	data, err := json.Marshal(struct {
		Config json.RawMessage
		Layers []ocispec.Descriptor
	}{read(m.Config.Digest), m.Layers})
	if err == nil {
		err = os.WriteFile(filepath.Join("testdata", name, "cache.json"), append(data, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
