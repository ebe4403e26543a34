package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/state/gc"
)

type pruneOptions struct {
	all, force, images         bool
	filters                    []string
	reserved, maxUsed, minFree string
	keepDuration               time.Duration
}

func newPrune(e *env) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove build cache to free space",
		Long: `Remove results of steps, cache mounts and whatever else no image needs and no
process uses. It is made again by the next build that wants it. Images stay,
but for those without a name if --images is given.`,
		Example: "  strake prune\n  strake prune --force --filter until=168h\n  strake prune --force --max-used-space 20GB --reserved-space 5GB\n  strake prune --force --keep-duration 48h",
		Args:    nArgs(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runPrune(cmd.Context(), o, e) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "forget results whose layers are part of images, too")
	f.BoolVarP(&o.force, "force", "f", false, "do not ask")
	f.BoolVar(&o.images, "images", false, "remove images without a name, too")
	f.StringArrayVar(&o.filters, "filter", nil, "remove only some: until=DURATION (not used for that long), type=layer|blob|cachemount|context|segments, id=ID")
	f.DurationVar(&o.keepDuration, "keep-duration", 0, "keep what was used within this time, as 48h")
	f.StringVar(&o.reserved, "reserved-space", "", "space that is kept in any case, as 10GB")
	f.StringVar(&o.maxUsed, "max-used-space", "", "remove until the store takes no more than this")
	f.StringVar(&o.minFree, "min-free-space", "", "remove until this is free on the disk")
	return cmd
}

func (o pruneOptions) request() (gc.Options, error) {
	r := gc.Options{All: o.all, KeepDuration: o.keepDuration}
	if o.keepDuration < 0 {
		return r, usagef("--keep-duration %s: it is a duration, as 48h", o.keepDuration)
	}
	for flag, v := range map[string]struct {
		text string
		to   *int64
	}{"reserved-space": {o.reserved, &r.Reserved}, "max-used-space": {o.maxUsed, &r.MaxUsed}, "min-free-space": {o.minFree, &r.MinFree}} {
		if v.text == "" {
			continue
		}
		n, err := units.FromHumanSize(v.text)
		if err != nil || n < 0 {
			return r, usagef("--%s %s: it is a number of bytes, as 500MB or 10GB", flag, v.text)
		}
		*v.to = n
	}
	for _, f := range o.filters {
		key, value, err := splitPair("filter", f)
		if err != nil {
			return r, err
		}
		switch key {
		case "until":
			if r.KeepDuration, err = time.ParseDuration(value); err != nil || r.KeepDuration < 0 {
				return r, usagef("--filter %s: it is a duration, as 24h", f)
			}
		case "type":
			switch t := gc.Type(value); t {
			case gc.TypeLayer, gc.TypeBlob, gc.TypeCacheMount, gc.TypeContext, gc.TypeSegments:
				r.Types = append(r.Types, t)
			default:
				return r, usagef("--filter %s: it is layer, blob, cachemount, context or segments", f)
			}
		case "id":
			r.IDs = append(r.IDs, value)
		default:
			return r, usagef("--filter %s: it is until, type or id", f)
		}
	}
	return r, nil
}

func runPrune(ctx context.Context, o pruneOptions, e *env) (err error) {
	request, err := o.request()
	if err != nil {
		return err
	}
	if !o.force {
		if ok, err := e.ask("WARNING! This will remove build cache that no image needs.\nAre you sure you want to continue? [y/N] "); err != nil || !ok {
			return err
		}
	}
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if o.images {
		if err := removeUnnamed(s, e); err != nil {
			return err
		}
	}
	keeper, err := s.gc(e)
	if err != nil {
		return err
	}
	removed, err := keeper.Prune(ctx, request)
	var total int64
	for _, en := range removed {
		total += en.Size
	}
	perr := printTable(e.stdout, "", []column{{"ID", "ID"}, {"Type", "TYPE"}, {"Size", "SIZE"}, {"LastUsedSince", "LAST ACCESSED"}}, nil, usageRows(removed))
	return errors.Join(err, perr, e.printf("Total: %s\n", size(total)))
}

// ask asks a question on the terminal.
func (e *env) ask(question string) (bool, error) {
	if !e.isTerminal(e.stdin) {
		return false, usagef("stdin is no terminal to ask on: add --force")
	}
	fmt.Fprint(e.stderr, question)
	line, err := bufio.NewReader(e.stdin).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes", err
}

// removeUnnamed removes the images that have no name.
func removeUnnamed(s *store, e *env) error {
	deleted, err := s.images.RemoveUnnamed()
	for _, id := range deleted {
		err = errors.Join(err, e.printf("Deleted: %s\n", id))
	}
	return err
}
