package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/strake-build/strake/internal/shortname"
)

type loadOptions struct {
	input string
	quiet bool
}

func newLoad(e *env) *cobra.Command {
	var o loadOptions
	cmd := &cobra.Command{
		Use:     "load [OPTIONS]",
		Short:   "Read images from an archive",
		Long:    "Read images from an archive of `docker save`, `strake save` or an OCI layout, compressed or not.",
		Example: "  strake load -i app.tar\n  docker save app | strake load",
		Args:    nArgs(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runLoad(cmd.Context(), o, e) },
	}
	cmd.Flags().StringVarP(&o.input, "input", "i", "", "read a `FILE` instead of stdin")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print nothing")
	return cmd
}

func runLoad(ctx context.Context, o loadOptions, e *env) (err error) {
	if o.input == "" && e.isTerminal(e.stdin) {
		return usagef("an archive is not read from a terminal: use -i, or redirect stdin")
	}
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	in := e.stdin
	if o.input != "" {
		if in, err = os.Open(o.input); err != nil {
			return err
		}
		defer in.Close()
	}
	names, err := s.images.Load(ctx, in, s.layers)
	if err != nil || o.quiet {
		return err
	}
	for _, n := range names {
		if n.Ref != "" {
			err = e.printf("Loaded image: %s\n", shortname.Of(n.Ref))
		} else {
			err = e.printf("Loaded image ID: %s\n", n.Images[0].ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
