package main

import (
	"context"
	"errors"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/internal/shortname"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

type pushOptions struct {
	registryOptions
	displayOptions
	platform string
}

func newPush(e *env) *cobra.Command {
	var o pushOptions
	cmd := &cobra.Command{
		Use:     "push [OPTIONS] NAME[:TAG]",
		Short:   "Upload an image to a registry",
		Long:    "Upload an image of the store to the registry that its name begins with. An image for several platforms becomes an index, and so does one with attestations, which go along.",
		Example: "  strake tag app registry.example/app:1\n  strake push registry.example/app:1",
		Args:    nArgs(1, 1, "the name of an image"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runPush(cmd.Context(), o, args[0], e) },
	}
	cmd.Flags().StringVar(&o.platform, "platform", "", "upload one platform of several")
	o.registryOptions.addFlags(cmd.Flags())
	o.displayOptions.addFlags(cmd.Flags(), "print the digest only")
	return cmd
}

func runPush(ctx context.Context, o pushOptions, ref string, e *env) (err error) {
	norm, err := registry.Normalize(ref)
	if err != nil {
		return usageError{err}
	}
	s, err := openStore(e, o.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	name, err := s.images.Find(norm)
	if err != nil {
		return err
	}
	if o.platform != "" {
		img, err := pick(name, ref, o.platform)
		if err != nil {
			return err
		}
		name.Images = []image.Image{img}
	}
	var desc ocispec.Descriptor
	err = e.show("push "+shortname.Of(norm), o.displayOptions, func(report progress.Func) error {
		return undamaged(func() (err error) {
			desc, err = s.transfer().Push(ctx, name, norm, report)
			return err
		})
	})
	if err != nil {
		return err
	}
	if o.quiet {
		return e.printf("%s\n", desc.Digest)
	}
	return e.printf("%s: digest: %s size: %d\n", shortname.Of(norm), desc.Digest, desc.Size)
}
