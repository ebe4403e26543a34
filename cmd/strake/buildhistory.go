package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/state"
	"github.com/strake-build/strake/state/builds"
	"github.com/strake-build/strake/state/builds/timeline"
)

// buildHistory are the commands about past builds, below the one about images.
func buildHistory(e *env) []*cobra.Command {
	return []*cobra.Command{newHistoryLs(e), newHistoryInspect(e), newHistoryLogs(e), newHistoryTrace(e), newHistoryOpen(e), newHistoryRm(e)}
}

// withBuilds runs fn with the records of builds.
func withBuilds(e *env, fn func(*store) error) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return fn(s)
}

// withBuild runs fn with the record that args name, the last one by default.
func withBuild(e *env, args []string, fn func(*store, builds.Record) error) error {
	return withBuilds(e, func(s *store) error {
		r, err := getBuild(s, cmp.Or(strings.Join(args, ""), "^"))
		if err != nil {
			return err
		}
		return fn(s, r)
	})
}

type buildRow struct{ Ref, Name, Status, CreatedAt, Duration, Steps, Cached string }

func newHistoryLs(e *env) *cobra.Command {
	var format string
	var filters []string
	var noTrunc, quiet bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List the last builds",
		Long: `List the last builds, those of 'strake serve' among them.

A filter is a list of conditions with commas, which all have to hold; of several
filters one has to. Conditions are on ref, status (completed, error, canceled or
running), repository and target, with ==, != or ~= (a regular expression), and on
startedAt, completedAt and duration, with <, <=, > or >= and a duration or a time.`,
		Example: "  strake history ls\n  strake history ls --filter status==error,startedAt'>'24h\n  strake history ls --format json",
		Args:    nArgs(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			return withBuilds(e, func(s *store) error {
				match, err := builds.ParseFilters(filters)
				if err != nil {
					return usagef("--%w", err)
				}
				list, err := s.builds().List()
				if err != nil {
					return err
				}
				var rows []any
				for _, r := range list {
					if !match(r) {
						continue
					}
					row := buildRow{
						Ref: r.Ref, Name: cleaned(buildName(r)), Status: string(r.Status), CreatedAt: r.Created.Local().Format(time.DateTime),
						Duration: took(r), Steps: fmt.Sprintf("%d/%d", r.Counts.Completed, r.Counts.Total), Cached: fmt.Sprint(r.Counts.Cached),
					}
					if !noTrunc && format == "" && !quiet {
						row.Ref = short12(row.Ref)
					}
					rows = append(rows, row)
				}
				if quiet {
					return printItems(e.stdout, "{{.Ref}}", rows)
				}
				columns := []column{{"Ref", "BUILD ID"}, {"Name", "NAME"}, {"Status", "STATUS"}, {"CreatedAt", "CREATED AT"}, {"Duration", "DURATION"}, {"Steps", "STEPS"}, {"Cached", "CACHED"}}
				return printTable(e.stdout, format, columns, columns, rows)
			})
		},
	}
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "list builds that match a `FILTER` only; may be repeated")
	cmd.Flags().StringVar(&format, "format", "", formatHelp)
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print whole IDs")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return cmd
}

// buildName is what a build was of: the directory, and the target.
func buildName(r builds.Record) string {
	name := r.Context
	if !isURL(name) {
		name = path.Base(name)
	}
	if name == "" || name == "." {
		name = cmp.Or(r.Frontend, "llb")
	}
	if f := r.Attrs["filename"]; f != "" && path.Base(f) != "Dockerfile" {
		name += "/" + path.Base(f)
	}
	if t := r.Attrs["target"]; t != "" {
		name += " (" + t + ")"
	}
	return name
}

func took(r builds.Record) string {
	if r.Ended.IsZero() {
		if r.Status != builds.Running {
			return ""
		}
		return time.Since(r.Created).Round(time.Second).String()
	}
	return r.Ended.Sub(r.Created).Round(100 * time.Millisecond).String()
}

