package main

import (
	"fmt"
	"os"
	"sync"

	"github.com/strake-build/strake/builder"
)

// checkOnError checks --on-error.
func (o buildOptions) checkOnError(e *env) error {
	switch {
	case o.onError == "":
		return nil
	case o.onError != "shell":
		return usagef("--on-error %s: it is shell", o.onError)
	case !e.isTerminal(e.stdin) || !e.isTerminal(e.stdout):
		return usagef("--on-error shell: the shell needs a terminal, and stdin and stdout are none")
	}
	return nil
}

// shellOnError returns what opens a shell where the first step failed; others
// that fail are let go. hide ends what else is shown on the terminal.
func (e *env) shellOnError(hide func()) func(*builder.StepError, func([]string, func(*os.File)) (int, error)) {
	var once sync.Once
	return func(err *builder.StepError, run func([]string, func(*os.File)) (int, error)) {
		once.Do(func() {
			hide()
			e.reportStep(err)
			e.notef("%s", text(err))
			e.notef("A shell where the step failed; what you change is forgotten. End it by `exit`.")
			take, restore, rerr := e.attach(true)
			if rerr == nil {
				_, rerr = run([]string{"/bin/sh"}, take)
				restore()
			}
			if rerr != nil {
				fmt.Fprintf(e.stderr, "WARNING: no shell could be run: %s\n", text(rerr))
			}
		})
	}
}
