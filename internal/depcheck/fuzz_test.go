package depcheck

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fuzzed are the things that strangers write or that a crash can damage, and the
// fuzz targets that each must have.
var fuzzed = map[string][]string{
	"build file":          {"parser FuzzBuildFile", "parser FuzzNesting"},
	"ignore file":         {"parser/ignore FuzzIgnored"},
	"plan":                {"parser FuzzPlan", "plan FuzzCanonical"},
	"tar apply":           {"layers FuzzApply", "layers FuzzApplyEntries", "layers FuzzReadTar"},
	"tar-diff round trip": {"layers/snapshot FuzzDiff"},
	"whiteouts":           {"layers/snapshot FuzzWhiteouts"},
	"manifests":           {"internal/manifest FuzzChoose", "layers/image FuzzLoad"},
	"config":              {"internal/manifest FuzzConfig", "parser FuzzBaseConfig"},
	"LLB":                 {"daemon/buildkitapi FuzzTranslate"},
	"cache records":       {"cache FuzzDecodeRecord", "cache/remote FuzzRemoteRecord"},
	"store log":           {"cache FuzzLog", "cache FuzzStore"},
	"references":          {"registry FuzzReference"},
	"path resolution":     {"builder/file FuzzResolve", "builder/sandbox/linux FuzzTarget"},
}

// TestFuzzTargets checks that scripts/fuzz, which runs the targets, and
// .ossfuzz/build.sh, which has OSS-Fuzz run them, know each of them, that each
// has seeds, and that OSS-Fuzz's compiler finds it: it looks for the name in all
// files below the package.
func TestFuzzTargets(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	var want, files []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(fn.Name.Name, "Fuzz") {
				continue
			}
			dir, err := filepath.Rel(root, filepath.Dir(p))
			if err != nil {
				return err
			}
			want, files = append(want, dir+" "+fn.Name.Name), append(files, p)
			_, none := os.Stat(filepath.Join(filepath.Dir(p), "testdata", "fuzz", fn.Name.Name))
			if none != nil && !adds(fn) {
				t.Errorf("%s: %s has no seeds", p, fn.Name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, target := range want {
		dir, name, _ := strings.Cut(target, " ")
		for j, other := range want {
			if d, n, _ := strings.Cut(other, " "); i != j && n == name && strings.HasPrefix(d+"/", dir+"/") {
				t.Errorf("%s and %s have a target of the same name, %s: OSS-Fuzz's compiler finds both for %s", files[i], files[j], name, dir)
			}
		}
	}
	for what, targets := range fuzzed {
		for _, target := range targets {
			if !slices.Contains(want, target) {
				t.Errorf("%s: there is no target %s", what, target)
			}
		}
	}
	slices.Sort(want)

	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "compile_native_go_fuzzer_v2"), []byte("#!/bin/sh\necho \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) []string {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env, cmd.Stderr = root, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH")), os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		slices.Sort(lines)
		return lines
	}
	if diff := cmp.Diff(want, run("scripts/fuzz", "list")); diff != "" {
		t.Errorf("scripts/fuzz list (-want +got):\n%s", diff)
	}
	var calls []string
	for _, target := range want {
		dir, name, _ := strings.Cut(target, " ")
		calls = append(calls, fmt.Sprintf("%s %s %s_%s", path.Join(module, dir), name, strings.ReplaceAll(dir, "/", "_"), name))
	}
	slices.Sort(calls)
	if diff := cmp.Diff(calls, run(".ossfuzz/build.sh")); diff != "" {
		t.Errorf(".ossfuzz/build.sh (-want +got):\n%s", diff)
	}
}

// adds reports whether a fuzz target calls f.Add.
func adds(fn *ast.FuncDecl) (found bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		found = found || ok && s.Sel.Name == "Add"
		return true
	})
	return found
}
