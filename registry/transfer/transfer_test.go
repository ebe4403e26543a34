package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
	"github.com/strake-build/strake/state"
)

var (
	amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispec.Platform{OS: "linux", Architecture: "arm64"}
)

// gets are the blobs that a registry was asked for.
type gets struct {
	mu    sync.Mutex
	blobs []string
}

func (g *gets) take() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	got := g.blobs
	g.blobs = nil
	return got
}

func serve(t *testing.T) (string, *gets) {
	t.Helper()
	var g gets
	next := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, d, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet {
			g.mu.Lock()
			g.blobs = append(g.blobs, d)
			g.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), &g
}

func newTransfer(t *testing.T) *Transfer {
	t.Helper()
	root, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	rootless := os.Geteuid() != 0
	snaps, err := snapshot.Open(root, snapshot.Options{
		Driver: &copydir.Driver{UserXattr: rootless, RecordOwners: rootless}, UserXattr: rootless, RecordOwners: rootless,
	})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := blob.Open(root.Path("blobs"), blob.TempIn(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	images, err := image.OpenStore(root, blobs)
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.New(registry.Options{ConfigDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return &Transfer{Registry: client, Layers: snaps, Blobs: blobs, Images: images, Packer: &image.Packer{Layers: snaps, Blobs: blobs}}
}

// built stores an image of one file for each platform, as a build does.
func (tr *Transfer) built(t *testing.T, ref string, platforms ...ocispec.Platform) image.Name {
	t.Helper()
	var images []image.Image
	var configs [][]byte
	for i, p := range platforms {
		content := fmt.Sprint("content ", i)
		id, err := tr.Layers.AddEntries(t.Context(), []layers.Entry{{
			Path: "f", Type: layers.Regular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid(),
			Size: int64(len(content)), Data: []byte(content), Inline: true, Digest: digest.FromString(content),
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var img dockerspec.DockerOCIImage
		img.Platform = p
		raw, err := tr.Packer.Config(t.Context(), img, layers.Tree{id}, image.PackOptions{}, time.Unix(1e9, 0), snapshot.Sources{})
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, image.Image{ID: digest.FromBytes(raw), Platform: p, Tree: layers.Tree{id}})
		configs = append(configs, raw)
	}
	if err := tr.Images.Put([]string{ref}, images, configs, ""); err != nil {
		t.Fatal(err)
	}
	n, err := tr.Images.Find(ref)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (tr *Transfer) push(t *testing.T, n image.Name, ref string) ocispec.Descriptor {
	t.Helper()
	desc, err := tr.Push(t.Context(), n, ref, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

func TestPushThenPull(t *testing.T) {
	t.Parallel()
	addr, gets := serve(t)
	from, to := newTransfer(t), newTransfer(t)
	n := from.built(t, addr+"/app:1", amd64)
	pushed := from.push(t, n, addr+"/app:1")

	ref, err := name.ParseReference(addr + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	gets.take()

	got, err := to.Pull(t.Context(), addr+"/app:1", []ocispec.Platform{amd64}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got.Ref != addr+"/app:1" || got.Images[0].ID != n.Images[0].ID || got.Images[0].Manifest != pushed.Digest {
		t.Errorf("pulled %+v", got)
	}
	// The image is whole without the registry.
	src := Sources(nil, to.Blobs, progress.Discard)
	if _, err := to.Layers.Ensure(t.Context(), got.Images[0].Tree, src); err != nil {
		t.Error(err)
	}
	if asked := gets.take(); len(asked) != 2 {
		t.Errorf("asked for %q, want the configuration and one layer", asked)
	}
	var events []progress.Event
	if _, err := to.Pull(t.Context(), addr+"/app:1", []ocispec.Platform{amd64}, func(e progress.Event) { events = append(events, e) }); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events, func(e progress.Event) bool { return e.Action == "exists" }) || len(gets.take()) != 1 {
		t.Errorf("a second pull fetched layers: %+v", events)
	}
	// A push of what was pulled has the same digest.
	if again := to.push(t, got, addr+"/other:2"); again.Digest != pushed.Digest {
		t.Errorf("pushed %s, want %s", again.Digest, pushed.Digest)
	}
	l, err := to.Layers.Layer(got.Images[0].Tree[0])
	if err != nil || !slices.Contains(l.Origins, addr+"/app") || !slices.Contains(l.Origins, addr+"/other") {
		t.Errorf("origins %q, %v", l.Origins, err)
	}
}

func TestSeveralPlatforms(t *testing.T) {
	t.Parallel()
	addr, _ := serve(t)
	from, to := newTransfer(t), newTransfer(t)
	pushed := from.push(t, from.built(t, "app", amd64, arm64), addr+"/app:1")
	if pushed.MediaType != ocispec.MediaTypeImageIndex {
		t.Errorf("pushed %+v", pushed)
	}
	got, err := to.Pull(t.Context(), addr+"/app:1", []ocispec.Platform{arm64, amd64, arm64}, nil)
	if err != nil || len(got.Images) != 2 || got.Images[0].Platform.Architecture != "arm64" || got.Index != pushed.Digest {
		t.Errorf("pulled %+v, %v", got, err)
	}
	one := newTransfer(t)
	got, err = one.Pull(t.Context(), addr+"/app@"+pushed.Digest.String(), []ocispec.Platform{amd64}, nil)
	if err != nil || len(got.Images) != 1 || got.Ref != addr+"/app@"+pushed.Digest.String() {
		t.Errorf("by digest: %+v, %v", got, err)
	}
}

func TestFailedPullChangesNothing(t *testing.T) {
	t.Parallel()
	addr, _ := serve(t)
	from, to := newTransfer(t), newTransfer(t)
	from.push(t, from.built(t, "app", amd64, arm64), addr+"/app:1")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := to.Pull(ctx, addr+"/app:1", []ocispec.Platform{amd64}, nil); err != why {
		t.Errorf("after cancel: %v", err)
	}
	if _, err := to.Pull(t.Context(), addr+"/app:1", []ocispec.Platform{{OS: "linux", Architecture: "s390x"}}, nil); err == nil {
		t.Error("a platform that there is not was pulled")
	}
	if _, err := to.Pull(t.Context(), addr+"/nosuch", []ocispec.Platform{amd64}, nil); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if list, err := to.Images.List(); err != nil || len(list) != 0 {
		t.Errorf("stored %+v, %v", list, err)
	}
}

func TestSourcesTryAllOrigins(t *testing.T) {
	t.Parallel()
	addr, _ := serve(t)
	tr := newTransfer(t)
	n := tr.built(t, "app", amd64)
	tr.push(t, n, addr+"/app:1")
	l, err := tr.Layers.Layer(n.Images[0].Tree[0])
	if err != nil {
		t.Fatal(err)
	}
	desc := l.Blobs[0]
	want, err := tr.Blobs.Bytes(desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	empty := newTransfer(t)
	src := Sources(empty.Registry, empty.Blobs, nil)
	l.Origins = []string{addr + "/nosuch", addr + "/app"}
	r, err := src.Blob(t.Context(), l, desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	l.Origins = nil
	if _, err := src.Blob(t.Context(), l, desc); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("without an origin: %v", err)
	}
}
