package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/strake-build/strake/internal/shortname"
	"github.com/strake-build/strake/layers/image"
)

type inspectOptions struct{ format, platform string }

func newInspect(e *env) *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:     "inspect [OPTIONS] IMAGE...",
		Short:   "Show all that is known of images",
		Example: "  strake inspect app\n  strake inspect --format '{{.Config.Cmd}}' app",
		Args:    nArgs(1, -1, "at least one image"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runInspect(cmd.Context(), o, args, e) },
	}
	cmd.Flags().StringVarP(&o.format, "format", "f", "", "print by a Go template, or 'json'")
	cmd.Flags().StringVar(&o.platform, "platform", "", "which of an image's platforms to show")
	return cmd
}

// inspected is what inspect shows of an image, named as in Docker.
type inspected struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Comment      string `json:",omitempty"`
	Created      string `json:",omitempty"`
	Author       string `json:",omitempty"`
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	OsVersion    string `json:",omitempty"`
	Size         int64
	Config       dockerspec.DockerOCIImageConfig
	RootFS       struct {
		Type   string
		Layers []digest.Digest
	}
	Metadata struct{ LastTagTime string }
}

func runInspect(_ context.Context, o inspectOptions, args []string, e *env) (err error) {
	s, err := openStore(e, registryOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	items := []any{}
	var errs []error
	for _, a := range args {
		i, err := o.inspect(a, s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		items = append(items, i)
	}
	if o.format != "" {
		return errors.Join(append(errs, o.printFormat(items, e))...)
	}
	data, err := json.MarshalIndent(items, "", "    ")
	if err != nil {
		return err
	}
	return errors.Join(append(errs, e.printf("%s\n", data))...)
}

// printFormat prints items by the template given. As in docker's inspect, a
// template may name fields as the JSON does: .Id.
func (o inspectOptions) printFormat(items []any, e *env) error {
	var b bytes.Buffer
	err := printItems(&b, o.format, items)
	if err != nil {
		b.Reset()
		raw, rawErr := decoded(items)
		if rawErr != nil {
			return rawErr
		}
		if strictErr := printStrict(&b, o.format, raw); strictErr != nil {
			return err
		}
	}
	return e.printf("%s", b.String())
}

// decoded is items as generic JSON values.
func decoded(items []any) ([]any, error) {
	data, err := json.Marshal(items)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var raw []any
	if err := d.Decode(&raw); err != nil {
		return nil, err
	}
	return raw, nil
}

func (o inspectOptions) inspect(arg string, s *store) (*inspected, error) {
	name, err := s.images.Find(arg)
	if err != nil {
		return nil, err
	}
	img, err := pick(name, arg, o.platform)
	if err != nil {
		return nil, err
	}
	c, err := imageConfig(s.images, img.ID)
	if err != nil {
		return nil, err
	}
	sizes, err := layerSizes(s.layers)
	if err != nil {
		return nil, err
	}
	i := &inspected{
		ID: img.ID.String(), Created: rfc3339(c.Created), Author: c.Author,
		Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, OsVersion: c.OSVersion,
		Size: treeSize(img.Tree, sizes), Config: c.Config, RepoTags: []string{}, RepoDigests: []string{},
	}
	i.RootFS.Type, i.RootFS.Layers = c.RootFS.Type, c.RootFS.DiffIDs
	if len(c.History) > 0 {
		i.Comment = c.History[len(c.History)-1].Comment
	}
	names, err := s.images.List()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		i.addName(n, img)
	}
	return i, nil
}

// addName adds a name if it is one of the image.
func (i *inspected) addName(n image.Name, img image.Image) {
	for _, m := range n.Images {
		if m.ID != img.ID || n.Ref == "" {
			continue
		}
		if !strings.Contains(n.Ref, "@") {
			i.RepoTags = append(i.RepoTags, shortname.Of(n.Ref))
		}
		d := n.Index
		if d == "" {
			d = m.Manifest
		}
		if repo, _, ok := splitRef(n.Ref); ok && d != "" {
			i.RepoDigests = append(i.RepoDigests, repo+"@"+d.String())
		}
		i.Metadata.LastTagTime = rfc3339(&n.Tagged)
	}
}
