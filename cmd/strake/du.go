package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/state/gc"
)

type duOptions struct {
	verbose bool
	format  string
}

func newDu(e *env) *cobra.Command {
	var o duOptions
	cmd := &cobra.Command{
		Use:     "du [OPTIONS]",
		Short:   "Show what takes space in the store",
		Example: "  strake du\n  strake du --format json",
		Args:    nArgs(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runDu(cmd.Context(), o, e) },
	}
	cmd.Flags().BoolVar(&o.verbose, "verbose", false, "tell what each thing is")
	cmd.Flags().StringVar(&o.format, "format", "", formatHelp)
	return cmd
}

// usageRow is an entry of the store in a list.
type usageRow struct{ ID, Type, Reclaimable, InUse, Size, Bytes, CreatedSince, LastUsedSince, Description string }

var (
	usageColumns   = []column{{"ID", "ID"}, {"Type", "TYPE"}, {"Reclaimable", "RECLAIMABLE"}, {"Size", "SIZE"}, {"LastUsedSince", "LAST ACCESSED"}}
	verboseColumns = append(usageColumns[:len(usageColumns):len(usageColumns)], column{"InUse", "IN USE"}, column{"CreatedSince", "CREATED"}, column{"Description", "DESCRIPTION"})
)

func runDu(ctx context.Context, o duOptions, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	keeper, err := s.gc(e)
	if err != nil {
		return err
	}
	entries, err := keeper.Usage(ctx)
	if err != nil {
		return err
	}
	columns := usageColumns
	if o.verbose {
		columns = verboseColumns
	}
	if err := printTable(e.stdout, o.format, columns, verboseColumns, usageRows(entries)); err != nil || o.format != "" {
		return err
	}
	var total, reclaimable int64
	for _, en := range entries {
		total += en.Size
		if en.Reclaimable() {
			reclaimable += en.Size
		}
	}
	return e.printf("Reclaimable: %s\nTotal:       %s\n", size(reclaimable), size(total))
}

func usageRows(entries []gc.Entry) []any {
	var rows []any
	for _, en := range entries {
		r := usageRow{
			ID: en.ID, Type: string(en.Type), Reclaimable: fmt.Sprint(en.Reclaimable()), InUse: fmt.Sprint(en.InUse),
			Size: size(en.Size), Bytes: strconv.FormatInt(en.Size, 10), CreatedSince: ago(en.Created), LastUsedSince: ago(en.Used), Description: cleaned(en.Description),
		}
		if en.Type == gc.TypeLayer || en.Type == gc.TypeBlob || en.Type == gc.TypeCacheMount || en.Type == gc.TypeContext {
			r.ID = shortID(en.ID)
		}
		rows = append(rows, r)
	}
	return rows
}

// ago tells how long ago t was; empty if that isn't known.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

// gc returns what looks after the store.
func (s *store) gc(e *env) (*gc.Store, error) {
	c, err := cache.Open(s.Root, func(err error) { e.warnf("%v", err) })
	if err != nil {
		return nil, err
	}
	s.onClose(c.Close)
	return &gc.Store{Root: s.Root, Layers: s.layers, Blobs: s.blobs, Images: s.images, Cache: c}, nil
}
