package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/creack/pty"
	"github.com/docker/go-units"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/strake-build/strake/container"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry/transfer"
)

type runOptions struct {
	registryOptions
	sandboxOptions

	rm, interactive, tty bool
	env, envFiles        []string
	volumes              []string
	workdir, user        string
	network              string
	entrypoint           string
	entrypointSet        bool
	hostname             string
	hosts                []string
	platform             string
	readonly             bool
	shmSize              string
	ulimits              []string
	memory               string
	progress             string
}

func (o *runOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.rm, "rm", true, "remove the container when it ends, as is always done")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "connect stdin")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the process a terminal")
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable: `NAME=VALUE`, or NAME for its value here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "read environment variables from a `FILE`")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "show a directory of this machine: `DIR:TARGET[:ro]`")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory")
	f.StringVarP(&o.user, "user", "u", "", "user, as `NAME|UID[:GROUP|GID]`")
	f.StringVar(&o.network, "network", "default", "network: default, none or host")
	f.StringVar(&o.entrypoint, "entrypoint", "", "program to run instead of the image's ENTRYPOINT")
	f.StringVarP(&o.hostname, "hostname", "h", "", "host name")
	f.StringArrayVar(&o.hosts, "add-host", nil, "entry of /etc/hosts: `HOST:IP`")
	f.StringVar(&o.platform, "platform", "", "which of the image's platforms to run")
	f.BoolVar(&o.readonly, "read-only", false, "make the root file system read-only")
	f.StringVar(&o.shmSize, "shm-size", "", "size of /dev/shm (default 64m)")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "limit: `NAME=SOFT[:HARD]`")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit, as 512m")
	f.StringVar(&o.progress, "progress", "auto", "how to show a pull: auto, tty, plain, rawjson or quiet")
	o.registryOptions.addFlags(f)
	o.sandboxOptions.addFlags(f)
}

func newRun(e *env, sig *signals) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Run a command in a new container",
		Long: `Run the command of an image, or another one, in a new container and wait for its
end. Its exit code is that of strake. What it wrote to its file system is gone
then; directories given with -v stay.

An image that is not in the store is pulled.`,
		Example: `  strake run app
  strake run -it busybox sh
  strake run -v "$PWD:/src" -w /src golang go test ./...`,
		Args: nArgs(1, -1, "the name or ID of an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.entrypointSet = cmd.Flags().Changed("entrypoint")
			err := runRun(cmd.Context(), o, args[0], args[1:], e, sig)
			if err != nil && !isExit(err) {
				err = exitError{exitUsage, err}
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().Bool("help", false, "help for run") // -h is the host name, as in Docker
	o.addFlags(cmd.Flags())
	return cmd
}

func isExit(err error) bool {
	var exit exitError
	var usage usageError
	return errors.As(err, &exit) || errors.As(err, &usage)
}

func runRun(ctx context.Context, o runOptions, ref string, args []string, e *env, sig *signals) (err error) {
	if !o.rm {
		return usagef("--rm=false is not supported: a container is gone when it ends")
	}
	if o.tty && !e.isTerminal(e.stdin) && o.interactive {
		return errors.New("the input device is not a TTY: leave -t out")
	}
	c := container.Config{
		Args: args, Dir: o.workdir, User: o.user, Hostname: o.hostname, Readonly: o.readonly,
		Stdout: e.stdout, Stderr: e.stderr,
	}
	if err := o.apply(&c, e); err != nil {
		return err
	}

	s, err := openStore(e, o.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	img, err := o.find(ctx, ref, s, e)
	if err != nil {
		return err
	}
	raw, err := s.images.Config(img.ID)
	if err != nil {
		return err
	}
	var config dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &config); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	c.Image, c.Tree = config, img.Tree
	c.Sources = transfer.Sources(s.client, s.blobs, progress.Discard)
	runner, err := s.runner(o.sandboxOptions)
	if err != nil {
		return err
	}
	net, err := s.network()
	if err != nil {
		return err
	}
	if o.interactive {
		c.Stdin = e.stdin
	}
	if o.tty {
		restore, err := o.terminal(&c, e)
		if err != nil {
			return err
		}
		defer restore()
	}
	c.Started = func(send func(os.Signal) error) {
		sig.take(func(s syscall.Signal) { _ = send(s) })
	}
	r := container.Runner{Layers: s.layers, Sandbox: runner, Network: net, Rootless: s.mode.Rootless}
	code, err := r.Run(ctx, c)
	sig.give()
	switch {
	case err == nil && code == 0:
		return nil
	case err == nil:
		return exitError{code: code}
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, exec.ErrNotFound):
		return exitError{exitNotFound, err}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		return exitError{exitNotRunnable, err}
	}
	return err
}

