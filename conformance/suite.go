package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"errors"
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
	"syscall"
	"time"
)

var (
	//go:embed reference.txt
	referenceText string
	//go:embed not-yet.txt
	notYetText string
)

// shim is what the tests find as buildkitd: strake with the address, store and
// configuration that they chose. $PATH without the shim's directory is what
// strake sees.
const shim = `#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	--config=*) config=${1#*=} ;;
	--addr | --root) eval "${1#--}=\$2"; shift ;;
	esac
	shift
done
PATH=${PATH#*:}
exec %q serve --addr "$addr" --root "$root" --config "$config"
`

func runSuite(ctx context.Context, strake, out string, args []string) error {
	flags := flag.NewFlagSet("suite", flag.ContinueOnError)
	only := flags.String("run", ".*", "regular expression of the cases' names")
	parallel := flags.Int("parallel", 2, "how many cases run at once")
	timeout := flags.Duration("timeout", 40*time.Minute, "of all")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := need("busybox", "docker-registry", "git", "go"); err != nil {
		return err
	}
	src, err := download(ctx, buildkit)
	if err != nil {
		return err
	}
	tests, err := compile(ctx, buildkit, src, "test", "./frontend/dockerfile", "dockerfile.test")
	if err != nil {
		return err
	}
	buildctl, err := compile(ctx, buildkit, src, "build", "./cmd/buildctl", "buildctl")
	if err != nil {
		return err
	}
	registry, err := exec.LookPath("docker-registry")
	if err != nil {
		return err
	}
	m, err := newMirror(filepath.Join(out, "mirror"))
	if err != nil {
		return err
	}
	bin := filepath.Join(out, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(bin, "buildkitd"), fmt.Appendf(nil, shim, strake), 0o755),
		link(registry, filepath.Join(bin, "registry")), link(buildctl, filepath.Join(bin, "buildctl")),
	); err != nil {
		return err
	}
	logFile := filepath.Join(out, "suite.log")
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, tests, "-test.v", "-test.timeout", timeout.String(), "-test.parallel", fmt.Sprint(*parallel),
		"-test.run", "TestIntegration/("+*only+")/worker=oci$")
	cmd.Dir = filepath.Join(src, "frontend", "dockerfile")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "BUILDKIT_REGISTRY_MIRROR_DIR="+m.dir,
		"FRONTEND_BUILTIN_ONLY=1", "BUILDKIT_TEST_DISABLE_FEATURES=", "REGISTRY_LOG_LEVEL=info")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	fmt.Println("running BuildKit's tests of the Dockerfile frontend")
	// Failed cases are an error of the program, too: what counts is how each
	// case ended.
	if err := cmd.Run(); ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil && cmd.ProcessState == nil {
		return err
	}
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return err
	}
	found, err := readLog(log)
	if err != nil {
		return err
	}
	return judge(os.Stdout, found, parseList(referenceText), parseList(notYetText), *only == ".*")
}

func link(target, name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(target, name)
}

// outcome is how a case ended.
type outcome struct {
	verdict string   // PASS, FAIL or SKIP
	errors  []string // first lines of what went wrong
}

var (
	verdictLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): TestIntegration/(\S+)`)
	currentLine = regexp.MustCompile(`^=== (?:NAME|RUN|CONT)\s+TestIntegration/(\S+)`)
	matrixPart  = regexp.MustCompile(`^(?:worker|frontend|env|security\.insecure|network\.host)=`)
)

// readLog reads the cases out of the tests' output. A case is a test with its
// place in the matrix of workers and options; what is below it is part of it.
func readLog(r io.Reader) (map[string]outcome, error) {
	found := map[string]outcome{}
	messages := map[string][]string{}
	current, more := "", 0
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		line := s.Text()
		if m := verdictLine.FindStringSubmatch(line); m != nil {
			name, whole := caseName(m[2])
			if whole {
				found[name] = outcome{verdict: m[1]}
			}
			current, more = name, 0
			continue
		}
		if m := currentLine.FindStringSubmatch(line); m != nil {
			current, _ = caseName(m[1])
			more = 0
			continue
		}
		if strings.Contains(line, "Error:") || strings.HasPrefix(line, "panic:") {
			more = 4
		}
		if more > 0 && len(messages[current]) < 8 {
			more--
			messages[current] = append(messages[current], strings.TrimSpace(line))
		}
	}
	for name, o := range found {
		o.errors = messages[name]
		found[name] = o
	}
	return found, s.Err()
}

// caseName is the name of the case that a test is, or is a part of.
func caseName(test string) (name string, whole bool) {
	parts := slices.DeleteFunc(strings.Split(test, "/"), func(p string) bool { return strings.HasPrefix(p, "slice=") })
	end := 1
	for end < len(parts) && matrixPart.MatchString(parts[end]) {
		end++
	}
	return strings.Join(parts[:end], "/"), end == len(parts) && end > 1
}

// parseList reads lines of a case and what is said of it, in either order of
// the two: verdicts are before the name, reasons after it.
func parseList(text string) map[string]string {
	list := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		first, rest, _ := strings.Cut(line, " ")
		if first == "PASS" || first == "FAIL" || first == "SKIP" {
			list[rest] = first
		} else {
			list[first] = strings.TrimSpace(rest)
		}
	}
	return list
}

// judge compares with the reference: only cases that do not fail there count.
// complete tells that all cases were run.
func judge(w io.Writer, found map[string]outcome, reference, notYet map[string]string, complete bool) error {
	if len(found) == 0 {
		return errors.New("no case was run")
	}
	same, total := 0, 0
	var wrong, done []string
	for _, name := range slices.Sorted(maps.Keys(reference)) {
		want := reference[name]
		got, ran := found[name]
		if want == "FAIL" || !ran && !complete {
			continue
		}
		total++
		_, listed := notYet[name]
		switch {
		case got.verdict == want:
			same++
			if listed {
				done = append(done, name)
			}
		case !listed:
			wrong = append(wrong, name)
		}
	}
	fmt.Fprintf(w, "%d of %d cases end as with BuildKit\n", same, total)
	for _, name := range slices.Sorted(maps.Keys(notYet)) {
		if reference[name] == "" {
			done = append(done, name+" (there is no such case)")
		} else if _, ran := found[name]; ran && !slices.Contains(done, name) {
			fmt.Fprintf(w, "not yet: %s: %s\n", name, notYet[name])
		}
	}
	for _, name := range wrong {
		got := cmp.Or(found[name].verdict, "nothing: it did not run")
		fmt.Fprintf(w, "WRONG %s: %s instead of %s\n", name, got, reference[name])
		for _, line := range found[name].errors {
			fmt.Fprintf(w, "    %s\n", line)
		}
	}
	for _, name := range done {
		fmt.Fprintf(w, "TAKE IT OFF the list conformance/not-yet.txt: %s\n", name)
	}
	if len(wrong) > 0 || len(done) > 0 {
		return fmt.Errorf("%d cases don't end as they should, %d are on the list of those to be done and are done", len(wrong), len(done))
	}
	return nil
}
