package main

import (
	"github.com/spf13/pflag"

	"github.com/strake-build/strake/progress"
)

// displayOptions are the flags of commands that show progress.
type displayOptions struct {
	progress string
	quiet    bool
}

func (o *displayOptions) addFlags(f *pflag.FlagSet, quiet string) {
	f.StringVar(&o.progress, "progress", "auto", "how to show what goes on: auto, tty, plain, rawjson or quiet")
	f.BoolVarP(&o.quiet, "quiet", "q", false, quiet)
}

// display starts to show events on stderr, and to keep them in logs if that is
// not nil.
func (e *env) display(o displayOptions, logs *progress.Logs) (*progress.Display, error) {
	mode, err := progress.ParseMode(o.progress)
	if err != nil {
		return nil, usagef("--progress: %w", err)
	}
	if o.quiet {
		mode = progress.Quiet
	}
	size := e.size(e.stderr)
	if mode == progress.TTY && size == nil {
		return nil, usagef("--progress tty: stderr is no terminal")
	}
	opts := progress.Options{Mode: mode, Size: size, Color: e.getenv("NO_COLOR") == "", Logs: logs}
	e.printed = mode == progress.Plain || mode == progress.Auto && size == nil
	d := progress.NewDisplay(e.stderr, opts)
	if logs != nil {
		e.logFile = func(step string) string {
			if n := d.NumberOf(step); n > 0 {
				return logs.Path(n)
			}
			return ""
		}
	}
	return d, nil
}

// closeDisplay ends a display; that something could not be shown is no failure
// of the command.
func (e *env) closeDisplay(d *progress.Display) {
	if err := d.Close(); err != nil {
		e.warnf("%v", err)
	}
}
