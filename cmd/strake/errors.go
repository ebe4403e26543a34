package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/containerd/platforms"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// Exit codes. docs/cli.md and `strake help exit-codes` tell users.
const (
	exitFailure     = 1
	exitUsage       = 125 // also: run could not run anything
	exitNotRunnable = 126
	exitNotFound    = 127
	exitSignal      = 128 // plus the number of the signal
)

// usageError is a fault of the command line.
type usageError struct{ err error }

func (u usageError) Error() string { return u.err.Error() }
func (u usageError) Unwrap() error { return u.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitError ends the program with a code. A nil err prints nothing.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e exitError) Unwrap() error { return e.err }

// report is the one place where errors become text and an exit code. command is
// the command that failed, "strake build", for the hint to its help.
func (e *env) report(command string, err error) int {
	if err == nil {
		return 0
	}
	var (
		sig   signalError
		exit  exitError
		usage usageError
		step  *builder.StepError
		place *plan.Error
	)
	code := exitFailure
	switch {
	case errors.As(err, &sig):
		fmt.Fprintln(e.stderr, "canceled")
		return exitSignal + int(sig.sig)
	case errors.Is(err, syscall.EPIPE):
		// Whoever read our output has gone, and wants to hear no more.
		return exitFailure
	case errors.As(err, &exit):
		if exit.err == nil {
			return exit.code
		}
		code = exit.code
	case errors.As(err, &usage):
		fmt.Fprintf(e.stderr, "ERROR: %s\n", text(err))
		if command != "" {
			fmt.Fprintf(e.stderr, "\nSee '%s --help'.\n", command)
		}
		return exitUsage
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(e.stderr, "canceled")
		return exitFailure
	}
	if errors.As(err, &step) {
		e.reportStep(step)
	} else if errors.As(err, &place) {
		fmt.Fprint(e.stderr, place.Source.Excerpt())
	}
	fmt.Fprintf(e.stderr, "ERROR: %s\n", text(err))
	if e.debug {
		e.chain(err, 1)
	}
	if next := e.advice(err, step); next != "" {
		fmt.Fprintf(e.stderr, "\n%s\n", next)
	}
	return code
}

// shownLines is how much of a failed step's output is repeated when it was
// printed in full before.
const shownLines = 10

// reportStep prints the end of the step's output and its place in the build
// file.
func (e *env) reportStep(s *builder.StepError) {
	if lines := progress.Lines(s.Log); len(lines) > 0 {
		if e.printed && len(lines) > shownLines {
			lines = lines[len(lines)-shownLines:]
		}
		fmt.Fprintf(e.stderr, "------\n > %s:\n%s\n------\n", progress.Clean(s.Step.Name), strings.Join(lines, "\n"))
	}
	if s.Step.Source != nil {
		fmt.Fprint(e.stderr, s.Step.Source.Excerpt())
	}
}

// advice says what to do about an error; empty if there is nothing to say.
func (e *env) advice(err error, step *builder.StepError) string {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return "The disk is full. `strake du` tells what strake keeps, `strake prune` frees what can be made again."
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Sprintf("This machine runs programs for %s. If that one is for another processor, install an emulator (Debian: qemu-user-static and binfmt-support);\n`strake doctor` tells what is there. Build stages with FROM --platform=$BUILDPLATFORM need none.", platforms.Format(thisPlatform()))
	case step != nil && e.logFile != nil && len(step.Log) > 0:
		if f := e.logFile(step.Step.Name); f != "" {
			return "All output of the step is in " + f
		}
	}
	return ""
}

// chain prints an error and what it wraps with their types, for reports of bugs.
func (e *env) chain(err error, depth int) {
	fmt.Fprintf(e.stderr, "%*s%T: %s\n", 2*depth, "", err, text(err))
	switch w := err.(type) {
	case interface{ Unwrap() error }:
		if in := w.Unwrap(); in != nil {
			e.chain(in, depth+1)
		}
	case interface{ Unwrap() []error }:
		for _, in := range w.Unwrap() {
			e.chain(in, depth+1)
		}
	}
}

// text is an error as it is printed: parts that come from others can't control
// the terminal.
func text(err error) string {
	return strings.Join(progress.Lines([]byte(err.Error())), "\n")
}
