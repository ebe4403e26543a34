package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/device"
	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/network"
	"github.com/strake-build/strake/builder/sandbox/oci"
	"github.com/strake-build/strake/builder/sandbox/rootless"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/builder/source/gitsource"
	"github.com/strake-build/strake/builder/source/httpsource"
	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/cache/remote/connect"
	"github.com/strake-build/strake/daemon/buildkitapi"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/layers/snapshot/overlay"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/registry/transfer"
	"github.com/strake-build/strake/state"
)

// registryOptions are the flags of commands that speak to registries.
type registryOptions struct {
	mirrors  []string
	insecure []string
	// offline: nothing is fetched; a flag of commands that can do without.
	offline bool
}

func (o *registryOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.mirrors, "registry-mirror", nil, "ask a mirror first: `HOST=ADDRESS`, as docker.io=localhost:5000; may be repeated")
	f.StringArrayVar(&o.insecure, "insecure-registry", nil, "speak plain http, or accept any certificate, with this `HOST`")
}

// client speaks to registries. Manifests and configurations are kept in blobs,
// unless it is nil; so are blobs of other remote caches fetched by caches.
func (o registryOptions) client(e *env, blobs *blob.Store, caches *connect.Connector) (*registry.Client, error) {
	r := registry.Options{ConfigDir: e.dockerConfig(), UserAgent: "strake/" + version(), Insecure: o.insecure, Offline: o.offline, Mirrors: map[string][]string{}, Blobs: blobs}
	if caches != nil {
		r.Origins = caches.Blob
	}
	for _, m := range o.mirrors {
		host, addr, err := splitPair("registry-mirror", m)
		if err != nil {
			return nil, err
		}
		r.Mirrors[host] = append(r.Mirrors[host], addr)
	}
	c, err := registry.New(r)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// dockerConfig is the directory with Docker's config.json.
func (e *env) dockerConfig() string {
	if d := e.getenv("DOCKER_CONFIG"); d != "" {
		return d
	}
	if h := e.getenv("HOME"); h != "" {
		return filepath.Join(h, ".docker")
	}
	return ""
}

// sandboxOptions are the flags of commands that run processes.
type sandboxOptions struct {
	runtime string
	cdiDirs []string
}

func (o *sandboxOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.runtime, "oci-runtime", "", "run processes by an OCI `RUNTIME`, runc, crun or runsc, instead of strake's own")
	f.StringArrayVar(&o.cdiDirs, "cdi-spec-dir", nil, "`DIRECTORY` of files that describe devices (default /etc/cdi and /var/run/cdi); may be repeated")
}

// store is the open store and what works on it.
type store struct {
	*state.Root
	mode     rootless.Mode
	offline  bool
	blobs    *blob.Store
	segments *compress.SegmentCache
	layers   *snapshot.Store
	images   *image.Store
	client   *registry.Client
	packer   *image.Packer
	// connector opens remote caches.
	connector *connect.Connector

	closers []func() error
}

// openStore opens the store. As an ordinary user, the program starts again in a
// user namespace before it does.
func openStore(e *env, o registryOptions) (_ *store, err error) {
	mode, err := rootless.Enter()
	if err != nil {
		return nil, err
	}
	dir, err := e.storeDir(rootless.UID())
	if err != nil {
		return nil, err
	}
	root, err := state.Open(dir)
	if err != nil {
		return nil, err
	}
	s := &store{Root: root, mode: mode, offline: o.offline}
	s.onClose(root.Close)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := s.open(e); err != nil {
		return nil, err
	}
	s.connector = &connect.Connector{Getenv: e.getenv}
	if s.client, err = o.client(e, s.blobs, s.connector); err != nil {
		return nil, err
	}
	s.connector.Registry = s.client
	s.packer = &image.Packer{Layers: s.layers, Blobs: s.blobs, Segments: s.segments}
	return s, nil
}

// open opens blobs, layers and images of the root.
func (s *store) open(e *env) (err error) {
	if s.blobs, err = blob.Open(s.Path("blobs"), s.TempFile); err != nil {
		return err
	}
	s.segments = compress.OpenSegments(s.Path("segments"), s.Path("blobs", "sha256"), s.TempFile)
	driver, err := chooseDriver(e.getenv("STRAKE_DRIVER"), s.mode)
	if err != nil {
		return err
	}
	if s.layers, err = snapshot.Open(s.Root, snapshot.Options{Driver: driver, UserXattr: s.mode.Rootless, RecordOwners: s.mode.SingleID}); err != nil {
		return err
	}
	s.images, err = image.OpenStore(s.Root, s.blobs)
	return err
}

// share opens the store once more, for one build of a daemon: what it uses is
// leased until it closes it, and registries are asked with credentials of its
// own.
func (s *store) share(e *env, b *builder.Builder, ask registry.Credentials) (*buildkitapi.Store, error) {
	own := &store{Root: s.Root.Share(), mode: s.mode}
	own.onClose(own.Root.Close)
	if err := own.open(e); err != nil {
		return nil, errors.Join(err, own.close())
	}
	caches := &connect.Connector{Getenv: e.getenv}
	caches.Registry = s.client.For(ask, own.blobs, caches.Blob)
	return &buildkitapi.Store{
		Builder: b.For(builder.Own{Root: own.Root, Layers: own.layers, Blobs: own.blobs, Images: own.images, Registry: caches.Registry}),
		Caches:  caches,
		Packer:  &image.Packer{Layers: own.layers, Blobs: own.blobs, Segments: s.packer.Segments},
		Close:   own.close,
	}, nil
}

