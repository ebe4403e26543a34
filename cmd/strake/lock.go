package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/lock"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
	"github.com/strake-build/strake/state"
)

type lockOptions struct {
	build buildOptions
	file  string
	check bool
}

func (o *lockOptions) addFlags(f *pflag.FlagSet) {
	b := &o.build
	f.StringVarP(&b.file, "file", "f", "", "the build file, - for stdin (default CONTEXT/Dockerfile)")
	f.StringVar(&b.target, "target", "", "lock what this stage needs (default what any stage does)")
	f.StringArrayVar(&b.args, "build-arg", nil, "set an ARG: `NAME=VALUE`, or NAME for its value in the environment")
	f.StringArrayVar(&b.platforms, "platform", nil, "platforms that will be built for, as linux/amd64,linux/arm64")
	f.StringArrayVar(&b.contexts, "build-context", nil, "one more context for COPY --from and FROM: `NAME=DIR` or NAME=docker-image://REF")
	f.StringVar(&o.file, "lock-file", "", "the lock `FILE` (default the build file's name and .lock)")
	f.BoolVar(&o.check, "check", false, "write nothing, and fail if the lock file is not up to date")
	f.StringArrayVar(&b.attests, "attest", nil, "what will be said of the result: lock the image of `type=sbom,generator=IMAGE`")
	f.StringVar(&b.sbom, "sbom", "", "lock the image of `generator=IMAGE`; short for --attest type=sbom")
	b.policyOptions.addFlags(f)
	b.registryOptions.addFlags(f)
	b.displayOptions.addFlags(f, "show nothing")
}

