package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

// statement is an attestation manifest of an image with one statement, spoilt by
// change.
func statement(t *testing.T, of digest.Digest, text string, change func(*ocispec.Manifest)) *registry.Manifest {
	t.Helper()
	ref := func(mediaType, data string) blob.Ref {
		return blob.Ref{
			Desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(data), Size: int64(len(data))},
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(data)), nil },
		}
	}
	config, layer := ref(ocispec.MediaTypeEmptyJSON, "{}"), ref("application/vnd.in-toto+json", text)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config.Desc, Layers: []ocispec.Descriptor{layer.Desc},
	}
	if change != nil {
		change(&m)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &registry.Manifest{
		Desc: ocispec.Descriptor{
			MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)),
			Platform:    &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{manifest.AnnotationReferenceType: manifest.ReferenceAttestation, manifest.AnnotationReferenceDigest: of.String()},
		},
		Raw: raw, Blobs: []blob.Ref{config, layer},
	}
}

// What is missing, or out of bounds, is left out and told of. The image, and the
// rest of what is said of it, is here and goes on.
func TestAttestationsLeftOut(t *testing.T) {
	t.Parallel()
	var hidden string // a manifest that the registry lists, and does not have
	next := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && hidden != "" && strings.HasSuffix(r.URL.Path, hidden) {
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	addr := strings.TrimPrefix(s.URL, "http://")
	from, to := newTransfer(t), newTransfer(t)
	packed, err := from.Packer.Bundle(t.Context(), from.built(t, "x", amd64), snapshot.Sources{}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	of := packed.Desc.Digest
	good, missing := statement(t, of, "good", nil), statement(t, of, "missing", nil)
	huge := statement(t, of, "huge", func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 40 })
	many := statement(t, of, "many", func(m *ocispec.Manifest) {
		for range 1000 {
			m.Layers = append(m.Layers, m.Layers[0])
		}
	})
	other := statement(t, digest.FromString("another image"), "other", nil)
	children := []*registry.Manifest{Manifest(packed), good, missing, huge, many, other}
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, c := range children {
		x.Manifests = append(x.Manifests, c.Desc)
	}
	raw, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	index := ocispec.Descriptor{MediaType: x.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := from.Registry.Push(t.Context(), addr+"/app:1", &registry.Manifest{Desc: index, Raw: raw, Children: children}, progress.Discard); err != nil {
		t.Fatal(err)
	}
	hidden = missing.Desc.Digest.String()

	var warnings []string
	n, err := to.Pull(t.Context(), addr+"/app:1", []ocispec.Platform{amd64}, func(ev progress.Event) {
		if ev.Kind == progress.Warning {
			warnings = append(warnings, ev.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		missing.Desc.Digest.String() + " of " + addr + "/app:1 is left out: ",
		huge.Desc.Digest.String() + " of " + addr + "/app:1 is left out: its statements have more than",
		many.Desc.Digest.String() + " of " + addr + "/app:1 is left out: it has 1001 statements",
	} {
		if !strings.Contains(strings.Join(warnings, "\n"), want) {
			t.Errorf("no warning with %q: %q", want, warnings)
		}
	}
	if len(warnings) != 3 {
		t.Errorf("%d warnings, want 3: %q", len(warnings), warnings)
	}

	// What is here is pushed, without the rest.
	desc := to.push(t, n, addr+"/again:1")
	_, raw, err = to.Registry.Manifest(t.Context(), addr+"/again:1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := manifest.ParseIndex(raw)
	if err != nil || len(got.Manifests) != 2 || got.Manifests[0].Digest != of || got.Manifests[1].Digest != good.Desc.Digest {
		t.Errorf("pushed %s, error %v; want the image %s and its attestation %s", raw, err, of, good.Desc.Digest)
	}
	if desc.Digest == index.Digest {
		t.Error("pushed the index with what is not here")
	}

	// A blob that is gone since is left out, too.
	if err := to.Blobs.Remove(digest.FromString("good")); err != nil {
		t.Fatal(err)
	}
	var told string
	b, err := to.Packer.Bundle(t.Context(), n, snapshot.Sources{}, func(text string) { told = text })
	if err != nil || b.Desc.Digest != of || !strings.Contains(told, "left out: ") {
		t.Errorf("bundle %s, error %v, warning %q; want the image %s alone", b.Desc.Digest, err, told, of)
	}
}

// More attestations than an honest image has are not fetched.
func TestManyAttestations(t *testing.T) {
	t.Parallel()
	tr := newTransfer(t)
	img := &registry.Image{Ref: "x", Attestations: make([]ocispec.Descriptor, 1000)}
	for i := range img.Attestations {
		img.Attestations[i].Size = manifest.Limit + 1
	}
	var told bytes.Buffer
	kept, err := tr.attestations(t.Context(), img, func(ev progress.Event) { told.WriteString(ev.Text + "\n") })
	if err != nil || len(kept) > 0 {
		t.Fatalf("%d attestations, error %v", len(kept), err)
	}
	if n := strings.Count(told.String(), "\n"); n != image.MaxAttestations+1 || !strings.Contains(told.String(), "more than 16 are left out") {
		t.Errorf("%d warnings:\n%s", n, told.String())
	}
}
