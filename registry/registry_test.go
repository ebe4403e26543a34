package registry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/internal/manifest"
	"github.com/strake-build/strake/internal/shortname"
	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

var linux = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// serve starts a registry, with what wrap puts before it, and returns its
// address.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// client is a client with the patience of a test.
func client(t *testing.T, o Options) *Client {
	t.Helper()
	if o.ConfigDir == "" {
		o.ConfigDir = t.TempDir()
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	c.limits = limits{
		header: 5 * time.Second, stall: 5 * time.Second, giveUp: 20 * time.Second,
		backoff: time.Millisecond, maxWait: 5 * time.Second, attempts: 5,
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

// content is n bytes that do not repeat.
func content(n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = rnd.Read(b)
	return b
}

func ref1(mediaType string, b []byte) blob.Ref {
	return blob.Ref{
		Desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))},
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
	}
}

// makeImage makes an image with layers of the sizes given.
func makeImage(t *testing.T, p ocispec.Platform, sizes ...int) *Manifest {
	t.Helper()
	img := ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	var blobs []blob.Ref
	for _, n := range sizes {
		layer := tarOf(t, content(n))
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, _ = w.Write(layer)
		w.Close()
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(layer))
		r := ref1(ocispec.MediaTypeImageLayerGzip, z.Bytes())
		blobs = append(blobs, r)
		m.Layers = append(m.Layers, r.Desc)
	}
	config := marshal(t, img)
	r := ref1(ocispec.MediaTypeImageConfig, config)
	m.Config = r.Desc
	raw := marshal(t, m)
	return &Manifest{
		Desc: ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Platform: &p},
		Raw:  raw, Blobs: append(blobs, r),
	}
}

