package export

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/leak"
)

// noise is a file that is large when it is compressed, too.
func noise(path string, size int, end string) layers.Entry {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	b = append(b, end...)
	return layers.Entry{Path: path, Type: layers.Regular, Mode: 0o644, Size: int64(len(b)), Data: b, Inline: true}
}

// registryOf starts a registry, with what wrap puts before it, and returns the
// repository "app" there.
func registryOf(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	s := httptest.NewServer(wrap(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://") + "/app"
}

// A layer is sent while it is packed. If the line breaks then, the image that
// arrives is the right one all the same.
func TestPushWhilePacking(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var chunked, sized int // requests with a layer
	app := registryOf(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch {
				mu.Lock()
				broken := r.ContentLength < 0 && strings.Contains(r.URL.Path, "/app/broken/")
				if r.ContentLength < 0 {
					chunked++
				} else {
					sized++
				}
				mu.Unlock()
				if broken {
					_, _ = io.CopyN(io.Discard, r.Body, 6<<20)
					panic(http.ErrAbortHandler)
				}
			}
			h.ServeHTTP(w, r)
		})
	})
	for _, kind := range []string{"well", "broken"} {
		chunked, sized = 0, 0
		e := newExporter(t)
		img := e.tree(t, noise("noise", 12<<20, kind))
		tag := app + "/" + kind + "/x:1"
		if _, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeRegistry, Names: []string{tag}}); err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(tag)
		if err != nil {
			t.Fatal(err)
		}
		there, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(there); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		want := 0
		if kind == "broken" {
			want = 1
		}
		if chunked != 1 || sized != want {
			t.Errorf("%s: the layer was sent in %d requests while it was made, and %d when it was; want 1 and %d", kind, chunked, sized, want)
		}
	}
}

// What leaves has been searched for the secrets that the build was given: of a
// layer that has one, the registry gets the beginning at most, and no blob.
func TestLeakIsNotPushed(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse-battery"
	var mu sync.Mutex
	var sent bytes.Buffer
	app := registryOf(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			switch r.Method {
			case http.MethodPut:
				t.Errorf("%s %s: something was finished", r.Method, r.URL)
			case http.MethodPatch:
				_, _ = io.Copy(&sent, r.Body) // it breaks off
			}
			h.ServeHTTP(w, r)
		})
	})
	e := newExporter(t)
	img := e.tree(t, noise("noise", 24<<20, secret))
	g := &leak.Guard{}
	g.Add("token", []byte(secret))
	_, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeRegistry, Names: []string{app + ":1"}, Pack: image.PackOptions{Guard: g}})
	var found *image.LeakError
	if !errors.As(err, &found) || found.Path != "noise" {
		t.Errorf("got %v, want a leak in the file noise", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if sent.Len() == 0 {
		t.Error("nothing was sent while the layer was packed")
		return
	}
	z, err := gzip.NewReader(&sent)
	if err != nil {
		t.Fatal(err)
	}
	content, _ := io.ReadAll(z) // ends with the upload
	if len(content) < 1<<20 || bytes.Contains(content, []byte(secret[:8])) {
		t.Errorf("the registry got %d bytes of the layer, with the secret: %v", len(content), bytes.Contains(content, []byte(secret[:8])))
	}
}

// begun waits until a temporary file in dir has n bytes.
func begun(ctx context.Context, dir string, n int64) error {
	for ctx.Err() == nil {
		files, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
		if err != nil {
			return err
		}
		for _, f := range files {
			if fi, err := os.Stat(f); err == nil && fi.Size() >= n {
				return nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return context.Cause(ctx)
}

// watched is an image of a large layer and one that can be packed only once an
// archive in dir has begun with the first.
func (e *Exporter) watched(t *testing.T, dir, end string) Image {
	t.Helper()
	const text = "hello"
	img := e.tree(t, noise("noise", 12<<20, end))
	id, err := e.Layers.AddRecipe([]layers.Entry{{
		Path: "b", Type: layers.Regular, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1, 0), Digest: digest.FromString(text),
	}})
	if err != nil {
		t.Fatal(err)
	}
	img.Tree = append(img.Tree, id)
	img.Sources.File = func(ctx context.Context, _ layers.ID, _ layers.Entry) (io.ReadCloser, error) {
		if err := begun(ctx, dir, 8<<20); err != nil {
			return nil, err
		}
		return io.NopCloser(strings.NewReader(text)), nil
	}
	return img
}

// An archive grows while its layers are packed, and has the same bytes as one of
// which all was there, and as one that goes through a pipe.
func TestArchiveWhilePacking(t *testing.T) {
	t.Parallel()
	for _, typ := range []string{TypeOCI, TypeDocker} {
		e := newExporter(t)
		var stdout bytes.Buffer
		e.Stdout = &stdout
		dir := t.TempDir()
		img := e.watched(t, dir, "")
		export := func(dest string) {
			t.Helper()
			if _, err := e.Export(t.Context(), []Image{img}, Output{Type: typ, Dest: dest, Tar: true, Names: []string{"docker.io/me/app:1"}}); err != nil {
				t.Fatal(err)
			}
		}
		files := []string{filepath.Join(dir, "early.tar"), filepath.Join(dir, "late.tar")}
		for _, f := range files {
			export(f)
		}
		export("-")
		for _, f := range files {
			if got, err := os.ReadFile(f); err != nil || !bytes.Equal(got, stdout.Bytes()) {
				t.Errorf("%s: %s has %d bytes that differ from the %d of the stream (%v)", typ, f, len(got), stdout.Len(), err)
			}
		}
		if l := list(t, dir); len(l) != 2 {
			t.Errorf("%s: there is %q", typ, l)
		}
	}
}

// An archive that has begun is gone when a secret is found, and what was at its
// place stays.
func TestLeakIsNotArchived(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse-battery"
	e := newExporter(t)
	dir := t.TempDir()
	dest := filepath.Join(dir, "app.tar")
	if err := os.WriteFile(dest, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	img := e.watched(t, dir, secret)
	g := &leak.Guard{}
	g.Add("token", []byte(secret))
	_, err := e.Export(t.Context(), []Image{img}, Output{Type: TypeOCI, Dest: dest, Tar: true, Pack: image.PackOptions{Guard: g}})
	var found *image.LeakError
	if !errors.As(err, &found) || found.Path != "noise" {
		t.Errorf("got %v, want a leak in the file noise", err)
	}
	data, err := os.ReadFile(dest)
	if l := list(t, dir); len(l) != 1 || err != nil || string(data) != "old" {
		t.Errorf("there is %q, %d bytes, %v", l, len(data), err)
	}
}
