package export

import (
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/lazyregexp"
)

// Annotation is a key and a value in one of the places that an image has for
// them.
type Annotation struct {
	Level string
	// Platform limits it to the image of one platform; nil: all of them.
	// It has no meaning for indexes.
	Platform   *ocispec.Platform
	Key, Value string
}

// The levels of annotations.
const (
	LevelManifest           = "manifest"
	LevelManifestDescriptor = "manifest-descriptor" // of the manifest, in the index
	LevelIndex              = "index"
	LevelIndexDescriptor    = "index-descriptor" // of the index, in a layout's index.json
)

var (
	levelPattern = lazyregexp.New(`^([a-z-]+)(?:\[([A-Za-z0-9_/.()-]+)\])?$`)
	attrPattern  = lazyregexp.New(`^annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/.()-]+)\])?\.(\S+)$`)
)

// ParseAnnotation reads the value of an --annotation flag: KEY=VALUE, for the
// manifest, or LEVEL[PLATFORM],LEVEL:KEY=VALUE with the levels above.
func ParseAnnotation(s string) ([]Annotation, error) {
	left, value, ok := strings.Cut(s, "=")
	if !ok || left == "" {
		return nil, fmt.Errorf("%q is not of the form [LEVEL:]KEY=VALUE", s)
	}
	levels, key, ok := strings.Cut(left, ":")
	if !ok {
		levels, key = LevelManifest, left
	}
	if key == "" {
		return nil, fmt.Errorf("%q: the key is missing", s)
	}
	var out []Annotation
	for one := range strings.SplitSeq(levels, ",") {
		m := levelPattern().FindStringSubmatch(one)
		if m == nil {
			return nil, fmt.Errorf("%q: %q is not a level: it is manifest, manifest-descriptor, index or index-descriptor, with [PLATFORM] behind it", s, one)
		}
		a, err := newAnnotation(m[1], m[2], key, value)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// AnnotationAttr reads an attribute of an output: annotation.KEY,
// annotation-LEVEL.KEY or annotation-LEVEL[PLATFORM].KEY. ok tells that it is
// one.
func AnnotationAttr(attr, value string) (a Annotation, ok bool, err error) {
	m := attrPattern().FindStringSubmatch(attr)
	if m == nil {
		return Annotation{}, false, nil
	}
	level := m[1]
	if level == "" {
		level = LevelManifest
	}
	a, err = newAnnotation(level, m[2], m[3], value)
	return a, true, err
}

func newAnnotation(level, platform, key, value string) (Annotation, error) {
	a := Annotation{Level: level, Key: key, Value: value}
	switch level {
	case LevelManifest, LevelManifestDescriptor:
	case LevelIndex, LevelIndexDescriptor:
		if platform != "" {
			return a, fmt.Errorf("annotations of the level %s are of no platform", level)
		}
	default:
		return a, fmt.Errorf("unrecognized annotation type %s", level)
	}
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return a, err
		}
		p = platforms.Normalize(p)
		a.Platform = &p
	}
	return a, nil
}

// annotations are those of a level for an image; nil if there are none.
func (o Output) annotations(level string, p *ocispec.Platform) map[string]string {
	general, own := map[string]string{}, map[string]string{}
	for _, a := range o.Annotations {
		switch {
		case a.Level != level:
		case a.Platform == nil:
			general[a.Key] = a.Value
		case p != nil && platforms.FormatAll(*a.Platform) == platforms.FormatAll(platforms.Normalize(*p)):
			own[a.Key] = a.Value
		}
	}
	maps.Copy(general, own)
	if len(general) == 0 {
		return nil
	}
	return general
}

// checkAnnotations looks for annotations that have no place.
func (x *run) checkAnnotations(index bool) error {
	for _, a := range x.o.Annotations {
		if x.o.Pack.Docker && (a.Level != LevelManifest || !x.o.lenientAnnotations()) {
			return fmt.Errorf("annotation %s: Docker's media types have no annotations: leave oci-mediatypes=false out", a.Key)
		}
		if !index && (a.Level == LevelIndex || a.Level == LevelIndexDescriptor) {
			return fmt.Errorf("annotation %s: index annotations not supported for single platform export: the image has no index; use the level manifest", a.Key)
		}
		if a.Platform == nil {
			continue
		}
		known := false
		for _, img := range x.images {
			known = known || platforms.FormatAll(platforms.Normalize(img.Target.Platform)) == platforms.FormatAll(*a.Platform)
		}
		if !known {
			return fmt.Errorf("annotation %s: invalid annotation: no platform %s found in source", a.Key, platforms.FormatAll(*a.Platform))
		}
	}
	return nil
}

// lenientAnnotations: what docker load reads is in Docker's form, and clients
// send annotations to all outputs.
func (o Output) lenientAnnotations() bool { return o.Type == TypeDocker }