// tarOf is a layer of one file.
func tarOf(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func makeIndex(t *testing.T, children ...*Manifest) *Manifest {
	t.Helper()
	x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	x.SchemaVersion = 2
	for _, c := range children {
		x.Manifests = append(x.Manifests, c.Desc)
	}
	raw := marshal(t, x)
	return &Manifest{
		Desc: ocispec.Descriptor{MediaType: x.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		Raw:  raw, Children: children,
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func push(t *testing.T, c *Client, ref string, m *Manifest) {
	t.Helper()
	if err := c.Push(t.Context(), ref, m, progress.Discard); err != nil {
		t.Fatal(err)
	}
}

// pull resolves an image and reads all its layers.
func pull(t *testing.T, c *Client, ref string) *Image {
	t.Helper()
	img, err := c.Resolve(t.Context(), ref, linux)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range img.Manifest.Layers {
		if _, err := fetchAll(t, c, img.Origin, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func fetchAll(t *testing.T, c *Client, origin string, desc ocispec.Descriptor) ([]byte, error) {
	t.Helper()
	r, err := c.Blob(t.Context(), origin, desc, progress.Discard)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func wantError(t *testing.T, err error, sentinel error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if sentinel != nil && !errors.Is(err, sentinel) {
		t.Errorf("error is not %q: %v", sentinel, err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error does not say %q: %v", p, err)
		}
	}
}

// events gathers progress.
type events struct {
	mu  sync.Mutex
	all []progress.Event
}

func (e *events) add(v progress.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, v)
}

func (e *events) count(action string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := map[string]bool{}
	for _, v := range e.all {
		if v.Action == action && v.Current == v.Total {
			ids[v.ID] = true
		}
	}
	return len(ids)
}

func TestPushAndPull(t *testing.T) {
	t.Parallel()
	addr := serve(t, nil)
	c := client(t, Options{})
	m := makeImage(t, linux, 10, 3<<20, 0)
	var ev events
	if err := c.Push(t.Context(), addr+"/app:1", m, ev.add); err != nil {
		t.Fatal(err)
	}
	if n := ev.count("pushing"); n != 4 {
		t.Errorf("%d blobs were reported as pushed, want 4", n)
	}
	img := pull(t, c, addr+"/app:1")
	if img.Desc.Digest != m.Desc.Digest || img.Index != "" || img.Desc.Platform.Architecture != "amd64" {
		t.Errorf("got %+v, index %q, want %s", img.Desc, img.Index, m.Desc.Digest)
	}
	if !bytes.Equal(img.RawManifest, m.Raw) || img.Origin != addr+"/app" || img.Ref != addr+"/app:1" {
		t.Errorf("manifest, origin %q or ref %q is wrong", img.Origin, img.Ref)
	}

	var again events
	if err := c.Push(t.Context(), addr+"/app:2", m, again.add); err != nil {
		t.Fatal(err)
	}
	if n := again.count("exists"); n != 4 {
		t.Errorf("%d blobs were found to exist, want 4", n)
	}
	byDigest, err := c.Resolve(t.Context(), addr+"/app@"+m.Desc.Digest.String(), linux)
	if err != nil || byDigest.Desc.Digest != m.Desc.Digest {
		t.Errorf("by digest: %v", err)
	}
	head, err := c.Head(t.Context(), addr+"/app:2")
	if err != nil || head.Digest != m.Desc.Digest || head.Size != int64(len(m.Raw)) || head.MediaType != m.Desc.MediaType {
		t.Errorf("Head: %+v, %v", head, err)
	}
}

func TestPushByDigestOnly(t *testing.T) {
	t.Parallel()
	addr := serve(t, nil)
	c := client(t, Options{})
	m := makeImage(t, linux, 100)
	push(t, c, addr+"/app", m)
	if _, err := c.Head(t.Context(), addr+"/app@"+m.Desc.Digest.String()); err != nil {
		t.Error(err)
	}
	_, err := c.Head(t.Context(), addr+"/app:latest")
	wantError(t, err, ErrNotFound)
}

func TestIndex(t *testing.T) {
	t.Parallel()
	addr := serve(t, nil)
	c := client(t, Options{})
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	armv7 := ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	amd, arm64, v7 := makeImage(t, linux, 10), makeImage(t, arm, 20), makeImage(t, armv7, 30)
	attestation := makeImage(t, ocispec.Platform{OS: "unknown", Architecture: "unknown"}, 40)
	x := makeIndex(t, attestation, v7, arm64, amd)
	push(t, c, addr+"/app:1", x)

	for _, tc := range []struct {
		platform ocispec.Platform
		want     *Manifest
	}{
		{linux, amd},
		{ocispec.Platform{OS: "linux", Architecture: "arm64"}, arm64},
		{armv7, v7},
		{ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v8"}, v7}, // can run it
	} {
		img, err := c.Resolve(t.Context(), addr+"/app:1", tc.platform)
		if err != nil {
			t.Fatal(err)
		}
		if img.Desc.Digest != tc.want.Desc.Digest || img.Index != x.Desc.Digest {
			t.Errorf("%v: got %v of index %s", tc.platform, img.Desc.Platform, img.Index)
		}
	}
	_, err := c.Resolve(t.Context(), addr+"/app:1", ocispec.Platform{OS: "linux", Architecture: "s390x"})
	wantError(t, err, nil, addr+"/app:1", "no image for linux/s390x", "linux/amd64", "linux/arm64", "linux/arm/v7")
	if strings.Contains(err.Error(), "unknown") {
		t.Errorf("attestations are no platform: %v", err)
	}
	var pe *manifest.PlatformError
	if !errors.As(err, &pe) {
		t.Errorf("%T is no PlatformError", err)
	}
}

func TestNestedIndexes(t *testing.T) {
	t.Parallel()
	addr := serve(t, nil)
	c := client(t, Options{})
	m := makeImage(t, linux, 10)
	inner := makeIndex(t, m)
	push(t, c, addr+"/app:2", makeIndex(t, inner))
	if img := pull(t, c, addr+"/app:2"); img.Desc.Digest != m.Desc.Digest {
		t.Errorf("got %s", img.Desc.Digest)
	}
	deep := makeIndex(t, makeIndex(t, makeIndex(t, inner)))
	push(t, c, addr+"/app:deep", deep)
	_, err := c.Resolve(t.Context(), addr+"/app:deep", linux)
	wantError(t, err, nil, "nested too deep")
}

func TestMountsFromOrigin(t *testing.T) {
	t.Parallel()
	addr := serve(t, nil)
	c := client(t, Options{})
	m := makeImage(t, linux, 1000, 2000)
	push(t, c, addr+"/base:1", m)
	for i := range m.Blobs {
		m.Blobs[i].Origins = []string{"docker.io/library/other", addr + "/base"}
		m.Blobs[i].Open = func(context.Context) (io.ReadCloser, error) { return nil, errors.New("must not be read") }
	}
	var ev events
	// go-containerregistry's registry has one pool of blobs: HEAD would find them.
	hide := serveHidingBlobs(t, addr, "/v2/app/")
	if err := c.Push(t.Context(), hide+"/app:1", rehost(m, addr, hide), ev.add); err != nil {
		t.Fatal(err)
	}
	if n := ev.count("mounted"); n != 3 {
		t.Errorf("%d blobs were mounted, want 3: %+v", n, ev.all)
	}
}

// serveHidingBlobs is the registry at addr, but says of blobs of one repository
// that they are not there unless they were mounted or uploaded.
func serveHidingBlobs(t *testing.T, addr, prefix string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && strings.HasPrefix(r.URL.Path, prefix+"blobs/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if r.Method == http.MethodPost && r.URL.Query().Get("mount") != "" && r.URL.Query().Get("from") == "base" {
			w.WriteHeader(http.StatusCreated)
			return
		}
		proxyTo(addr, w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func rehost(m *Manifest, from, to string) *Manifest {
	for i := range m.Blobs {
		for j, o := range m.Blobs[i].Origins {
			m.Blobs[i].Origins[j] = strings.Replace(o, from, to, 1)
		}
	}
	return m
}

func proxyTo(addr string, w http.ResponseWriter, r *http.Request) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", addr, ""
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	addr := serve(t, nil)
	c := client(t, Options{})
	_, err := c.Resolve(t.Context(), addr+"/nosuch:1", linux)
	wantError(t, err, ErrNotFound, addr+"/nosuch:1: not found in the registry", "check the name")
	_, err = c.Blob(t.Context(), addr+"/nosuch", ref1("", content(5)).Desc, progress.Discard)
	wantError(t, err, ErrNotFound, "blob "+addr+"/nosuch@sha256:")
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.NotFoundHandler())
	addr := strings.TrimPrefix(s.URL, "http://")
	s.Close()
	_, err := client(t, Options{}).Resolve(t.Context(), addr+"/app", linux)
	wantError(t, err, nil, addr+"/app:latest", "connection refused", "nothing listens there")
}

func TestPlainHTTPWhereTLSIsExpected(t *testing.T) {
	t.Parallel()
	addr := serve(t, nil)
	c := client(t, Options{})
	h := c.host(addr, "https")
	_, err := c.send(t.Context(), &endpoint{host: h, path: "app"}, request{method: http.MethodGet, suffix: "/manifests/1"})
	err = explain(t.Context(), "", ref{domain: addr, path: "app", tag: "1"}, &endpoint{host: h}, err)
	wantError(t, err, nil, "speaks plain http", "insecure registry")
}

func TestTLSOnLoopback(t *testing.T) {
	t.Parallel()
	s := httptest.NewTLSServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	addr := strings.TrimPrefix(s.URL, "https://")
	c := client(t, Options{})
	m := makeImage(t, linux, 2<<20)
	push(t, c, addr+"/app:1", m)
	pull(t, c, addr+"/app:1")

	strict := client(t, Options{})
	strict.http.Transport.(*transports).insecure = func(string) bool { return false }
	_, err := strict.Resolve(t.Context(), addr+"/app:1", linux)
	wantError(t, err, nil, "certificate", "insecure registry")
}

func TestUnsuitableManifests(t *testing.T) {
	t.Parallel()
	good := makeImage(t, linux, 10)
	var m ocispec.Manifest
	if err := json.Unmarshal(good.Raw, &m); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		contentType string
		raw         string
		want        string
	}{
		"schema 1":       {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		"both":           {"application/vnd.oci.image.index.v1+json", `{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`, "ambiguous"},
		"contradiction":  {"application/vnd.oci.image.index.v1+json", string(good.Raw), "was sent as"},
		"no JSON":        {"application/vnd.oci.image.manifest.v1+json", `<html>`, "not valid JSON"},
		"unknown":        {"application/vnd.oci.image.manifest.v1+json", `{"mediaType":"text/x"}`, "text/x"},
		"bad digest":     {"", `{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:zz"},"layers":[]}`, "digest"},
		"an artifact":    {"", `{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"` + m.Config.Digest.String() + `","size":1},"layers":[]}`, "not a container image"},
		"layers missing": {"", `{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + string(marshal(t, m.Config)) + `,"layers":[]}`, "1 diffIDs for 0 layers"},
		"config's size":  {"", `{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + m.Config.Digest.String() + `","size":5},"layers":[]}`, "bytes"},
		"huge":           {"", `{"x":"` + strings.Repeat("x", manifest.Limit) + `"}`, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := serve(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/manifests/bad") {
						w.Header().Set("Content-Type", tc.contentType)
						fmt.Fprint(w, tc.raw)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			c := client(t, Options{})
			push(t, c, addr+"/app:1", good)
			_, err := c.Resolve(t.Context(), addr+"/app:bad", linux)
			wantError(t, err, nil, addr+"/app:bad", tc.want)
		})
	}
}

func TestWrongDigestOfManifest(t *testing.T) {
	t.Parallel()
	m := makeImage(t, linux, 10)
	addr := serve(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", m.Desc.MediaType)
			_, _ = w.Write(append(bytes.Clone(m.Raw), '\n'))
		})
	})
	_, err := client(t, Options{}).Resolve(t.Context(), addr+"/app@"+m.Desc.Digest.String(), linux)
	wantError(t, err, nil, "instead of "+m.Desc.Digest.String())
}

func TestMirrors(t *testing.T) {
	t.Parallel()
	var origin, mirrored int
	var mu sync.Mutex
	counting := func(n *int) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				*n++
				mu.Unlock()
				next.ServeHTTP(w, r)
			})
		}
	}
	originAddr, mirrorAddr := serve(t, counting(&origin)), serve(t, counting(&mirrored))
	plain := client(t, Options{})
	both, only := makeImage(t, linux, 100), makeImage(t, linux, 200)
	push(t, plain, originAddr+"/lib/both:1", both)
	push(t, plain, originAddr+"/lib/only:1", only)
	push(t, plain, mirrorAddr+"/cache/lib/both:1", both)

	dead := httptest.NewServer(http.NotFoundHandler())
	deadAddr := strings.TrimPrefix(dead.URL, "http://")
	dead.Close()
	c := client(t, Options{Mirrors: map[string][]string{originAddr: {deadAddr, "http://" + mirrorAddr + "/cache"}}})

	origin, mirrored = 0, 0
	img := pull(t, c, originAddr+"/lib/both:1")
	if origin != 0 || mirrored == 0 {
		t.Errorf("%d requests to the registry and %d to its mirror", origin, mirrored)
	}
	if img.Origin != originAddr+"/lib/both" {
		t.Errorf("origin %q", img.Origin)
	}
	pull(t, c, originAddr+"/lib/only:1")
	if origin == 0 {
		t.Error("what the mirror lacks was not asked of the registry")
	}
	_, err := c.Resolve(t.Context(), originAddr+"/lib/none:1", linux)
	wantError(t, err, ErrNotFound, originAddr+"/lib/none:1")

	// A blob's mirror is a place to mount from as well.
	m := makeImage(t, linux, 300)
	p := &pusher{c: c, endpoint: &endpoint{host: c.host(mirrorAddr, "http"), path: "app"}}
	if got := p.mountable([]string{originAddr + "/lib/both"}); len(got) != 1 || got[0] != "cache/lib/both" {
		t.Errorf("mountable from %q", got)
	}
	_ = m
}

// TestKept: what was fetched by its digest is not fetched again, unless it was
// damaged since; a tag is asked for each time.
func TestKept(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	addr := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			asked = append(asked, r.Method+" "+r.URL.Path)
			mu.Unlock()
			next.ServeHTTP(w, r)
		})
	})
	m := makeImage(t, linux, 100)
	push(t, client(t, Options{}), addr+"/app:1", m)
	blobs, err := blob.Open(filepath.Join(t.TempDir(), "blobs"), blob.TempIn(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	resolve := func(ref string) ([]string, *Image) {
		t.Helper()
		asked = nil
		img, err := client(t, Options{Blobs: blobs}).Resolve(t.Context(), addr+ref, linux)
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(asked, func(a string) bool { return a == "GET /v2/" }), img
	}
	_, first := resolve("/app:1")
	tag := []string{"GET /v2/app/manifests/1"}
	config := "GET /v2/app/blobs/" + first.Manifest.Config.Digest.String()
	pinned := "/app@" + first.Desc.Digest.String()
	for _, test := range []struct {
		ref  string
		want []string
	}{
		{"/app:1", tag},
		{pinned, []string{"GET /v2/app/manifests/" + first.Desc.Digest.String()}},
		{pinned, nil},
	} {
		got, img := resolve(test.ref)
		if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.ref, diff)
		}
		if img.Desc.Digest != first.Desc.Digest || img.Desc.MediaType != first.Desc.MediaType || !bytes.Equal(img.Config, first.Config) {
			t.Errorf("%s: %+v, first %+v", test.ref, img, first)
		}
	}
	damaged := bytes.Repeat([]byte("x"), len(first.Config))
	if err := os.WriteFile(blobs.Path(first.Manifest.Config.Digest), damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	got, img := resolve("/app:1")
	if diff := cmp.Diff(append(tag, config), got); diff != "" || !bytes.Equal(img.Config, first.Config) {
		t.Errorf("after damage (-want +got):\n%s", diff)
	}
}

