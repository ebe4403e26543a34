// Package container runs containers: an image's file system with a writable
// layer on top, and one process in a sandbox on it.
//
// A container lasts as long as the call of Run. What it wrote is discarded.
package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/builder/sandbox"
	"github.com/strake-build/strake/builder/sandbox/network"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/snapshot"
)

// Runner runs containers on one store.
type Runner struct {
	Layers   *snapshot.Store
	Sandbox  sandbox.Runner
	Network  *network.Network
	Rootless bool
}

// Network says which network a container sees.
type Network string

// The networks.
const (
	NetworkDefault Network = "" // isolated, with access to the outside
	NetworkNone    Network = "none"
	NetworkHost    Network = "host"
)

// Volume is a directory or file of the host in the container.
type Volume struct {
	Source, Target string // absolute
	Readonly       bool
}

// Config says what to run. Image and Tree are required.
type Config struct {
	Image   dockerspec.DockerOCIImage
	Tree    layers.Tree
	Sources snapshot.Sources

	// Args replace the image's CMD, Entrypoint its ENTRYPOINT (and then CMD
	// is not used); nil takes the image's.
	Args, Entrypoint []string
	Env              []string // NAME=value, over the image's
	Dir              string   // empty: the image's
	User             string   // empty: the image's
	Hostname         string   // empty: "strake"
	Network          Network
	Hosts            []string // lines of /etc/hosts, "IP NAME"
	Volumes          []Volume
	Readonly         bool // the root file system
	ShmSize          int64
	Rlimits          []specs.POSIXRlimit
	Resources        *specs.LinuxResources

	// See sandbox.Process.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       func(master *os.File)
	Started        func(signal func(os.Signal) error)
}

// ErrNoCommand: neither the image nor the caller says what to run.
var ErrNoCommand = errors.New("no command: the image has none, so give one")

// Run runs the container to its end and returns the exit code of its process
// (128+n if signal n ended it). The error is about the container, not the
// process. When ctx ends, everything in the container is killed.
func (r *Runner) Run(ctx context.Context, c Config) (exit int, err error) {
	args := commandLine(c)
	if len(args) == 0 {
		return 0, ErrNoCommand
	}
	run := &running{r: r, c: c}
	defer func() { err = errors.Join(err, run.close()) }()
	active, err := r.Layers.Prepare(ctx, c.Tree, c.Sources)
	if err != nil {
		return 0, err
	}
	run.onClose(active.Discard)
	m := active.Mount
	p := sandbox.Process{
		Root:  sandbox.Root{Lower: m.Lower, Upper: m.Upper, Work: m.Work, UserXattr: m.UserXattr, Bind: m.Bind},
		Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, Terminal: c.Terminal, Started: c.Started,
	}
	conf := sandbox.Config{
		Args: args, Env: environment(c), Dir: c.Dir, Hostname: c.Hostname,
		HostNetwork: c.Network == NetworkHost, Readonly: c.Readonly, ShmSize: c.ShmSize,
		Terminal: c.Terminal != nil, Rlimits: c.Rlimits, Resources: c.Resources, Rootless: r.Rootless,
	}
	if conf.Dir == "" {
		conf.Dir = c.Image.Config.WorkingDir
	}
	conf.Dir = path.Join("/", conf.Dir)
	if conf.Hostname == "" {
		conf.Hostname = "strake"
	}
	if err := run.user(ctx, &conf); err != nil {
		return 0, err
	}
	if err := run.network(ctx, &p, conf.Hostname); err != nil {
		return 0, err
	}
	for _, v := range c.Volumes {
		options := []string{"rbind"}
		if v.Readonly {
			options = append(options, "ro")
		}
		conf.Mounts = append(conf.Mounts, specs.Mount{Type: "bind", Source: v.Source, Destination: v.Target, Options: options})
	}
	if p.Spec, err = sandbox.New(conf); err != nil {
		return 0, err
	}
	return r.Sandbox.Run(ctx, p)
}

// commandLine is what to run, by Docker's rules.
func commandLine(c Config) []string {
	if c.Entrypoint != nil {
		return slices.Concat(c.Entrypoint, c.Args)
	}
	args := c.Args
	if len(args) == 0 {
		args = c.Image.Config.Cmd
	}
	return slices.Concat(c.Image.Config.Entrypoint, args)
}

// environment is the image's with c's over it. A PATH is always there, and TERM
// with a terminal.
func environment(c Config) []string {
	var env []string
	set := func(kv string) {
		name, _, _ := strings.Cut(kv, "=")
		i := slices.IndexFunc(env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		if i < 0 {
			env = append(env, kv)
			return
		}
		env[i] = kv
	}
	set("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if c.Terminal != nil {
		set("TERM=xterm")
	}
	for _, kv := range slices.Concat(c.Image.Config.Env, c.Env) {
		set(kv)
	}
	return env
}

// running is one Run.
type running struct {
	r       *Runner
	c       Config
	closers []func() error
}

func (x *running) onClose(f func() error) { x.closers = append(x.closers, f) }

func (x *running) close() error {
	var errs []error
	for _, f := range slices.Backward(x.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// user looks the user up in the image.
func (x *running) user(ctx context.Context, conf *sandbox.Config) error {
	name := x.c.User
	if name == "" {
		name = x.c.Image.Config.User
	}
	var tree file.Tree
	if len(x.c.Tree) > 0 {
		view, err := x.r.Layers.View(ctx, x.c.Tree, x.c.Sources)
		if err != nil {
			return err
		}
		tree = view
	}
	uid, gid, groups, home, err := file.User(tree, name)
	if err != nil {
		return err
	}
	conf.UID, conf.GID = uint32(uid), uint32(gid)
	for _, g := range groups {
		conf.Groups = append(conf.Groups, uint32(g))
	}
	if !slices.ContainsFunc(conf.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		if home == "" {
			home = "/"
		}
		conf.Env = append(conf.Env, "HOME="+home)
	}
	return nil
}

// network connects the container.
func (x *running) network(ctx context.Context, p *sandbox.Process, hostname string) error {
	var resolv []byte
	var err error
	own := "127.0.0.1"
	switch x.c.Network {
	case NetworkHost:
		if resolv, err = network.HostResolvConf(); err != nil {
			return err
		}
	case NetworkDefault:
		ep, err := x.r.Network.Connect(ctx)
		if err != nil {
			return fmt.Errorf("network: %w", err)
		}
		x.onClose(ep.Close)
		p.NetNS, resolv = ep.NetNS, ep.ResolvConf
		if ep.IP != "" {
			own = ep.IP
		}
	}
	hosts := fmt.Appendf(nil, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n", own, hostname)
	for _, h := range x.c.Hosts {
		hosts = fmt.Appendf(hosts, "%s\n", h)
	}
	p.Files = append(p.Files,
		sandbox.File{Path: "/etc/hosts", Data: hosts, Mode: 0o644},
		sandbox.File{Path: "/etc/hostname", Data: []byte(hostname + "\n"), Mode: 0o644},
		sandbox.File{Path: "/etc/resolv.conf", Data: resolv, Mode: 0o644})
	return nil
}