// apply sets what the flags say.
func (o runOptions) apply(c *container.Config, e *env) error {
	switch o.network {
	case "", "default", "bridge":
	case "none", "host":
		c.Network = container.Network(o.network)
	default:
		return usagef("--network %s: it is default, none or host", o.network)
	}
	if o.entrypointSet {
		c.Entrypoint = []string{}
		if o.entrypoint != "" {
			c.Entrypoint = []string{o.entrypoint}
		}
	}
	var err error
	if c.Env, err = o.environment(e); err != nil {
		return err
	}
	hosts, err := parseHosts(o.hosts)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		c.Hosts = append(c.Hosts, h.IP+"\t"+h.Name)
	}
	for _, v := range o.volumes {
		vol, err := parseVolume(v)
		if err != nil {
			return err
		}
		c.Volumes = append(c.Volumes, vol)
	}
	if o.shmSize != "" {
		if c.ShmSize, err = units.RAMInBytes(o.shmSize); err != nil {
			return usagef("--shm-size %s: %w", o.shmSize, err)
		}
	}
	if o.memory != "" {
		n, err := units.RAMInBytes(o.memory)
		if err != nil {
			return usagef("--memory %s: %w", o.memory, err)
		}
		c.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n}}
	}
	for _, u := range o.ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return usagef("--ulimit %s: %w", u, err)
		}
		c.Rlimits = append(c.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: uint64(l.Soft), Hard: uint64(l.Hard)})
	}
	return nil
}

func (o runOptions) environment(e *env) ([]string, error) {
	var out []string
	add := func(kv, from string) error {
		name, _, ok := strings.Cut(kv, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return usagef("%s: %q is no variable", from, kv)
		}
		if !ok {
			v, set := e.lookup(name)
			if !set {
				return nil
			}
			kv = name + "=" + v
		}
		out = append(out, kv)
		return nil
	}
	for _, name := range o.envFiles {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); ; {
			if !sc.Scan() {
				if err := sc.Err(); err != nil {
					return nil, fmt.Errorf("--env-file %s: %w", name, err)
				}
				break
			}
			l := strings.TrimLeft(sc.Text(), " \t")
			if l == "" || l[0] == '#' {
				continue
			}
			if err := add(l, "--env-file "+name); err != nil {
				return nil, err
			}
		}
	}
	for _, kv := range o.env {
		if err := add(kv, "-e"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func parseVolume(v string) (container.Volume, error) {
	parts := strings.Split(v, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return container.Volume{}, usagef("-v %s: it is of the form DIR:TARGET[:ro]", v)
	}
	vol := container.Volume{Source: parts[0], Target: parts[1]}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			vol.Readonly = true
		case "rw":
		default:
			return container.Volume{}, usagef("-v %s: the option %q is not supported, only ro and rw", v, parts[2])
		}
	}
	if !path.IsAbs(vol.Target) {
		return container.Volume{}, usagef("-v %s: %s is not an absolute path", v, vol.Target)
	}
	if !strings.Contains(vol.Source, "/") && vol.Source != "." {
		return container.Volume{}, usagef("-v %s: volumes have no names; name a directory by a path, as ./%s", v, vol.Source)
	}
	abs, err := filepath.Abs(vol.Source)
	if err != nil {
		return container.Volume{}, err
	}
	if _, err := os.Stat(abs); err != nil {
		return container.Volume{}, fmt.Errorf("-v %s: %w", v, err)
	}
	vol.Source = abs
	return vol, nil
}

// find returns the image to run, pulled if it is not there.
func (o runOptions) find(ctx context.Context, ref string, s *store, e *env) (image.Image, error) {
	name, err := s.images.Find(ref)
	if err == nil {
		img, perr := pick(name, ref, o.platform)
		if perr == nil || o.platform == "" {
			return img, perr
		}
	} else if !errors.Is(err, image.ErrNotFound) {
		return image.Image{}, err
	}
	p := thisPlatform()
	if o.platform != "" {
		ps, err := parsePlatforms([]string{o.platform})
		if err != nil {
			return image.Image{}, err
		}
		p = ps[0]
	}
	name, err = pull(ctx, s, ref, []ocispec.Platform{p}, displayOptions{progress: o.progress}, e)
	if err != nil {
		return image.Image{}, err
	}
	return pick(name, ref, o.platform)
}

// terminal makes the process's terminal the one that strake has, until restore.
func (o runOptions) terminal(c *container.Config, e *env) (restore func(), err error) {
	if t := e.getenv("TERM"); t != "" {
		c.Env = append([]string{"TERM=" + t}, c.Env...)
	}
	c.Terminal, restore, err = e.attach(o.interactive)
	c.Stdin = nil
	return restore, err
}

// attach returns what takes the master of a terminal that a process has, and
// connects it to stdout, and stdin if it is interactive, until restore.
func (e *env) attach(interactive bool) (take func(master *os.File), restore func(), err error) {
	var restores []func()
	restore = func() {
		for _, f := range restores {
			f()
		}
	}
	if interactive {
		fd := int(e.stdin.Fd())
		old, err := term.MakeRaw(fd)
		if err != nil {
			return nil, nil, err
		}
		restores = append(restores, func() { _ = term.Restore(fd, old) })
	}
	ended := make(chan struct{})
	started := false
	restores = append(restores, func() {
		if started {
			<-ended
		}
	})
	return func(master *os.File) {
		started = true
		resize := make(chan os.Signal, 1)
		signal.Notify(resize, syscall.SIGWINCH)
		resize <- syscall.SIGWINCH
		stop := make(chan struct{})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-resize:
					if e.isTerminal(e.stdout) {
						_ = pty.InheritSize(e.stdout, master)
					}
				}
			}
		}()
		if interactive {
			go func() { _, _ = io.Copy(master, e.stdin) }() // ends with the program: a read of a terminal can't be stopped
		}
		go func() {
			defer close(ended)
			_, _ = io.Copy(e.stdout, master) // ends with EIO when nobody has the terminal any more
			signal.Stop(resize)
			close(stop)
			_ = master.Close()
		}()
	}, restore, nil
}
