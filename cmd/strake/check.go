package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

type checkOptions struct {
	readData bool
	format   string
}

func newCheck(e *env) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:     "check [OPTIONS]",
		Short:   "Look for damage in the store",
		Long:    "Look for damage in the store, and change nothing. The exit code is 1 if there is any; `strake repair` mends it.",
		Example: "  strake check\n  strake check --read-data",
		Args:    nArgs(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runCheck(cmd.Context(), o, e) },
	}
	cmd.Flags().BoolVar(&o.readData, "read-data", false, "read all contents and compare them with their digests")
	cmd.Flags().StringVar(&o.format, "format", "", formatHelp)
	return cmd
}

func runCheck(ctx context.Context, o checkOptions, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	keeper, err := s.gc(e)
	if err != nil {
		return err
	}
	problems, err := keeper.Check(ctx, o.readData)
	if err != nil {
		return err
	}
	items := make([]any, len(problems))
	for i, p := range problems {
		items[i] = p
	}
	format := o.format
	if format == "" {
		format = "{{.Path}}: {{.Text}}{{if .Remedy}} ({{.Remedy}}){{end}}"
	}
	if err := printItems(e.stdout, format, items); err != nil {
		return err
	}
	if len(problems) > 0 {
		return fmt.Errorf("%d problems were found; `strake repair` mends them", len(problems))
	}
	if o.format == "" {
		return e.printf("no problems were found\n")
	}
	return nil
}