func TestDamagedMirror(t *testing.T) {
	t.Parallel()
	m := makeImage(t, linux, 1<<20)
	originAddr := serve(t, nil)
	push(t, client(t, Options{}), originAddr+"/app:1", m)
	mirrorAddr := serve(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") { // cuts every one short
				w.Header().Set("Content-Length", "7")
				_, _ = w.Write([]byte("garbage"))
				return
			}
			proxyTo(originAddr, w, r)
		})
	})
	c := client(t, Options{Mirrors: map[string][]string{originAddr: {mirrorAddr}}})
	pull(t, c, originAddr+"/app:1")
}

func TestNames(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"alpine":                              "docker.io/library/alpine:latest",
		"alpine:3.18":                         "docker.io/library/alpine:3.18",
		"me/app":                              "docker.io/me/app:latest",
		"localhost:5000/app":                  "localhost:5000/app:latest",
		"index.docker.io/library/alpine":      "docker.io/library/alpine:latest",
		"quay.io/a/b/c:x":                     "quay.io/a/b/c:x",
		"a@sha256:" + strings.Repeat("a", 64): "docker.io/library/a@sha256:" + strings.Repeat("a", 64),
	} {
		if got, err := Normalize(in); err != nil || got != want {
			t.Errorf("Normalize(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"docker.io/library/alpine:3.18": "alpine:3.18",
		"docker.io/me/app:latest":       "me/app:latest",
		"localhost:5000/app:latest":     "localhost:5000/app:latest",
		"NOT A NAME":                    "NOT A NAME",
	} {
		if got := shortname.Of(in); got != want {
			t.Errorf("shortname.Of(%q) = %q, want %q", in, got, want)
		}
	}
	_, err := Normalize("Alpine")
	wantError(t, err, nil, "must be in lower case")
	if _, err := Normalize("a b"); err == nil {
		t.Error("a name with a blank passed")
	}
}

func TestMirrorSyntax(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"localhost:5000":        "|localhost:5000|",
		"http://h:1/a/b/":       "http|h:1|a/b/",
		"https://mirror/v2/hub": "https|mirror|hub/",
		"[::1]:5000":            "|[::1]:5000|",
	} {
		scheme, addr, prefix, err := parseMirror(in)
		if got := scheme + "|" + addr + "|" + prefix; err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "ftp://x", "user@host", "/x"} {
		if _, err := New(Options{Mirrors: map[string][]string{"docker.io": {in}}}); err == nil {
			t.Errorf("%q passed", in)
		}
	}
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true, "[::1]": true,
		"example.com": false, "10.0.0.1:5000": false, "localhost.example.com": false, "[::2]:80": false, "127.0.0.1.example.com": false,
	} {
		if got := loopback(addr); got != want {
			t.Errorf("loopback(%q) = %v", addr, got)
		}
	}
}
