package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/strake-build/strake/builder/export"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry/transfer"
)

type saveOptions struct {
	registryOptions
	output, format, platform string
}

func newSave(e *env) *cobra.Command {
	var o saveOptions
	cmd := &cobra.Command{
		Use:     "save [OPTIONS] IMAGE...",
		Short:   "Write images to an archive",
		Long:    "Write images to an archive that docker, podman, skopeo and strake load; as OCI layout, which keeps attestations, with --format oci.",
		Example: "  strake save -o app.tar app\n  strake save app | ssh host docker load",
		Args:    nArgs(1, -1, "at least one image"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runSave(cmd.Context(), o, args, e) },
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", "-", "write to a `FILE` instead of stdout")
	cmd.Flags().StringVar(&o.format, "format", "docker", "docker or oci")
	cmd.Flags().StringVar(&o.platform, "platform", "", "write one platform of several")
	o.registryOptions.addFlags(cmd.Flags())
	return cmd
}

func runSave(ctx context.Context, o saveOptions, args []string, e *env) (err error) {
	if o.format != export.TypeDocker && o.format != export.TypeOCI {
		return usagef("--format %s: it is docker or oci", o.format)
	}
	out := export.Output{Type: o.format, Dest: o.output, Tar: true}
	if out.ToStdout() && e.isTerminal(e.stdout) {
		return usagef("an archive is not written to a terminal: use -o, or redirect stdout")
	}
	s, err := openStore(e, o.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var names []image.Name
	for _, a := range args {
		n, err := s.images.Find(a)
		if err != nil {
			return err
		}
		if o.platform != "" || o.format == export.TypeDocker {
			img, err := pick(n, a, o.platform)
			if err != nil {
				return err
			}
			n.Images = []image.Image{img}
		}
		if o.format == export.TypeDocker { // which has no place for an index
			n.Index, n.Images[0].Attestations = "", nil
		}
		names = append(names, n)
	}
	x := export.Exporter{Packer: s.packer, Images: s.images, Layers: s.layers, Stdout: e.stdout}
	save := func() error {
		return x.Save(ctx, names, transfer.Sources(s.client, s.blobs, progress.Discard), out, func(text string) { e.warnf("%s", text) })
	}
	if out.ToStdout() {
		return save() // what was written can't be taken back
	}
	return undamaged(save)
}
