package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

type historyOptions struct {
	human, quiet, noTrunc bool
	format, platform      string
}

func newHistory(e *env) *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use:   "history [OPTIONS] IMAGE",
		Short: "Show the steps that made an image, or past builds",
		Long: `Show the steps that made an image. The commands below it are about the last builds:
BUILD is the ID of one or its beginning, ^ for the last one, ^N for the Nth before it.

An image that has the name of such a command is called by its tag: ls:latest.`,
		Example: "  strake history app\n  strake history --no-trunc --format '{{.CreatedBy}}' app\n  strake history ls                 # the last builds\n  strake history logs ^1            # the output of the last build but one",
		Args:    nArgs(1, 1, "one image"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runHistory(cmd.Context(), o, args[0], e) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.human, "human", "H", true, "sizes and times for people")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print IDs only")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "print whole commands and IDs")
	f.StringVar(&o.format, "format", "", formatHelp)
	f.StringVar(&o.platform, "platform", "", "which of the image's platforms to show")
	for _, c := range buildHistory(e) {
		c.DisableFlagsInUseLine = true
		cmd.AddCommand(c)
	}
	return cmd
}

type historyRow struct{ ID, CreatedSince, CreatedAt, CreatedBy, Size, Comment string }

func runHistory(_ context.Context, o historyOptions, arg string, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	name, err := s.images.Find(arg)
	if err != nil {
		return err
	}
	img, err := pick(name, arg, o.platform)
	if err != nil {
		return err
	}
	c, err := imageConfig(s.images, img.ID)
	if err != nil {
		return err
	}
	sizes, err := layerSizes(s.layers)
	if err != nil {
		return err
	}
	var rows []any
	layer := 0
	for _, h := range c.History {
		r := historyRow{ID: "<missing>", CreatedBy: cleaned(h.CreatedBy), Comment: cleaned(h.Comment), CreatedSince: "N/A"}
		var n int64
		if !h.EmptyLayer && layer < len(img.Tree) {
			n = sizes[img.Tree[layer]]
			layer++
		}
		if r.Size = size(n); !o.human {
			r.Size = strconv.FormatInt(n, 10)
		}
		if h.Created != nil {
			if r.CreatedAt, r.CreatedSince = h.Created.Format(time.RFC3339), since(*h.Created); !o.human {
				r.CreatedSince = r.CreatedAt
			}
		}
		if !o.noTrunc {
			r.CreatedBy = ellipsis(r.CreatedBy, 45)
		}
		rows = append(rows, r)
	}
	if len(rows) > 0 {
		last := rows[len(rows)-1].(historyRow)
		if last.ID = img.ID.String(); !o.noTrunc {
			last.ID = shortID(last.ID)
		}
		rows[len(rows)-1] = last
	}
	slices.Reverse(rows)
	columns := []column{{"ID", "IMAGE"}, {"CreatedSince", "CREATED"}, {"CreatedBy", "CREATED BY"}, {"Size", "SIZE"}, {"Comment", "COMMENT"}}
	if o.quiet && o.format == "" {
		return printItems(e.stdout, "{{.ID}}", rows)
	}
	return printTable(e.stdout, o.format, columns, []column{{"CreatedAt", "CREATED AT"}}, rows)
}

// ellipsis cuts s to n characters.
func ellipsis(s string, n int) string {
	r := []rune(strings.ReplaceAll(s, "\t", " "))
	if len(r) <= n {
		return string(r)
	}
	return string(r[:n-1]) + "…"
}
