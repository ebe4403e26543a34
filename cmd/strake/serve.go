package main

import (
	"context"
	"errors"
	"log/slog"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/daemon"
	"github.com/strake-build/strake/daemon/buildkitapi"
)

type serveOptions struct {
	registryOptions
	sandboxOptions

	addrs         []string
	provenanceEnv map[string]any
	config        string
	allow         []string
	parallel      int
}

func (o *serveOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.addrs, "addr", []string{"unix:///run/strake/strake.sock"}, "`ADDRESS` to listen on, unix:///path or tcp://host:port; may be repeated")
	f.StringVar(&o.config, "config", "", "`FILE` in the form of buildkitd.toml, of which entitlements and registries are read")
	f.StringSliceVar(&o.allow, "allow", nil, "what clients may ask for: network.host, security.insecure")
	f.IntVar(&o.parallel, "parallel", 0, "how many steps run at once (default 16 and two for each processor)")
	o.registryOptions.addFlags(f)
	o.sandboxOptions.addFlags(f)
}

func newServe(e *env) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve [OPTIONS]",
		Short: "Serve the API of BuildKit's daemon",
		Long: `Serve the API of BuildKit's daemon, for docker buildx and buildctl.

Builds work on the same store as those of strake build, and at the same time.`,
		Example: `  strake serve --addr unix:///run/strake/strake.sock
  docker buildx create --name strake --driver remote unix:///run/strake/strake.sock
  buildctl --addr unix:///run/strake/strake.sock build --frontend dockerfile.v0 \
    --local context=. --local dockerfile=.`,
		Args: nArgs(0, 0, ""),
		RunE: func(cmd *cobra.Command, args []string) error { return runServe(cmd.Context(), o, e) },
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func runServe(ctx context.Context, o serveOptions, e *env) (err error) {
	if err := o.readConfig(); err != nil {
		return err
	}
	for _, a := range o.allow {
		if a != "network.host" && a != "security.insecure" {
			return usagef("--allow %s: it is network.host or security.insecure", a)
		}
	}
	s, err := openStore(e, o.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	b, err := s.builder(o.sandboxOptions, e)
	if err != nil {
		return err
	}
	b.Slots = o.parallel
	server, err := buildkitapi.New(buildkitapi.Options{
		Builder: b, Packer: s.packer, Caches: s.connector, Platforms: []ocispec.Platform{thisPlatform()}, Version: version(), Allow: o.allow, ProvenanceEnv: o.provenanceEnv,
		Log: slog.New(slog.NewTextHandler(e.stderr, nil)),
	})
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, a := range o.addrs {
		l, err := daemon.Listen(a)
		if err != nil {
			return err
		}
		slog.New(slog.NewTextHandler(e.stderr, nil)).Info("listening", "addr", l.Addr().String())
		g.Go(func() error { return server.Serve(gctx, l) })
	}
	return g.Wait()
}
