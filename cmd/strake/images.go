package main

import (
	"context"
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/internal/shortname"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
)

type imagesOptions struct {
	all, quiet, noTrunc, digests bool
	format                       string
	filters                      []string
}

func newImages(e *env) *cobra.Command {
	var o imagesOptions
	cmd := &cobra.Command{
		Use:     "images [OPTIONS] [NAME[:TAG]]",
		Short:   "List the images of the store",
		Example: "  strake images\n  strake images -q 'app*'\n  strake images --format '{{.Repository}}:{{.Tag}} {{.Size}}'",
		Args:    nArgs(0, 1, "at most one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.filters = append(o.filters, "reference="+args[0])
			}
			return runImages(cmd.Context(), o, e)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "list images without a name, too")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print IDs only")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "print whole IDs")
	f.BoolVar(&o.digests, "digests", false, "show digests of manifests")
	f.StringVar(&o.format, "format", "", formatHelp)
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "list only some: reference=PATTERN, dangling=true, label=NAME[=VALUE]")
	return cmd
}

// imageRow is an image in a list.
type imageRow struct {
	Repository, Tag, Digest, ID, CreatedSince, CreatedAt, Size string
	Platform                                                   string
}

var imageColumns = []column{{"Repository", "REPOSITORY"}, {"Tag", "TAG"}, {"ID", "IMAGE ID"}, {"CreatedSince", "CREATED"}, {"Size", "SIZE"}}

func runImages(_ context.Context, o imagesOptions, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	names, err := s.images.List()
	if err != nil {
		return err
	}
	sizes, err := layerSizes(s.layers)
	if err != nil {
		return err
	}
	var rows []any
	for _, n := range names {
		for _, img := range n.Images {
			config, err := imageConfig(s.images, img.ID)
			if err != nil {
				e.warnf("%v", err)
				continue
			}
			ok, err := o.wants(n, config)
			if err != nil {
				return err
			}
			if ok {
				rows = append(rows, o.row(n, img, config, sizes))
			}
		}
	}
	if o.quiet && o.format == "" {
		var ids []any
		for _, r := range rows {
			if !slices.Contains(ids, any(r.(imageRow).ID)) {
				ids = append(ids, r.(imageRow).ID)
			}
		}
		return printItems(e.stdout, "{{.}}", ids)
	}
	columns := imageColumns
	if o.digests {
		columns = slices.Insert(slices.Clone(columns), 2, column{"Digest", "DIGEST"})
	}
	return printTable(e.stdout, o.format, columns, []column{{"CreatedAt", "CREATED AT"}, {"Digest", "DIGEST"}, {"Platform", "PLATFORM"}}, rows)
}

// layerSizes are the sizes of all layers.
func layerSizes(s *snapshot.Store) (map[layers.ID]int64, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	sizes := map[layers.ID]int64{}
	for _, l := range list {
		n := l.Size
		if n == 0 && len(l.Blobs) > 0 {
			n = l.Blobs[0].Size // not unpacked yet: as it is in the registry
		}
		sizes[l.ID] = n
	}
	return sizes, nil
}

func treeSize(t layers.Tree, sizes map[layers.ID]int64) (n int64) {
	for _, id := range t {
		n += sizes[id]
	}
	return n
}

func imageConfig(s *image.Store, id digest.Digest) (c dockerspec.DockerOCIImage, err error) {
	raw, err := s.Config(id)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(raw, &c)
}

func (o imagesOptions) row(n image.Name, img image.Image, c dockerspec.DockerOCIImage, sizes map[layers.ID]int64) imageRow {
	r := imageRow{Repository: "<none>", Tag: "<none>", Digest: "<none>", ID: img.ID.String(), CreatedSince: "N/A",
		Size: size(treeSize(img.Tree, sizes)), Platform: platform(img)}
	if repo, tag, ok := splitRef(n.Ref); ok {
		r.Repository, r.Tag = repo, tag
	}
	if n.Index != "" {
		r.Digest = n.Index.String()
	} else if img.Manifest != "" {
		r.Digest = img.Manifest.String()
	}
	if !o.noTrunc {
		r.ID = shortID(r.ID)
	}
	if c.Created != nil {
		r.CreatedAt, r.CreatedSince = c.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"), since(*c.Created)
	}
	return r
}

// splitRef splits a stored name into repository and tag as they are shown.
func splitRef(ref string) (repo, tag string, ok bool) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", "", false
	}
	repo, tag = shortname.Of(named.Name()), "<none>"
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	return repo, tag, true
}

// wants reports whether the filters let an image through.
func (o imagesOptions) wants(n image.Name, c dockerspec.DockerOCIImage) (bool, error) {
	dangling := false
	for _, f := range o.filters {
		key, value, err := splitPair("filter", f)
		if err != nil {
			return false, err
		}
		switch key {
		case "reference":
			if !matchesRef(value, n.Ref) {
				return false, nil
			}
		case "dangling":
			if value != "true" && value != "false" {
				return false, usagef("--filter %s: it is true or false", f)
			}
			dangling = value == "true"
			if dangling != (n.Ref == "") {
				return false, nil
			}
		case "label":
			k, v, hasValue := strings.Cut(value, "=")
			if got, ok := c.Config.Labels[k]; !ok || hasValue && got != v {
				return false, nil
			}
		default:
			return false, usagef("--filter %s: it is reference, dangling or label", f)
		}
	}
	return n.Ref != "" || o.all || dangling || slices.ContainsFunc(o.filters, func(f string) bool { return strings.HasPrefix(f, "label=") }), nil
}

// matchesRef reports whether a pattern, as "app*" or "app:1", fits a name in its
// short form.
func matchesRef(pattern, ref string) bool {
	repo, tag, ok := splitRef(ref)
	if !ok {
		return false
	}
	for _, p := range []string{pattern, strings.TrimPrefix(pattern, "docker.io/library/"), strings.TrimPrefix(pattern, "docker.io/")} {
		for _, s := range []string{repo, repo + ":" + tag} {
			if ok, err := path.Match(p, s); err == nil && ok {
				return true
			}
		}
	}
	return false
}

func platform(img image.Image) string {
	p := img.Platform.OS + "/" + img.Platform.Architecture
	if img.Platform.Variant != "" {
		p += "/" + img.Platform.Variant
	}
	return p
}

// rfc3339 is a time in JSON; empty if there is none.
func rfc3339(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
