// Package export delivers what was built: to the image store, a registry, an
// archive, a directory.
package export

import (
	"context"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

// Image is one built image.
type Image struct {
	Target  plan.Target
	Tree    layers.Tree
	Sources snapshot.Sources
}

// Output is one -o flag, parsed.
type Output struct {
	// Type is image, registry, oci, docker, local or tar.
	Type string
	// Dest is the file or directory; "-" is Stdout.
	Dest string
	// Names are the references to give the image.
	Names []string
	// Push: an image goes to the registry of each name, too.
	Push bool
	// Tar: oci and docker outputs are one tar file (the default) instead of
	// a directory.
	Tar         bool
	Pack        image.PackOptions
	Annotations map[string]string
}

// ParseOutput parses the value of an -o flag: a list of key=value pairs in CSV
// form, or only a destination (a directory, or "-" for a tar on stdout).
func ParseOutput(s string) (Output, error) { panic("unwritten") }

// Exporter delivers images.
type Exporter struct {
	Packer   *image.Packer
	Images   *image.Store
	Blobs    *blob.Store
	Registry *registry.Client
	Progress progress.Func
}

// Export delivers images (one for each platform) to an output. The response
// has the keys of buildx's --metadata-file: "containerimage.digest",
// "containerimage.config.digest", "image.name", "containerimage.descriptor".
// Nothing half-written is left at the destination when it fails.
func (e *Exporter) Export(ctx context.Context, images []Image, o Output) (map[string]any, error) {
	panic("unwritten")
}
