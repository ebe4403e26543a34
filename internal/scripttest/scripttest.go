// Package scripttest is what the scripts in testdata/script can use besides
// testscript's own commands. A script is one file that runs the real strake
// against files that stand in it, and tells what comes of it; a reader learns
// the feature from it.
//
// Each script has a store, a home directory and the registries that it starts
// for itself, and fails if it leaves a mount or a process behind. Names are
// category_case.txtar: build_copy_chown.txtar. Run one by
//
//	go test ./cmd/strake -run 'Script/build_copy'
//
// and rewrite expected files by adding -update.
//
// Commands:
//
//	registry VAR              start a registry on loopback; $VAR is its address
//	distribution VAR          likewise, Debian's docker-registry ([exec:docker-registry])
//	buildkitd VAR REGISTRY    start BuildKit ([buildkitd], [exec:runc]); $VAR is its address. It
//	                          speaks http to the registry
//	busybox REF               push a small base image that has a shell
//	validate REF|ARCHIVE      check an image as go-containerregistry does
//	config REF|ARCHIVE        print the image configuration
//	manifest REF              print the manifest or index
//	layers REF|ARCHIVE        list the entries of each layer
//	tartree FILE              list the entries of a tar file
//	subst VAR FILE...         replace $VAR in files by its value
//	mktar FILE DIR            make a tar of a directory
//	fileserver VAR DIR        serve a directory by http; $VAR is its URL
//	s3 VAR                    start an S3 server with the bucket "cache"; $VAR is its URL
//	gha VAR                   start a stand-in for GitHub's cache service, as a workflow sees it
//	traffic VAR               print what the registry (or other) at $VAR was asked since the last time
//	spoil PERCENT DIR         remove or damage blobs, as those of the registry in $VAR_BLOBS
//
// Conditions: [root], [userns] (an ordinary user may make user namespaces),
// [sandbox] (processes can be run: root), [busybox], [static] (strake needs no
// dynamic loader, and can run in any root), [buildctl], [buildkitd] and [buildx]
// (they are built from their modules, once, and are in $PATH; buildkitd takes a
// minute, and only scripts/caches asks for it), [azurite] (the storage of gha is a
// real one; see scripts/caches).
package scripttest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/strake-build/strake/cache/remote/gha/ghatest"
)

// Params runs the scripts in dir.
func Params(dir string, update bool) testscript.Params {
	return testscript.Params{
		Dir:                dir,
		UpdateScripts:      update,
		RequireUniqueNames: true,
		Setup:              setup,
		Condition:          condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"registry":     startRegistry,
			"distribution": startDistribution,
			"buildkitd":    startBuildKit,
			"busybox":      pushBusybox,
			"validate":     validateImage,
			"config":       printConfig,
			"manifest":     printManifest,
			"layers":       printLayers,
			"statements":   printStatements,
			"tartree":      printTar,
			"subst":        subst,
			"mktar":        makeTar,
			"fileserver":   serveFiles,
			"s3":           startS3,
			"gha":          startGHA,
			"traffic":      printTraffic,
			"spoil":        spoil,
		},
	}
}

func setup(e *testscript.Env) error {
	// Beside the script's files, which often are the build context.
	home := e.WorkDir + ".home"
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	e.Setenv("HOME", home)
	e.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
	e.Setenv("STRAKE_ROOT", e.WorkDir+".store")
	e.Setenv("XDG_DATA_HOME", "")
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		return err
	}
	e.Setenv("EXAMPLES", examples)
	e.Setenv("PATH", clientDir()+string(os.PathListSeparator)+e.Getenv("PATH"))
	e.Setenv("TERM", "dumb")
	t, ok := e.T().(interface{ Errorf(string, ...any) })
	e.Defer(func() {
		found := leaks(e.WorkDir)
		for _, l := range found {
			if ok {
				t.Errorf("left behind: %s", l)
			} else {
				e.T().Log("left behind: " + l)
			}
		}
		if len(found) > 0 {
			return // what is mounted there is not to be removed
		}
		for _, dir := range []string{home, e.WorkDir + ".store"} {
			if err := os.RemoveAll(dir); err != nil {
				e.T().Log(err)
			}
		}
	})
	return nil
}

// leaks returns the mounts below dir, and the processes that name it.
func leaks(dir string) (found []string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(dir)) {
			found = append(found, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

func condition(cond string) (bool, error) {
	switch cond {
	case "static":
		return isStatic(), nil
	case "root", "sandbox":
		return os.Getuid() == 0, nil
	case "busybox":
		_, err := exec.LookPath("busybox")
		return err == nil, nil
	case "buildctl", "buildkitd", "buildx":
		if cond == "buildkitd" && os.Getenv("STRAKE_TEST_BUILDKITD") == "" {
			return false, nil
		}
		ok, err := haveClient(cond)
		if err != nil {
			// The script says what is not tested, this says why.
			fmt.Fprintf(os.Stderr, "%s: %v\n", cond, err)
		}
		return ok, nil
	case "azurite":
		return os.Getenv(ghatest.Variable) != "", nil
	case "userns":
		return exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Ur", "true").Run() == nil, nil
	}
	return false, os.ErrInvalid
}

func serveFiles(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "fileserver VAR DIR")
	s := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[1]))))
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.URL)
}

func one(ts *testscript.TestScript, neg bool, args []string, usage string) {
	if neg || len(args) != len(strings.Fields(usage))-1 {
		ts.Fatalf("usage: %s", usage)
	}
}

// isStatic reports whether this program, which is strake, too, is linked
// statically.
func isStatic() bool {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}
