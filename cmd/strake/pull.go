package main

import (
	"context"
	"errors"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/internal/shortname"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

type pullOptions struct {
	registryOptions
	displayOptions
	platforms []string
}

func newPull(e *env) *cobra.Command {
	var o pullOptions
	cmd := &cobra.Command{
		Use:     "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Short:   "Download an image from a registry",
		Long:    "Download an image from a registry, with the attestations that its index has.",
		Example: "  strake pull debian:bookworm\n  strake pull --platform linux/arm64 alpine",
		Args:    nArgs(1, 1, "the name of an image"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runPull(cmd.Context(), o, args[0], e) },
	}
	cmd.Flags().StringArrayVar(&o.platforms, "platform", nil, "platforms to download (default this machine's)")
	o.registryOptions.addFlags(cmd.Flags())
	o.displayOptions.addFlags(cmd.Flags(), "print the name only")
	return cmd
}

func runPull(ctx context.Context, o pullOptions, ref string, e *env) (err error) {
	ps, err := parsePlatforms(o.platforms)
	if err != nil {
		return err
	}
	if len(ps) == 0 {
		ps = []ocispec.Platform{thisPlatform()}
	}
	s, err := openStore(e, o.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	name, err := pull(ctx, s, ref, ps, o.displayOptions, e)
	if err != nil {
		return err
	}
	return e.printf("%s\n", name.Ref)
}

// pull downloads an image, showing how it goes.
func pull(ctx context.Context, s *store, ref string, ps []ocispec.Platform, o displayOptions, e *env) (image.Name, error) {
	norm, err := registry.Normalize(ref)
	if err != nil {
		return image.Name{}, usageError{err}
	}
	var name image.Name
	err = e.show("pull "+shortname.Of(norm), o, func(report progress.Func) (err error) {
		name, err = s.transfer().Pull(ctx, norm, ps, report)
		return err
	})
	return name, err
}

// show runs fn as the one vertex of a display.
func (e *env) show(what string, o displayOptions, fn func(report progress.Func) error) error {
	d, err := e.display(o, nil)
	if err != nil {
		return err
	}
	defer e.closeDisplay(d)
	event := func(ev progress.Event) {
		ev.Vertex = what
		if ev.Time.IsZero() {
			ev.Time = time.Now()
		}
		d.Event(ev)
	}
	event(progress.Event{Kind: progress.Start, Name: what})
	err = fn(event)
	done := progress.Event{Kind: progress.Done}
	if err != nil {
		done.Error = err.Error()
	}
	event(done)
	return err
}
