package registry

import (
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/strake-build/strake/internal/distribution"
)

// startDistribution starts Debian's docker-registry.
func startDistribution(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath(distribution.Program); err != nil {
		t.Skip("SKIPPED: docker-registry is not installed; only go-containerregistry's registry was tested")
	}
	addr, stop, err := distribution.Start(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return addr
}

func TestDistribution(t *testing.T) {
	t.Parallel()
	addr := startDistribution(t)
	c := client(t, Options{})
	m := makeImage(t, linux, 100, 5<<20, 0)
	push(t, c, addr+"/base:1", makeIndex(t, m))
	img := pull(t, c, addr+"/base:1")
	if img.Desc.Digest != m.Desc.Digest {
		t.Errorf("got %s", img.Desc.Digest)
	}
	ref, err := name.ParseReference(addr + "/base@" + m.Desc.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	remoteImage, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(remoteImage); err != nil {
		t.Error(err)
	}

	for i := range m.Blobs {
		m.Blobs[i].Origins = []string{addr + "/base"}
	}
	var ev events
	if err := c.Push(t.Context(), addr+"/deep/er/app:1", m, ev.add); err != nil {
		t.Fatal(err)
	}
	if n := ev.count("mounted"); n != len(m.Blobs) {
		t.Errorf("%d of %d blobs were mounted", n, len(m.Blobs))
	}
	pull(t, c, addr+"/deep/er/app:1")
	if err := c.Push(t.Context(), addr+"/deep/er/app:1", m, ev.add); err != nil {
		t.Fatal(err)
	}
	_, err = c.Resolve(t.Context(), addr+"/nosuch:1", linux)
	wantError(t, err, ErrNotFound, addr+"/nosuch:1")
}

// TestDistributionBroken breaks the connection of an upload to a real registry:
// it forgets the upload then, so that another must be begun.
func TestDistributionBroken(t *testing.T) {
	t.Parallel()
	addr := startDistribution(t)
	u := &breaker{addr: addr, left: 3}
	c := client(t, Options{})
	broken := blobServer(t, u.ServeHTTP)
	m := makeImage(t, linux, 8<<20)
	push(t, c, broken+"/app:1", m)
	if u.left != 0 {
		t.Errorf("only %d connections were broken", 3-u.left)
	}
	if u.begun > 2+3 { // the layer's and the configuration's
		t.Errorf("%d uploads were begun", u.begun)
	}
	pull(t, c, addr+"/app:1")
}

// breaker is a proxy that breaks PATCH requests after a while.
type breaker struct {
	addr  string
	mu    sync.Mutex
	left  int
	begun int
}

func (b *breaker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	cut := r.Method == http.MethodPatch && b.left > 0
	if cut {
		b.left--
	}
	if r.Method == http.MethodPost {
		b.begun++
	}
	b.mu.Unlock()
	if !cut {
		proxyTo(b.addr, w, r)
		return
	}
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer conn.Close()
	out := r.Clone(r.Context())
	out.Body = io.NopCloser(io.LimitReader(r.Body, 2<<20)) // shorter than it says
	_ = out.Write(conn)
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, conn) // until the registry has stored what it got
	reset(w)
}
