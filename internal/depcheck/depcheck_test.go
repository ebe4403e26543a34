package depcheck

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/strake-build/strake"

var update = flag.Bool("update", false, "rewrite dependencies.txt")

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath  string
	Doc         string
	Imports     []string
	TestImports []string
	GoFiles     []string
	Standard    bool
	Module      *struct{ Path, Version, Dir string }
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Doc,Imports,GoFiles,Standard,Module"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(out); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v", err)
	}
	return pkgs
}

// allowed says which of our packages a package may import, by patterns: "x" is
// the package, "x/..." everything below it as well. The first rule that fits a
// package counts.
var allowed = []struct {
	pkg     string
	imports []string
}{
	{"plan", nil},
	{"progress/...", []string{"progress/..."}},
	{"state", nil},
	{"layers/blob", nil},
	{"layers/compress", nil},
	{"builder/sandbox/...", []string{"builder/sandbox/..."}},
	{"builder/device", []string{"plan"}},
	{"internal/flight", nil},
	{"internal/manifest", nil},
	{"internal/lazyregexp", nil},
	{"internal/shortname", nil},
	{"internal/scripttest", []string{"cache/remote/gha/ghatest", "cache/remote/s3/s3test", "internal/distribution"}},
	{"internal/depcheck", nil},
	{"layers", []string{"layers/blob", "layers/compress"}},
	{"policy", []string{"plan"}},
	{"lock", []string{"plan", "policy"}},
	{"attest", []string{"layers"}},
	{"attest/...", []string{"attest", "plan", "layers", "layers/snapshot", "builder/file"}},
	{"layers/...", []string{"layers/...", "state", "internal/flight", "internal/manifest", "internal/shortname"}},
	{"parser/...", []string{"plan", "parser/...", "internal/lazyregexp"}},
	{"cache/remote/buildkit", []string{"plan", "layers", "layers/...", "internal/manifest"}},
	{"cache/remote/...", []string{"cache/...", "layers", "layers/...", "registry", "progress", "internal/flight", "internal/manifest"}},
	{"cache/...", []string{"layers", "layers/blob", "state", "cache/..."}},
	{"registry", []string{"layers/blob", "progress", "internal/manifest"}},
	{"registry/...", []string{"registry", "layers/...", "progress", "internal/manifest"}},
	{"state/gc", []string{"state", "layers/...", "cache"}},
	{"state/builds", []string{"state", "progress", "internal/lazyregexp"}},
	{"state/builds/...", []string{"state/builds", "progress"}},
	{"builder/source/...", []string{"layers/...", "plan", "progress", "state", "builder/source/...", "internal/flight", "internal/lazyregexp"}},
	{"builder/file", []string{"layers/...", "plan"}},
	{"builder/explain", []string{"state/builds"}},
	{"builder/export", []string{"plan", "attest", "layers/...", "progress", "registry", "registry/...", "internal/lazyregexp", "internal/manifest"}},
	{"builder", []string{"plan", "progress", "state", "state/builds", "cache", "cache/remote", "cache/remote/buildkit", "registry", "layers/...", "builder/...", "internal/flight"}},
	{"container/...", []string{"builder/sandbox/...", "builder/file", "layers", "layers/...", "container/..."}},
	{"daemon/...", []string{"..."}},
	{"cmd/...", []string{"..."}},
	{"internal/e2e", nil},
	{"internal/testbed", nil},
	{"internal/distribution", nil},
	{"internal/hostile", nil},
	{"internal/faults", nil},
	{"bench/...", []string{"bench/content", "bench/imagetree", "bench/pair", "internal/distribution"}},
	{"conformance/...", []string{"bench/pair", "conformance/random", "internal/distribution"}},
	{"examples/...", nil},
}

func matches(pattern, p string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return p == base || strings.HasPrefix(p, base+"/")
	}
	return p == pattern
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		i := slices.IndexFunc(allowed, func(r struct {
			pkg     string
			imports []string
		}) bool {
			return matches(r.pkg, name)
		})
		if i < 0 {
			t.Errorf("%s: no rule says what it may import; add one", name)
			continue
		}
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if ok && !slices.ContainsFunc(allowed[i].imports, func(pattern string) bool { return matches(pattern, ours) }) {
				t.Errorf("%s must not import %s", name, ours)
			}
			if bk, ok := strings.CutPrefix(imp, "github.com/moby/buildkit/"); ok {
				// The daemon speaks BuildKit's protocols; its solver and its
				// client stay out.
				if name == "daemon/buildkitapi" && regexp.MustCompile(`^(api/.*|session(/.*)?|solver/(pb|errdefs)|frontend/gateway/pb|util/(grpcerrors|staticfs)|identity)$`).MatchString(bk) {
					continue
				}
				if name != "parser" || !regexp.MustCompile(`^frontend/dockerfile/(parser|instructions|shell|command|linter|dfgitutil)$`).MatchString(bk) {
					t.Errorf("%s must not import BuildKit's %s", name, bk)
				}
			}
		}
	}
}

func TestPackagesHaveComments(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) > 0 && len(p.Doc) < 20 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestDependencies compares the modules that are linked into strake with
// dependencies.txt, so that growth shows in review, and looks at their
// licences.
func TestDependencies(t *testing.T) {
	t.Parallel()
	dirs := map[string]string{}
	for _, p := range list(t, "-deps", "./cmd/strake") {
		if p.Module != nil && p.Module.Path != module {
			dirs[p.Module.Path] = p.Module.Dir
		}
	}
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(dirs)) {
		lines = append(lines, fmt.Sprintf("%s %s", path, licence(t, dirs[path])))
	}
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile("dependencies.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("dependencies.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("linked modules differ from dependencies.txt (run with -update to accept):\n%s", diff)
	}
}

var licences = []struct{ name, text string }{
	{"Apache-2.0", "Apache License"},
	{"MPL-2.0", "Mozilla Public License"},
	{"BSD", "Redistribution and use in source and binary forms"},
	{"MIT", "Permission is hereby granted, free of charge"},
	{"ISC", "Permission to use, copy, modify, and/or distribute"},
	{"ISC", "Permission to use, copy, modify, and distribute"},
}

// licence names a module's licence; one that is not known to be free to link
// fails the test.
func licence(t *testing.T, dir string) string {
	t.Helper()
	for _, name := range []string{"LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "License", "LICENSE.BSD", "LICENSE.code"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		text := strings.Join(strings.Fields(string(data)), " ")
		for _, l := range licences {
			if strings.Contains(text, l.text) {
				return l.name
			}
		}
	}
	t.Errorf("%s: no licence that may be linked", dir)
	return "unknown"
}
