package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func newRepair(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "repair",
		Short:   "Mend damage in the store",
		Long:    "Read all contents of the store and remove what is damaged. The next build or pull makes it again.",
		Example: "  strake repair",
		Args:    nArgs(0, 0, ""),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runRepair(cmd.Context(), e) },
	}
}

func runRepair(ctx context.Context, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	keeper, err := s.gc(e)
	if err != nil {
		return err
	}
	mended, err := keeper.Repair(ctx)
	for _, p := range mended {
		err = errors.Join(err, e.printf("%s: %s\n", p.Path, p.Text))
	}
	if err == nil && len(mended) == 0 {
		return e.printf("nothing was damaged\n")
	}
	return err
}
