package remote

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tonistiigi/go-csvvalue"

	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/image"
)

// The types of caches.
const (
	TypeRegistry = "registry"
	TypeInline   = "inline"
	TypeLocal    = "local"
	TypeGHA      = "gha"
	TypeS3       = "s3"
)

// Spec is one --cache-from or --cache-to flag, in BuildKit's terms.
type Spec struct {
	Type  string
	Attrs map[string]string
}

// String is the spec as a flag.
func (s Spec) String() string {
	text := "type=" + s.Type
	for _, k := range []string{"ref", "src", "dest", "bucket", "name", "scope"} {
		if v := s.Attrs[k]; v != "" {
			text += "," + k + "=" + v
		}
	}
	return text
}

// attributes are what a type takes: to say where it is, for --cache-from and
// --cache-to, then for each alone.
var attributes = map[string][3][]string{
	TypeRegistry: {{"ref", "registry.insecure", "mounts"}, {}, {"oci-mediatypes", "image-manifest", "compat"}},
	TypeInline:   {},
	TypeLocal:    {{"tag", "mounts"}, {"src", "digest"}, {"dest", "oci-mediatypes", "image-manifest"}},
	TypeGHA:      {{"scope", "url", "url_v2", "version", "token", "timeout", "ghtoken", "repository", "mounts"}, {}, {}},
	TypeS3: {{"bucket", "region", "name", "prefix", "blobs_prefix", "manifests_prefix", "endpoint_url", "use_path_style",
		"access_key_id", "secret_access_key", "session_token", "upload_parallelism", "touch_refresh", "mounts"}, {}, {}},
}

// exportAttributes are what every type but inline takes for --cache-to.
var exportAttributes = []string{"mode", "ignore-error", "compression", "compression-level", "force-compression"}

// ParseImport parses a --cache-from flag: key=value pairs in CSV form, or only a
// reference, for type=registry.
func ParseImport(s string) (Spec, error) {
	spec, err := parseSpec(s, 1)
	if err == nil && spec.Type == TypeInline {
		err = errors.New("an inline cache is read from its image: type=registry,ref=IMAGE")
	}
	return spec, err
}

// ParseExport parses a --cache-to flag.
func ParseExport(s string) (Spec, error) { return parseSpec(s, 2) }

func parseSpec(s string, which int) (Spec, error) {
	spec := Spec{Attrs: map[string]string{}}
	if s == "" {
		return spec, errors.New("nothing given: it is a reference, or type=registry, local, gha or s3 with options")
	}
	fields, err := csvvalue.Fields(s, nil)
	if err != nil {
		return spec, err
	}
	if len(fields) == 1 && !strings.Contains(s, "=") {
		return Spec{TypeRegistry, map[string]string{"ref": s}}, nil
	}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return spec, fmt.Errorf("%q is not of the form key=value", f)
		}
		key = strings.ToLower(strings.TrimSpace(key))
		if key == "type" {
			spec.Type = value
		} else {
			spec.Attrs[key] = value
		}
	}
	known, ok := attributes[spec.Type]
	if !ok {
		return spec, fmt.Errorf("type %q is not one of registry, inline, local, gha, s3", spec.Type)
	}
	allowed := slices.Concat(known[0], known[which])
	if which == 2 && spec.Type != TypeInline {
		allowed = append(allowed, exportAttributes...)
	}
	if which == 2 && spec.Type == TypeInline {
		allowed = append(allowed, "mode") // BuildKit takes it
	}
	for key := range spec.Attrs {
		if !slices.Contains(allowed, key) {
			return spec, fmt.Errorf("%s has no meaning for type=%s; it takes %s", key, spec.Type, strings.Join(allowed, ", "))
		}
	}
	need := map[string][3]string{TypeRegistry: {"", "ref", "ref"}, TypeLocal: {"", "src", "dest"}, TypeS3: {"", "bucket", "bucket"}}[spec.Type][which]
	if need != "" && spec.Attrs[need] == "" {
		return spec, fmt.Errorf("%s= is missing for type=%s", need, spec.Type)
	}
	return spec, nil
}

// bool reads a boolean attribute; empty is unset.
func (s Spec) bool(key string) (value, set bool, err error) {
	v, ok := s.Attrs[key]
	if !ok || v == "" {
		return ok, ok, nil
	}
	value, err = strconv.ParseBool(v)
	if err != nil {
		err = fmt.Errorf("%s=%s: it is true or false", key, v)
	}
	return value, true, err
}

// Mounts reports whether directories of cache mounts are wanted.
func (s Spec) Mounts() bool {
	v, _, err := s.bool("mounts")
	return v && err == nil
}

// Export says how to write the cache of a --cache-to flag.
type Export struct {
	// Min: only what the target's layers are made of.
	Min  bool
	Pack image.PackOptions
	// Strict: a cache that can't be written fails the build. It does not
	// unless ignore-error=false is said.
	Strict bool
	// Mounts: directories of cache mounts go there, too.
	Mounts bool
	// Compat: the reference itself gets a manifest of BuildKit's form.
	Compat bool
}

// Export reads the attributes that say how to write.
func (s Spec) Export() (Export, error) {
	x := Export{Min: true}
	switch mode := s.Attrs["mode"]; mode {
	case "", "min":
	case "max":
		x.Min = false
	default:
		return x, fmt.Errorf("mode=%s: it is min or max", mode)
	}
	ignore, set, err := s.bool("ignore-error")
	if err != nil {
		return x, err
	}
	x.Strict = set && !ignore
	x.Pack.Compression = compress.Algorithm(s.Attrs["compression"])
	switch x.Pack.Compression {
	case "", compress.None, compress.Gzip, compress.Zstd:
	default:
		return x, fmt.Errorf("compression %q is not one of uncompressed, gzip, zstd", x.Pack.Compression)
	}
	if l := s.Attrs["compression-level"]; l != "" {
		if x.Pack.Level, err = strconv.Atoi(l); err != nil || x.Pack.Level < 0 {
			return x, fmt.Errorf("compression-level=%s: it is a number", l)
		}
	}
	for _, key := range []string{"force-compression", "compat", "mounts", "oci-mediatypes", "image-manifest"} {
		v, set, err := s.bool(key)
		if err != nil {
			return x, err
		}
		switch {
		case key == "force-compression":
			x.Pack.Force = v
		case key == "mounts":
			x.Mounts = v
		case key == "compat":
			x.Compat = v
		case set && !v:
			return x, fmt.Errorf("%s=false: caches have OCI media types, and are image manifests", key)
		}
	}
	return x, nil
}
