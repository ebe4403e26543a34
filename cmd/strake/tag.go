package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func newTag(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "tag IMAGE NAME[:TAG]",
		Short:   "Give an image another name",
		Example: "  strake tag app registry.example/app:1",
		Args:    nArgs(2, 2, "an image and its new name"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runTag(cmd.Context(), args[0], args[1], e) },
	}
}

func runTag(_ context.Context, img, name string, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return s.images.Tag(img, name)
}
