package export

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tonistiigi/go-csvvalue"

	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/registry"
)

// The types of outputs.
const (
	TypeImage    = "image"     // an image in the local store
	TypeRegistry = "registry"  // that, and pushed
	TypeOCI      = "oci"       // an OCI layout, as a tar file or a directory
	TypeDocker   = "docker"    // what docker load reads
	TypeLocal    = "local"     // the files, in a directory
	TypeTar      = "tar"       // the files, in a tar file
	TypeNone     = "cacheonly" // nothing: results are in the store, for the next build
)

var types = []string{TypeImage, TypeRegistry, TypeOCI, TypeDocker, TypeLocal, TypeTar, TypeNone}

// Output is one -o flag, parsed.
type Output struct {
	// Type is one of the constants above.
	Type string
	// Dest is the file or directory; "-" is Stdout.
	Dest string
	// Names are the references to give the image, normalised.
	Names []string
	// Push: an image goes to the registry of each name, too.
	Push bool
	// ByDigest: an image that is pushed gets no name, there or here.
	ByDigest bool
	// Tar: oci and docker outputs are one tar file (the default) instead of
	// a directory.
	Tar         bool
	Pack        image.PackOptions
	Annotations []Annotation
	// Legacy: attestation manifests look like images instead of saying that
	// they are artifacts (oci-artifact=false).
	Legacy bool
	// Referrers: attestations refer to the image, which stays what it would
	// be without them, instead of being with it in an index.
	Referrers bool
	// Inline: attestations that are wanted only where they cost no file are in
	// archives, too, as they are in registries.
	Inline bool
	// AttestationPrefix begins the names of attestations among files.
	AttestationPrefix string
	// Split: files of each platform go to a directory of their own. nil: if
	// there are several platforms.
	Split *bool
	// Delete: what else is in a directory is removed.
	Delete bool
	// Epoch is SOURCE_DATE_EPOCH: the time of creation. nil is
	// layers.DefaultModTime.
	Epoch *time.Time
	// RewriteTimes: files of layers made here get Epoch, too.
	RewriteTimes bool
}

// ParseOutput parses the value of an -o flag: a list of key=value pairs in CSV
// form, or only a destination (a directory, or "-" for a tar on stdout).
func ParseOutput(s string) (Output, error) {
	o, err := parseOutput(s)
	if err != nil {
		return Output{}, fmt.Errorf("-o %s: %w", s, err)
	}
	return o, nil
}

func parseOutput(s string) (Output, error) {
	if s == "" {
		return Output{}, errors.New("nothing given: it is a directory, or type=image, registry, oci, docker, local, tar or cacheonly with options")
	}
	fields, err := csvvalue.Fields(s, nil)
	if err != nil {
		return Output{}, err
	}
	if len(fields) == 1 && fields[0] == s && !strings.HasPrefix(s, "type=") {
		if s == "-" {
			return Output{Type: TypeTar, Dest: s, Tar: true}, nil
		}
		return Output{Type: TypeLocal, Dest: s, Tar: true}, nil
	}
	o := Output{Tar: true}
	seen := map[string]string{}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return Output{}, fmt.Errorf("%q is not of the form key=value", f)
		}
		if key = strings.TrimSpace(key); !strings.HasPrefix(strings.ToLower(key), "annotation") {
			key = strings.ToLower(key)
		}
		if _, again := seen[key]; again && key != "name" {
			return Output{}, fmt.Errorf("%s is given twice", key)
		}
		seen[key] = value
		if err := o.set(key, value); err != nil {
			return Output{}, err
		}
	}
	if o.Type == "" {
		return Output{}, errors.New("type= is missing")
	}
	for key := range seen {
		if !o.takes(key) {
			return Output{}, fmt.Errorf("%s has no meaning for type=%s", key, o.Type)
		}
	}
	return o, nil
}