func newLock(e *env) *cobra.Command {
	var o lockOptions
	cmd := &cobra.Command{
		Use:   "lock [OPTIONS] CONTEXT|URL",
		Short: "Write down what the names in a Dockerfile stand for",
		Long: `Write down what the images, git repositories and URLs in a Dockerfile are now, by
digest or commit, in a file beside it (Dockerfile.lock). Check it in; strake build
--locked uses exactly that, until strake lock is run again. Nothing is built. A context
that is a URL is written down, too, in the file that --lock-file names.`,
		Example: `  strake lock .                  # writes ./Dockerfile.lock
  strake build --locked .
  strake lock --check .          # in CI: is it up to date?`,
		Args: nArgs(1, 1, "the build context: a directory or a URL; try: strake lock ."),
		RunE: func(cmd *cobra.Command, args []string) error { return runLock(cmd.Context(), o, args[0], e) },
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func runLock(ctx context.Context, o lockOptions, contextArg string, e *env) (err error) {
	switch {
	case contextArg == "-":
		return usagef("-: a lock file is for a directory of yours, or a URL")
	case isURL(contextArg) && o.file == "":
		return usagef("%s: name the lock file with --lock-file", plan.Redact(contextArg))
	}
	if err := checkReferences(contextArg, o.build.file); err != nil {
		return err
	}
	popts, err := o.build.parserOptions(e)
	if err != nil {
		return err
	}
	policies, err := o.build.policyOptions.load(e)
	if err != nil {
		return err
	}
	asked, err := o.build.attestOptions.parse()
	if err != nil {
		return err
	}
	s, err := openStore(e, o.build.registryOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	b, err := s.builder(o.build.sandboxOptions, e)
	if err != nil {
		return err
	}
	display, err := e.display(o.build.displayOptions, nil)
	if err != nil {
		return err
	}
	defer e.closeDisplay(display)
	l := &locker{b: b, policies: policies, file: lock.New(), look: resolver(b, true, display.Event, func(builder.Base, ocispec.Platform) {})}
	in, err := openInputs(ctx, o.build, contextArg, b.Index, s, e, func(in *inputs, mayBeFile bool) (string, error) {
		return in.fetchContext(ctx, contextArg, mayBeFile, b, s, contextSource{policies, l.pinStep}, display.Event)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	name, err := lockName(o.file, in)
	if err != nil {
		return err
	}
	old, err := readLock(name)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = lock.New(), nil
	}
	if err != nil {
		return err
	}
	popts.Contexts, popts.Exclude, popts.IgnoreFile = in.contexts, in.exclude, in.ignoreFile
	popts.EpochOf = epochOf(in, b)
	popts.Resolve = decide(policies, l.lookup)
	if err := l.plan(ctx, in, popts); err != nil {
		return err
	}
	if generator := asked[attest.SBOM]["generator"]; generator != "" {
		if _, err := popts.Resolve(ctx, generator, thisPlatform()); err != nil {
			return fmt.Errorf("SBOM generator %s: %w", generator, err)
		}
	}
	e.closeDisplay(display)
	changes := old.Diff(l.file)
	if !o.build.quiet {
		for _, c := range changes {
			if err := e.printf("%s\n", c); err != nil {
				return err
			}
		}
	}
	if o.check {
		if len(changes) > 0 {
			return fmt.Errorf("%s is not up to date: run strake lock", name)
		}
		return nil
	}
	return state.WriteFile(name, l.file.Bytes(), 0o644, false)
}

// locker finds out what the names in a build file stand for.
type locker struct {
	b        *builder.Builder
	policies []*policy.Policy
	look     lookup

	mu   sync.Mutex
	file *lock.File
}

// lookup asks for an image and writes down what it is.
func (l *locker) lookup(ctx context.Context, ref string, p ocispec.Platform) (builder.Base, error) {
	base, err := l.look(ctx, ref, p)
	id := lock.Image(base.Ref)
	if err != nil || id == "" {
		return base, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return base, l.file.Add(id, base.Pin.String())
}

// plan looks at all stages, or at what the target needs.
func (l *locker) plan(ctx context.Context, in *inputs, o parser.Options) error {
	file, err := parser.Parse(in.name, in.dockerfile)
	if err != nil {
		return err
	}
	targets := []string{o.Target}
	if o.Target == "" {
		targets = nil
		for i := range file.Stages() {
			targets = append(targets, strconv.Itoa(i))
		}
	}
	for _, o.Target = range targets {
		build, err := file.Plan(ctx, o)
		if err != nil {
			return err
		}
		if err := policy.Build(l.policies, build, clientName); err != nil {
			return err
		}
		if err := lock.Each(build, func(s *plan.Step) error { return l.step(ctx, s) }); err != nil {
			return err
		}
	}
	return nil
}

func (l *locker) step(ctx context.Context, s *plan.Step) (err error) {
	id := lock.Identifier(s.Op)
	if id == "" {
		return nil
	}
	if _, err := l.file.Find(id); err == nil {
		return nil
	}
	pin := ""
	switch op := s.Op.(type) {
	case *plan.Git:
		pin, err = l.b.Git.Resolve(ctx, op)
	case *plan.HTTP:
		d, herr := l.b.HTTP.Resolve(ctx, op)
		pin, err = d.String(), herr
	}
	if err == nil {
		err = l.file.Add(id, pin)
	}
	if err != nil && s.Source != nil {
		return &plan.Error{Source: s.Source, Err: err}
	}
	return err
}

// pinStep writes down what a step is, and has it be that.
func (l *locker) pinStep(ctx context.Context, s *plan.Step) error {
	if err := l.step(ctx, s); err != nil {
		return err
	}
	return pins{file: l.file}.pinStep(ctx, s)
}

// lockName is the name of the lock file that goes with a build file.
func lockName(flag string, in *inputs) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if in.path == "" {
		return "", usagef("the build file is no file of yours: name the lock file with --lock-file")
	}
	return in.path + ".lock", nil
}

func readLock(name string) (*lock.File, error) {
	data, err := readFile(name, lock.Limit)
	if err != nil {
		return nil, fmt.Errorf("lock file: %w", err)
	}
	f, err := lock.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// pins are what a build keeps to; a nil file pins nothing.
type pins struct {
	name string
	file *lock.File
}

// openLock reads the lock file of --locked.
func (o buildOptions) openLock(in *inputs) (pins, error) {
	if !o.locked {
		return pins{}, nil
	}
	name, err := lockName(o.lockFile, in)
	if err != nil {
		return pins{}, err
	}
	f, err := readLock(name)
	if errors.Is(err, fs.ErrNotExist) {
		return pins{}, fmt.Errorf("--locked: there is no %s: strake lock writes it", name)
	}
	return pins{name, f}, err
}

// look looks images up as the lock file has them.
func (p pins) look(next lookup) lookup {
	if p.file == nil {
		return next
	}
	return func(ctx context.Context, ref string, platform ocispec.Platform) (builder.Base, error) {
		id := lock.Image(ref)
		if id == "" {
			return next(ctx, ref, platform)
		}
		d, err := p.file.Find(id)
		if err != nil {
			return builder.Base{}, p.explain(err)
		}
		base, err := next(ctx, ref+"@"+d, platform)
		base.Ref = ref // steps are called and told of as the build file has it
		return base, err
	}
}

// pin has steps be what the lock file says.
func (p pins) pin(b *plan.Build) error {
	if p.file == nil {
		return nil
	}
	return p.explain(p.file.Pin(b))
}

// pinStep has one step be what the lock file says.
func (p pins) pinStep(_ context.Context, s *plan.Step) error {
	return p.pin(&plan.Build{Targets: []plan.Target{{Step: s}}})
}

// explain says what to do about something that is not locked.
func (p pins) explain(err error) error {
	var missing *lock.MissingError
	if !errors.As(err, &missing) {
		return err
	}
	hint := "run strake lock, and look at what it changes in " + p.name
	var at *plan.Error
	if errors.As(err, &at) {
		at.Hint = hint
		return at
	}
	return fmt.Errorf("%w (%s)", err, hint)
}
