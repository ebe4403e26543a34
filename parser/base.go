package parser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/plan"
)

// maxResolves is how many images are looked up at once.
const maxResolves = 16

// images looks images up, each reference and platform once.
type images struct {
	resolve func(context.Context, string, ocispec.Platform) (Resolved, error)
	slots   chan struct{}
	mu      sync.Mutex
	found   map[string]func(context.Context) (Resolved, error)
}

func newImages(resolve func(context.Context, string, ocispec.Platform) (Resolved, error)) *images {
	return &images{resolve: resolve, slots: make(chan struct{}, maxResolves), found: map[string]func(context.Context) (Resolved, error){}}
}

// lookup resolves an image. All look-ups of a build have the same context.
func (im *images) lookup(ctx context.Context, ref string, p ocispec.Platform) (Resolved, error) {
	if im.resolve == nil {
		return Resolved{}, errors.New("no image can be looked up")
	}
	key := ref + "\x00" + platforms.FormatAll(p)
	im.mu.Lock()
	once, ok := im.found[key]
	if !ok {
		var do sync.Once
		var res Resolved
		var err error
		once = func(ctx context.Context) (Resolved, error) {
			do.Do(func() {
				select {
				case im.slots <- struct{}{}:
					defer func() { <-im.slots }()
					res, err = im.resolve(ctx, ref, p)
				case <-ctx.Done():
					err = ctx.Err()
				}
			})
			return res, err
		}
		im.found[key] = once
	}
	im.mu.Unlock()
	return once(ctx)
}

// A base is what a stage starts from.
type base struct {
	image    dockerspec.DockerOCIImage
	platform ocispec.Platform
	ref      string  // of an image, with its digest; "" for none
	op       plan.Op // an Image or Local; nil for scratch or a step made elsewhere
	step     *plan.Step
	name     string // name of the step; "" for "FROM ref"
}

// resolve looks the bases of all stages up that the final one needs. Triggers
// of images may ask for more of them.
func (t *target) resolve(ctx context.Context) error {
	t.lookAhead(t.reached())
	for {
		reached := t.reached()
		var todo []*stage
		for _, s := range slices.Concat(t.stages, t.extern) {
			if reached[s] && s.base == nil && s.resolved == nil {
				todo = append(todo, s)
			}
		}
		g, gctx := errgroup.WithContext(ctx)
		errs := make([]error, len(todo)+1)
		for i, s := range todo {
			g.Go(func() (err error) {
				s.resolved, err = s.resolve(gctx)
				errs[i] = s.t.file.at(s.Location, err)
				return err
			})
		}
		if c, ok := t.o.Contexts["context"]; ok && c.Image != "" && t.mainBase == nil {
			g.Go(func() (err error) {
				t.mainBase, err = t.contextBase(gctx, "context", &c, t.platform)
				errs[len(todo)] = err
				return err
			})
		}
		if g.Wait() != nil {
			return firstCause(ctx, errs)
		}
		more := false
		for _, s := range t.stages {
			if !reached[s] || s.triggered {
				continue
			}
			s.triggered = true
			m, err := s.addTriggers()
			if err != nil {
				return t.file.at(s.Location, err)
			}
			more = more || m
		}
		if !more {
			return nil
		}
		if err := t.checkCycles(); err != nil {
			return err
		}
	}
}

// platformOr returns the platform that FROM asks for, else that of the target.
func (s *stage) platformOr() ocispec.Platform {
	if s.platform != nil {
		return *s.platform
	}
	return s.t.platform
}

// resolve finds the base of a stage that isn't made of another one.
func (s *stage) resolve(ctx context.Context) (*base, error) {
	t, p := s.t, s.platformOr()
	if s.replaced {
		return t.contextBase(ctx, s.Name, s.context, p)
	}
	if s.BaseName == scratch {
		return &base{image: emptyImage(t.platform), platform: t.platform}, nil
	}
	named, err := reference.ParseNormalizedNamed(s.BaseName)
	if err != nil {
		return nil, s.badBase(fmt.Errorf("%q is no image reference: %w", shorten(s.BaseName), err))
	}
	ref := reference.TagNameOnly(named).String()
	if c, ok := t.context(ref, p); ok {
		return t.contextBase(ctx, s.BaseName, c, p)
	}
	res, err := t.images.lookup(ctx, ref, p)
	if err != nil {
		return nil, s.badBase(err)
	}
	b, err := imageBase(res, ref, p)
	if err != nil {
		return nil, s.badBase(err)
	}
	return b, nil
}

// badBase adds what the file asked for to an error of looking it up.
func (s *stage) badBase(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	stages := s.t.stageNames()
	near := closest(strings.ToLower(s.BaseName), stages)
	what := shorten(s.what)
	if what == "" {
		what = "FROM " + shorten(s.BaseName)
	}
	e := s.t.file.fault(s.Location, fmt.Errorf("%s: %w", what, err))
	switch {
	case near != "":
		e.Err = fmt.Errorf("%s: no stage named %q, and as an image: %w", what, s.BaseName, err)
		e.Hint = fmt.Sprintf("did you mean %q?", near)
	case s.t.byName[s.BaseName] != nil:
		e.Hint = fmt.Sprintf("stage %q comes after this one", s.BaseName)
	case slices.Contains(stages, strings.ToLower(s.BaseName)):
		e.Hint = fmt.Sprintf("did you mean %q?", strings.ToLower(s.BaseName))
	default:
		e.Hint = didYouMean(s.BaseName, commonImages)
	}
	return mark(e, s.BaseName)
}

