package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/term"
)

// env is all that a command sees of the world. Nothing else in the program
// reads the environment or uses the standard streams.
type env struct {
	stdin          *os.File
	stdout, stderr *os.File
	lookup         func(string) (string, bool)

	// Of the global flags:
	root  string
	debug bool

	// printed tells that a display showed all output of failed steps.
	printed bool
	// logFile returns the log file of a failed step by its name.
	logFile func(step string) string
}

func processEnv() *env {
	return &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, lookup: os.LookupEnv}
}

// gitEnv is what git may see of the environment: how to reach remotes, and the
// programs it needs.
func (e *env) gitEnv() []string {
	var vars []string
	for _, name := range []string{
		"PATH", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
	} {
		if v := e.getenv(name); v != "" {
			vars = append(vars, name+"="+v)
		}
	}
	return vars
}

// knownHosts is the file of the ssh hosts that the user knows.
func (e *env) knownHosts() string {
	if h := e.getenv("HOME"); h != "" {
		return filepath.Join(h, ".ssh", "known_hosts")
	}
	return ""
}

// getenv is os.Getenv.
func (e *env) getenv(name string) string {
	v, _ := e.lookup(name)
	return v
}

// printf writes to stdout.
func (e *env) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(e.stdout, format, args...)
	return err
}

// warnf writes a line to stderr.
func (e *env) warnf(format string, args ...any) {
	fmt.Fprintf(e.stderr, "WARNING: "+format+"\n", args...)
}

// notef writes a line to stderr that is no warning.
func (e *env) notef(format string, args ...any) {
	fmt.Fprintf(e.stderr, format+"\n", args...)
}

// isTerminal reports whether f is a terminal that understands escape sequences.
func (e *env) isTerminal(f *os.File) bool {
	return term.IsTerminal(int(f.Fd()))
}

// size returns how to ask for the size of the terminal that f is; nil if it is
// none, or a dumb one.
func (e *env) size(f *os.File) func() (int, int, error) {
	if !e.isTerminal(f) || e.getenv("TERM") == "dumb" {
		return nil
	}
	return func() (int, int, error) { return term.GetSize(int(f.Fd())) }
}

// storeDir is the directory of the store. uid is the user's outside of any user
// namespace.
func (e *env) storeDir(uid int) (string, error) {
	if e.root != "" {
		return e.root, nil
	}
	if r := e.getenv("STRAKE_ROOT"); r != "" {
		return r, nil
	}
	if uid == 0 {
		return "/var/lib/strake", nil
	}
	if d := e.getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "strake"), nil
	}
	if h := e.getenv("HOME"); h != "" {
		return filepath.Join(h, ".local", "share", "strake"), nil
	}
	return "", errors.New("no place for the store: neither HOME nor XDG_DATA_HOME is set; give one with --root or STRAKE_ROOT")
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig syscall.Signal }

func (s signalError) Error() string { return "canceled" }

// Is tells that this is no failure of whatever was under way.
func (s signalError) Is(target error) bool { return target == context.Canceled }

// withSignals returns a context that ends with the first SIGINT, SIGTERM or
// SIGHUP. The second one ends the process, unless take is called first: then
// signals go to the function given to it. Broken pipes are errors of the write
// and no signals. That holds from when ready returns, which takes a moment, to the
// end of the process.
func withSignals(ctx context.Context) (_ context.Context, s *signals, ready func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s = &signals{}
	// Room for the signals of a whole job: none is lost while one is dealt
	// with.
	ch := make(chan os.Signal, 16)
	notified := make(chan struct{})
	go func() {
		signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE)
		close(notified)
		n := 0
		for sig := range ch {
			sig := sig.(syscall.Signal)
			if sig == syscall.SIGPIPE {
				continue
			}
			if to := s.to.Load(); to != nil {
				(*to)(sig)
				continue
			}
			n++
			// Only signals that mean the end do end; the others have their
			// usual effect.
			if n > 1 || sig == syscall.SIGQUIT || sig == syscall.SIGUSR1 || sig == syscall.SIGUSR2 {
				signal.Reset(sig)
				_ = syscall.Kill(os.Getpid(), sig)
				continue
			}
			cancel(signalError{sig})
		}
	}()
	return ctx, s, func() { <-notified }
}

// signals are the signals to this process.
type signals struct {
	to atomic.Pointer[func(syscall.Signal)]
}

// take sends signals to fn from now on.
func (s *signals) take(fn func(syscall.Signal)) { s.to.Store(&fn) }

// give ends take.
func (s *signals) give() { s.to.Store(nil) }

// splitPair splits "key=value" and reports an error that names the flag.
func splitPair(flag, s string) (key, value string, err error) {
	key, value, ok := strings.Cut(s, "=")
	if !ok || key == "" {
		return "", "", usagef("--%s %s: it is of the form name=value", flag, s)
	}
	return key, value, nil
}