func (o *Output) set(key, value string) (err error) {
	flag := func(b *bool) {
		if *b, err = strconv.ParseBool(value); err != nil {
			err = fmt.Errorf("%s=%s: it is true or false", key, value)
		}
	}
	switch key {
	case "type":
		if !slices.Contains(types, value) {
			return fmt.Errorf("type %q is not one of %s", value, strings.Join(types, ", "))
		}
		o.Type = value
	case "dest":
		if value == "" {
			return errors.New("dest is empty")
		}
		o.Dest = value
	case "name":
		for _, n := range strings.Split(value, ",") {
			ref, err := registry.Normalize(n)
			if err != nil {
				return err
			}
			o.Names = append(o.Names, ref)
		}
	case "push":
		flag(&o.Push)
	case "push-by-digest":
		flag(&o.ByDigest)
	case "tar":
		flag(&o.Tar)
	case "compression":
		o.Pack.Compression = compress.Algorithm(value)
		switch o.Pack.Compression {
		case compress.None, compress.Gzip, compress.Zstd, compress.Estargz:
		default:
			return fmt.Errorf("compression %q is not one of uncompressed, gzip, zstd, estargz", value)
		}
	case "compression-level":
		if o.Pack.Level, err = strconv.Atoi(value); err != nil || o.Pack.Level < 0 {
			return fmt.Errorf("%s=%s: it is a number", key, value)
		}
		if o.Pack.Level == 0 {
			o.Pack.Level = compress.LevelZero
		}
	case "force-compression":
		flag(&o.Pack.Force)
	case "oci-mediatypes":
		var oci bool
		flag(&oci)
		o.Pack.Docker = !oci
	case "rewrite-timestamp":
		flag(&o.RewriteTimes)
	case "platform-split":
		o.Split = new(bool)
		flag(o.Split)
	case "mode":
		if value != "copy" && value != "delete" {
			return fmt.Errorf("mode=%s: it is copy or delete", value)
		}
		o.Delete = value == "delete"
	case "source-date-epoch":
		n, perr := strconv.ParseInt(value, 10, 64)
		if perr != nil {
			return fmt.Errorf("%s=%s: it is a number of seconds since 1970", key, value)
		}
		t := time.Unix(n, 0).UTC()
		o.Epoch = &t
	case "oci-artifact":
		var artifact bool
		flag(&artifact)
		o.Legacy = !artifact
	case "attestations":
		switch value {
		case "index":
		case "referrers":
			o.Referrers = true
		default:
			return fmt.Errorf("attestations=%s: it is index or referrers", value)
		}
	case "attestation-prefix":
		if strings.ContainsAny(value, "/\x00") {
			return fmt.Errorf("attestation-prefix=%s: it begins a file name", value)
		}
		o.AttestationPrefix = value
	default:
		a, ok, err := AnnotationAttr(key, value)
		if ok {
			o.Annotations = append(o.Annotations, a)
			return err
		}
		return fmt.Errorf("%s is not supported; supported are type, dest, name, push, push-by-digest, tar, compression, compression-level, force-compression, oci-mediatypes, rewrite-timestamp, source-date-epoch, platform-split, mode, attestations, oci-artifact, attestation-prefix and annotation.<key>", key)
	}
	return err
}

// takes reports whether a key means something for the output's type. Where
// something could be asked for and not be done, it is an error.
func (o *Output) takes(key string) bool {
	switch o.Type {
	case TypeNone:
		return key == "type"
	case TypeLocal, TypeTar:
		return slices.Contains([]string{"type", "dest", "rewrite-timestamp", "source-date-epoch", "attestation-prefix", "platform-split"}, key) ||
			key == "mode" && o.Type == TypeLocal
	case TypeImage, TypeRegistry:
		return !slices.Contains([]string{"dest", "tar", "attestation-prefix", "platform-split", "mode"}, key)
	}
	return !slices.Contains([]string{"push", "push-by-digest", "attestation-prefix", "platform-split", "mode"}, key)
}

// Check looks for what can't be delivered whatever is built.
func (o Output) Check() error { return o.check(1) }

// check looks for what can't be delivered.
func (o Output) check(images int) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("-o type=%s: "+format, append([]any{o.Type}, args...)...)
	}
	switch o.Type {
	case TypeImage, TypeRegistry:
		if (o.Push || o.Type == TypeRegistry) && len(o.Names) == 0 {
			return fail("a name is needed to push: give one with -t")
		}
		for _, n := range o.Names {
			if repository, err := registry.Repository(n); o.ByDigest && err == nil && n != repository+":latest" {
				return fail("push-by-digest: %s has a tag, which would not be pushed; name the repository alone", n)
			}
		}
	case TypeOCI, TypeDocker:
		if o.Dest == "" {
			return fail("dest= is missing: a file, or - for stdout")
		}
		if !o.Tar && o.Dest == "-" {
			return fail("tar=false makes a directory: stdout can't be one")
		}
		if o.Type == TypeDocker && images > 1 {
			return fail("docker archives can't hold images for several platforms: use type=oci")
		}
	case TypeLocal:
		if o.Dest == "" {
			return fail("dest= is missing: a directory")
		}
		if o.Dest == "-" {
			return fail("stdout can't be a directory: use type=tar")
		}
	case TypeTar:
		if o.Dest == "" {
			return fail("dest= is missing: a file, or - for stdout")
		}
	case TypeNone:
	default:
		return fmt.Errorf("output type %q is not one of %s", o.Type, strings.Join(types, ", "))
	}
	if o.Legacy && o.Referrers {
		return fail("referrers say what they refer to: leave oci-artifact=false out")
	}
	c := o.Pack.Compression
	if c == "" {
		c = compress.Gzip
	}
	switch {
	case o.Pack.Docker && (c == compress.Zstd || c == compress.Estargz):
		return fail("Docker's media types know no %s: leave oci-mediatypes=false out", c)
	case c == compress.None && o.Pack.Level != 0:
		return fail("compression-level: %s has no levels", c)
	case o.Pack.Level > c.MaxLevel():
		return fail("compression-level=%d: the highest of %s is %d", o.Pack.Level, c, c.MaxLevel())
	}
	return nil
}

// ToStdout reports whether the output takes stdout.
func (o Output) ToStdout() bool { return o.Dest == "-" }