func newHistoryInspect(e *env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "inspect [OPTIONS] [BUILD]",
		Short:   "Show what a build was, and what became of its steps",
		Example: "  strake history inspect\n  strake history inspect --format json ^1",
		Args:    nArgs(0, 1, "one build"),
		RunE: func(_ *cobra.Command, args []string) error {
			return withBuild(e, args, func(_ *store, r builds.Record) error {
				steps, err := r.Steps()
				if err != nil {
					return err
				}
				if format != "" {
					return printItems(e.stdout, format, []any{struct {
						builds.Record
						Steps []builds.Step `json:"steps"`
					}{r, steps}})
				}
				return inspectBuild(e.stdout, r, steps)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "print by a Go template, or 'json'")
	return cmd
}

func inspectBuild(w io.Writer, r builds.Record, steps []builds.Step) error {
	tw := tabwriter.NewWriter(w, 0, 1, 2, ' ', 0)
	line := func(what, value string) {
		if value != "" {
			fmt.Fprintf(tw, "%s:\t%s\n", what, cleaned(value))
		}
	}
	line("Build", r.Ref)
	line("Context", r.Context)
	line("File", r.Attrs["filename"])
	line("Target", r.Attrs["target"])
	line("Platform", r.Attrs["platform"])
	line("Status", string(r.Status))
	line("Error", r.Error)
	line("Created", r.Created.Local().Format(time.DateTime))
	line("Duration", took(r))
	line("Steps", fmt.Sprintf("%d of %d, %d cached", r.Counts.Completed, r.Counts.Total, r.Counts.Cached))
	for _, k := range slices.Sorted(maps.Keys(r.Attrs)) {
		if kind, name, ok := strings.Cut(k, ":"); ok {
			line(kind, name+"="+r.Attrs[k])
		}
	}
	for _, x := range r.Exporters {
		line("Output", strings.TrimSpace(x.Type+" "+x.Attrs["name"]+" "+x.Attrs["dest"]))
	}
	line("Digest", cmp.Or(r.Response["containerimage.digest"], r.Response["containerimage.config.digest"]))
	if err := tw.Flush(); err != nil || len(steps) == 0 {
		return err
	}
	tw = tabwriter.NewWriter(w, 0, 1, 2, ' ', 0)
	fmt.Fprintf(tw, "\nSTEP\tOUTCOME\tTOOK\tTEXT\n")
	for i, n := range visible(steps) {
		if s := steps[i]; n > 0 {
			t := ""
			if s.Took > 0 {
				t = s.Took.Round(time.Millisecond).String()
			}
			fmt.Fprintf(tw, "%d\t%s\t%s\t%s\n", n, cmp.Or(string(s.Outcome), "-"), t, cleaned(s.Name))
		}
	}
	return tw.Flush()
}

func newHistoryLogs(e *env) *cobra.Command {
	mode := "plain"
	cmd := &cobra.Command{
		Use:     "logs [OPTIONS] [BUILD]",
		Short:   "Show a build again, with the output of its steps",
		Example: "  strake history logs\n  strake history logs --progress rawjson ^1",
		Args:    nArgs(0, 1, "one build"),
		RunE: func(_ *cobra.Command, args []string) error {
			m, err := progress.ParseMode(mode)
			if err != nil || m != progress.Plain && m != progress.RawJSON {
				return usagef("--progress %s: it is plain or rawjson", mode)
			}
			return withBuild(e, args, func(_ *store, r builds.Record) error {
				d := progress.NewDisplay(e.stdout, progress.Options{Mode: m})
				err := r.Read(func(_ int, ev progress.Event) error { d.Event(ev); return nil })
				return errors.Join(err, d.Close())
			})
		},
	}
	cmd.Flags().StringVar(&mode, "progress", mode, "plain or rawjson")
	return cmd
}

func newHistoryTrace(e *env) *cobra.Command {
	var format, output string
	cmd := &cobra.Command{
		Use:   "trace [OPTIONS] [BUILD]",
		Short: "Print when the steps of a build ran, for a trace viewer",
		Long: `Print when the steps of a build ran: in the Trace Event Format, which Perfetto
(ui.perfetto.dev) and chrome://tracing show, or as the JSON of an OpenTelemetry trace.`,
		Example: "  strake history trace > trace.json\n  strake history trace --format otlp -o trace.json",
		Args:    nArgs(0, 1, "one build"),
		RunE: func(_ *cobra.Command, args []string) error {
			write := map[string]func(io.Writer, builds.Record, []timeline.Span) error{"chrome": timeline.WriteChrome, "otlp": timeline.WriteOTLP}[format]
			if write == nil {
				return usagef("--format %s: it is chrome or otlp", format)
			}
			return withBuild(e, args, func(_ *store, r builds.Record) error {
				spans, err := timeline.Read(r)
				if err != nil {
					return err
				}
				var b strings.Builder
				if err := write(&b, r, spans); err != nil {
					return err
				}
				return e.writeResult(output, b.String())
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "chrome", "chrome or otlp")
	cmd.Flags().StringVarP(&output, "output", "o", "-", "write to a `FILE`")
	return cmd
}

// writeResult writes to a file, or to stdout if that is "-".
func (e *env) writeResult(file, text string) error {
	if file == "-" {
		return e.printf("%s", text)
	}
	return state.WriteFile(file, []byte(text), 0o644, false)
}

func newHistoryOpen(e *env) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "open [OPTIONS] [BUILD]",
		Short:   "Write a page that shows when the steps of a build ran",
		Long:    "Write an HTML page that shows when the steps of a build ran, and print its name. The\npage needs nothing else: it can be sent to somebody, or kept by a CI job.",
		Example: "  strake history open\n  strake history open -o build.html ^1",
		Args:    nArgs(0, 1, "one build"),
		RunE: func(_ *cobra.Command, args []string) error {
			return withBuild(e, args, func(_ *store, r builds.Record) error {
				spans, err := timeline.Read(r)
				if err != nil {
					return err
				}
				var b strings.Builder
				if err := timeline.WriteHTML(&b, r, spans); err != nil {
					return err
				}
				file := cmp.Or(output, "build-"+fileName(r.Ref)+".html")
				if err := e.writeResult(file, b.String()); err != nil || file == "-" {
					return err
				}
				return e.printf("%s\n", file)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "the `FILE` to write, - for stdout (default build-ID.html)")
	return cmd
}

// fileName makes a ref, which a client may have chosen, a part of a file's name.
func fileName(ref string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '_'
	}, short12(ref))
}

func newHistoryRm(e *env) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "rm [OPTIONS] BUILD...",
		Short:   "Remove records and logs of builds",
		Example: "  strake history rm ^3\n  strake history rm --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("%q needs builds, or --all", cmd.CommandPath())
			}
			return withBuilds(e, func(s *store) error { return removeBuilds(cmd.Context(), s.builds(), args, e) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all builds but those under way")
	return cmd
}

// removeBuilds removes the builds named, or if none is all that have ended.
func removeBuilds(ctx context.Context, all *builds.Store, refs []string, e *env) error {
	var list []builds.Record
	for _, ref := range refs { // before one goes: ^1 is another one then
		r, err := all.Get(ref)
		if err != nil {
			return err
		}
		list = append(list, r)
	}
	if len(refs) == 0 {
		every, err := all.List()
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(every, func(r builds.Record) bool { return r.Status == builds.Running })
	}
	for _, r := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := all.Remove(r); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := e.printf("%s\n", r.Ref); err != nil {
			return err
		}
	}
	return nil
}
