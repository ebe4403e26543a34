package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/daemon"
	"github.com/strake-build/strake/daemon/buildkitapi"
	"github.com/strake-build/strake/registry"
)

type serveOptions struct {
	registryOptions
	sandboxOptions

	addrs         []string
	provenanceEnv map[string]any
	config        string
	allow         []string
	parallel      int
	tls           daemon.TLSFiles
}

func (o *serveOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.addrs, "addr", []string{"unix:///run/strake/strake.sock"}, "`ADDRESS` to listen on, unix:///path, tcp://host:port or fd:// (sockets of systemd); may be repeated")
	f.StringVar(&o.tls.CA, "tlscacert", "", "`FILE` of the authority that signs clients' certificates; others are refused")
	f.StringVar(&o.tls.Cert, "tlscert", "", "`FILE` with the server's certificate, for tcp addresses")
	f.StringVar(&o.tls.Key, "tlskey", "", "`FILE` with its key")
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
    --local context=. --local dockerfile=.
  strake serve --addr tcp://0.0.0.0:1234 --tlscacert ca.pem --tlscert cert.pem --tlskey key.pem`,
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
		Root:      s.Root,
		Open:      func(ask registry.Credentials) (*buildkitapi.Store, error) { return s.share(e, b, ask) },
		Platforms: []ocispec.Platform{thisPlatform()}, Version: version(), Allow: o.allow, ProvenanceEnv: o.provenanceEnv,
		Log: slog.New(slog.NewTextHandler(e.stderr, nil)),
	})
	if err != nil {
		return err
	}
	// Builds lease what they use for themselves.
	if err := s.Release(); err != nil {
		return err
	}
	listeners, err := o.listen(e)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(e.stderr, nil))
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		log.Info("listening", "addr", l.Addr().String())
		g.Go(func() error { return server.Serve(gctx, l) })
	}
	if err := daemon.Notify(e.getenv, "READY=1"); err != nil {
		log.Warn("systemd was not told", "error", err)
	}
	context.AfterFunc(gctx, func() { _ = daemon.Notify(e.getenv, "STOPPING=1") })
	return g.Wait()
}

// listen opens all sockets, or none.
func (o serveOptions) listen(e *env) (out []net.Listener, err error) {
	secure, err := o.tls.Config()
	if err != nil {
		return nil, usagef("--tlscacert, --tlscert, --tlskey: %w", err)
	}
	defer func() {
		if err == nil {
			return
		}
		for _, l := range out {
			err = errors.Join(err, l.Close())
		}
	}()
	for _, a := range o.addrs {
		if strings.HasPrefix(a, "fd://") {
			inherited, err := daemon.Inherited(a, e.getenv, secure)
			if err != nil {
				return out, err
			}
			out = append(out, inherited...)
			continue
		}
		l, err := daemon.Listen(a, secure)
		if err != nil {
			return out, err
		}
		out = append(out, l)
	}
	return out, nil
}
