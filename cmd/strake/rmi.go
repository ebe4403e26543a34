package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

type rmiOptions struct{ force bool }

func newRmi(e *env) *cobra.Command {
	var o rmiOptions
	cmd := &cobra.Command{
		Use:     "rmi [OPTIONS] IMAGE...",
		Short:   "Remove images, or names of images",
		Long:    "Remove a name of an image, and the image if that was its last one. The space is free after `strake prune`.",
		Example: "  strake rmi app:1",
		Args:    nArgs(1, -1, "at least one image"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runRmi(cmd.Context(), o, args, e) },
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "remove an image by its ID even if it has several names")
	return cmd
}

func runRmi(_ context.Context, o rmiOptions, args []string, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var errs []error
	for _, a := range args {
		untagged, deleted, err := s.images.Remove(a, o.force)
		errs = append(errs, err)
		for _, u := range untagged {
			errs = append(errs, e.printf("Untagged: %s\n", u))
		}
		for _, d := range deleted {
			errs = append(errs, e.printf("Deleted: %s\n", d))
		}
	}
	return errors.Join(errs...)
}
