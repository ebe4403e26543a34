// Command conformance runs tests that others wrote against strake: BuildKit's
// own tests of its Dockerfile frontend, unmodified, against `strake serve`, and
// build files (openshift/imagebuilder's, those in BuildKit's documentation, and
// testdata/layouts), which strake and BuildKit build and whose images are
// compared.
//
//	go run ./conformance -strake ./strake             # both
//	go run ./conformance -strake ./strake suite -run 'TestCopy.*'
//	go run ./conformance -strake ./strake corpus
//	go run ./conformance -strake ./strake difffuzz -seed 1 -n 100
//
// difffuzz compares the images of contexts and Dockerfiles that are made at
// random (package random); it ends with the smallest input that it finds for a
// difference.
//
// Both come from the Go module proxy, by version; nothing of them is kept in
// the repository but how each case of the suite ends with BuildKit itself
// (reference.txt), and the list of those that do not yet end so here
// (not-yet.txt), each with its reason. A case of the latter that does end so is
// an error: it is to be taken off the list. Without the proxy, or without a
// program that is needed, nothing is tested, and the command says so.
//
// Base images are stand-ins made of busybox: nothing comes from a registry.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	var missing missingError
	switch {
	case errors.As(err, &missing):
		fmt.Fprintf(os.Stderr, "\nNOT TESTED: conformance: %v\n\n", missing)
	case err != nil:
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// missingError tells what is not there that would be needed to test anything.
type missingError struct{ what string }

func (m missingError) Error() string { return m.what }

func run(ctx context.Context) error {
	strake := flag.String("strake", "./strake", "strake's program")
	out := flag.String("out", "", "directory for logs (default a temporary one, removed if all is well)")
	flag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: conformance [-strake FILE] [-out DIR] [suite [-run REGEXP] [-parallel N] | corpus [-run REGEXP] | difffuzz [-seed N] [-n N]]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	program, err := filepath.Abs(*strake)
	if err != nil {
		return err
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	keep := *out != ""
	if !keep {
		if *out, err = os.MkdirTemp("", "strake-conformance-"); err != nil {
			return err
		}
	}
	dir, err := filepath.Abs(*out)
	if err != nil {
		return err
	}
	args := flag.Args()
	what := ""
	if len(args) > 0 {
		what, args = args[0], args[1:]
	}
	switch what {
	case "suite":
		err = runSuite(ctx, program, dir, args)
	case "corpus":
		err = runCorpus(ctx, program, dir, args)
	case "difffuzz":
		err = runDifffuzz(ctx, program, dir, args)
	case "":
		err = errors.Join(runSuite(ctx, program, dir, nil), runCorpus(ctx, program, dir, nil))
	default:
		flag.Usage()
		return fmt.Errorf("%q is neither suite nor corpus nor difffuzz", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "logs are in", dir)
		return err
	}
	if !keep {
		return os.RemoveAll(dir)
	}
	return nil
}