func chooseDriver(name string, mode rootless.Mode) (snapshot.Driver, error) {
	switch name {
	case "", "overlay":
		return &overlay.Driver{UserXattr: mode.Rootless, RecordOwners: mode.SingleID}, nil
	case "copydir":
		return &copydir.Driver{UserXattr: mode.Rootless, RecordOwners: mode.SingleID}, nil
	}
	return nil, usagef("STRAKE_DRIVER=%s: it is overlay or copydir", name)
}

func (s *store) onClose(f func() error) { s.closers = append(s.closers, f) }

// close gives everything back, the last opened first.
func (s *store) close() error {
	var errs []error
	for _, f := range slices.Backward(s.closers) {
		errs = append(errs, f())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// undamaged calls fn again if it fails because of a blob that is damaged: it is
// gone then, and made or fetched again.
func undamaged(fn func() error) error {
	err := fn()
	for n := 0; n < blob.MaxDamaged && errors.Is(err, blob.ErrDamaged); n++ {
		err = fn()
	}
	return err
}

// transfer moves images between the store and registries.
func (s *store) transfer() *transfer.Transfer {
	return &transfer.Transfer{Registry: s.client, Layers: s.layers, Blobs: s.blobs, Images: s.images, Packer: s.packer}
}

// runner returns what runs processes.
func (s *store) runner(o sandboxOptions) (sandbox.Runner, error) {
	if o.runtime == "" {
		return linux.New(linux.Options{Rootless: s.mode.Rootless})
	}
	dir, err := s.MkdirAll("oci")
	if err != nil {
		return nil, err
	}
	return oci.New(oci.Options{Runtime: o.runtime, StateDir: dir, Rootless: s.mode.Rootless})
}

func (s *store) network() (*network.Network, error) {
	dir, err := s.MkdirAll("net")
	if err != nil {
		return nil, err
	}
	n, err := network.New(network.Options{StateDir: dir, Rootless: s.mode.Rootless})
	if err != nil {
		return nil, err
	}
	s.onClose(n.Close)
	return n, nil
}

// builder returns a builder on the store.
func (s *store) builder(o sandboxOptions, e *env) (*builder.Builder, error) {
	c, err := cache.Open(s.Root, func(err error) { e.warnf("%v", err) })
	if err != nil {
		return nil, err
	}
	s.onClose(c.Close)
	index, err := source.OpenIndex(s.Path("index"))
	if err != nil {
		return nil, err
	}
	s.onClose(index.Close)
	runner, err := s.runner(o)
	if err != nil {
		return nil, err
	}
	net, err := s.network()
	if err != nil {
		return nil, err
	}
	http, err := httpsource.Open(s.Path("http"), httpsource.Options{UserAgent: "strake/" + version(), TempFile: s.TempFile, Offline: s.offline})
	if err != nil {
		return nil, err
	}
	return &builder.Builder{
		Root: s.Root, Layers: s.layers, Blobs: s.blobs, Cache: c, Index: index,
		Runner: runner, Network: net, Devices: device.Open(o.cdiDirs...), Registry: s.client, Images: s.images, Rootless: s.mode.Rootless,
		HTTP: http, Git: &gitsource.Client{Env: e.gitEnv(), SSHKnownHosts: e.knownHosts(), Offline: s.offline},
	}, nil
}

// architectures are those that images can be for, by Go's names for them.
var architectures = []string{
	"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x", "wasm",
}

// parsePlatforms parses --platform values, each a list with commas. An
// architecture that there is none of is an error.
func parsePlatforms(values []string) ([]ocispec.Platform, error) {
	var out []ocispec.Platform
	for _, v := range values {
		for p := range strings.SplitSeq(v, ",") {
			if p = strings.TrimSpace(p); p == "local" {
				out = append(out, thisPlatform())
				continue
			}
			parsed, err := platforms.Parse(p)
			if err != nil {
				return nil, usagef("--platform %s: %w", p, err)
			}
			parsed = platforms.Normalize(parsed)
			if !slices.Contains(architectures, parsed.Architecture) {
				return nil, usagef("--platform %s: unknown architecture %q; it is one of %s", p, parsed.Architecture, strings.Join(architectures, ", "))
			}
			if !slices.ContainsFunc(out, func(q ocispec.Platform) bool { return platforms.Format(q) == platforms.Format(parsed) }) {
				out = append(out, parsed)
			}
		}
	}
	return out, nil
}

func thisPlatform() ocispec.Platform { return platforms.Normalize(platforms.DefaultSpec()) }

// pick chooses the image of a name for the platform asked for, or for this
// machine.
func pick(name image.Name, arg, platform string) (image.Image, error) {
	want := thisPlatform()
	if platform != "" {
		ps, err := parsePlatforms([]string{platform})
		if err != nil {
			return image.Image{}, err
		}
		if len(ps) != 1 {
			return image.Image{}, usagef("--platform: one is needed")
		}
		want = ps[0]
	}
	match := platforms.Only(want)
	var best *image.Image
	for i := range name.Images {
		if img := &name.Images[i]; match.Match(img.Platform) && (best == nil || match.Less(img.Platform, best.Platform)) {
			best = img
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case platform == "" && len(name.Images) == 1:
		return name.Images[0], nil
	}
	var have []string
	for _, img := range name.Images {
		have = append(have, platforms.Format(img.Platform))
	}
	return image.Image{}, fmt.Errorf("%s: no image for %s; there are %s", arg, platforms.Format(want), strings.Join(have, ", "))
}