// commonImages are images that a mistyped name may mean.
var commonImages = []string{
	"alpine", "busybox", "centos", "debian", "fedora", "golang", "node", "python", "ubuntu",
}

// imageBase makes a base of a resolved image.
func imageBase(res Resolved, ref string, p ocispec.Platform) (*base, error) {
	if res.Ref == "" {
		res.Ref = ref
	}
	if res.Step != nil {
		b := &base{image: emptyImage(p), platform: p, step: res.Step}
		b.image.History = []ocispec.History{{CreatedBy: res.Step.Name, Comment: "buildkit.exporter.image.v0"}}
		return b, nil
	}
	b := &base{platform: p, ref: res.Ref}
	if err := json.Unmarshal(res.Config, &b.image); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", res.Ref, err)
	}
	b.image.Created = nil
	layers := len(b.image.RootFS.DiffIDs)
	b.image.History = alignHistory(b.image.History, layers)
	b.image.RootFS = ocispec.RootFS{Type: "layers"}
	if named, err := reference.ParseNormalizedNamed(res.Ref); err == nil && res.Digest != "" {
		if digested, err := reference.WithDigest(named, res.Digest); err == nil {
			b.ref = digested.String()
		}
	}
	if layers > 0 {
		b.op = &plan.Image{Ref: res.Ref, Digest: res.Digest, Platform: p, Layout: res.Layout}
	}
	return b, nil
}

// alignHistory makes the history of an image have one entry with a layer for
// each of its layers: images that don't are legal, but the entries to come must
// find their layers.
func alignHistory(history []ocispec.History, layers int) []ocispec.History {
	out := slices.Clone(history)
	n := 0
	for i := range out {
		if out[i].EmptyLayer {
			continue
		}
		if n == layers {
			out[i].EmptyLayer = true
			continue
		}
		n++
	}
	for ; n < layers; n++ {
		out = append(out, ocispec.History{Comment: "buildkit.exporter.image.v0"})
	}
	return out
}

// context finds the named context that stands for a stage or image.
func (t *target) context(name string, p ocispec.Platform) (*Context, bool) {
	if len(t.o.Contexts) == 0 || strings.EqualFold(name, scratch) || strings.EqualFold(name, "context") {
		return nil, false
	}
	name = familiar(name)
	suffix := "::" + platforms.FormatAll(platforms.Normalize(p))
	for _, want := range []string{name + suffix, name} {
		if c, ok := t.o.Contexts[want]; ok {
			return &c, true
		}
		for key, c := range t.o.Contexts {
			key, platform, _ := strings.Cut(key, "::")
			if platform != "" {
				platform = "::" + platform
			}
			if familiar(key)+platform == want {
				return &c, true
			}
		}
	}
	return nil, false
}

// familiar is the short form of an image name.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return strings.TrimSuffix(reference.FamiliarString(named), ":latest")
}

// contextBase makes a base of a named context.
func (t *target) contextBase(ctx context.Context, name string, c *Context, p ocispec.Platform) (*base, error) {
	b := &base{image: emptyImage(p), platform: p}
	loaded := "[context " + name + "] load from client"
	switch {
	case c.Step != nil:
		b.step = c.Step
		loaded = c.Step.Name
		if c.Config != nil {
			if err := json.Unmarshal(c.Config, &b.image); err != nil {
				return nil, fmt.Errorf("context %s: image configuration: %w", name, err)
			}
			b.image.Created, b.image.RootFS = nil, ocispec.RootFS{Type: "layers"}
			return b, nil
		}
	case c.Local != "":
		b.op = &plan.Local{Name: c.Local, Exclude: c.Exclude, IgnoreFile: c.IgnoreFile}
		b.name = loaded
	case c.Image == scratch && c.Layout == "":
		return b, nil
	default:
		return t.contextImage(ctx, name, c, p)
	}
	b.image.History = []ocispec.History{{CreatedBy: loaded, Comment: "buildkit.exporter.image.v0"}}
	return b, nil
}

// contextImage makes a base of a named context that is an image.
func (t *target) contextImage(ctx context.Context, name string, c *Context, p ocispec.Platform) (*base, error) {
	var ref string
	if c.Layout != "" {
		sep := ":"
		if strings.HasPrefix(c.Image, "sha256:") || strings.HasPrefix(c.Image, "sha512:") {
			sep = "@"
		}
		ref = "oci-layout://" + c.Layout + sep + c.Image
	} else {
		named, err := reference.ParseNormalizedNamed(c.Image)
		if err != nil {
			return nil, fmt.Errorf("context %s: %q is no image reference: %w", name, shorten(c.Image), err)
		}
		ref = reference.TagNameOnly(named).String()
	}
	res, err := t.images.lookup(ctx, ref, p)
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", name, err)
	}
	b, err := imageBase(res, ref, p)
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", name, err)
	}
	if b.image.OS != "" && b.image.Architecture != "" {
		b.platform = b.image.Platform
	}
	b.name = "[context " + name + "] " + c.Image
	return b, nil
}

// defaultPath is the PATH of images that set none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// emptyImage is the configuration of an image with nothing in it.
func emptyImage(p ocispec.Platform) dockerspec.DockerOCIImage {
	var img dockerspec.DockerOCIImage
	img.Platform = p
	img.RootFS.Type = "layers"
	img.Config.WorkingDir = "/"
	if p.OS != "windows" {
		img.Config.Env = []string{defaultPath}
	}
	return img
}
