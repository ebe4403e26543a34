package scripttest

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/strake-build/strake/cache/remote/gha/ghatest"
	"github.com/strake-build/strake/cache/remote/s3/s3test"
)

// meter notes the requests that a server answers.
type meter struct {
	next http.Handler

	mu    sync.Mutex
	lines []string
	bytes int64 // of bodies, both ways, of requests about blobs
}

func (m *meter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &counter{ResponseWriter: w, status: http.StatusOK}
	body := &countedBody{ReadCloser: r.Body}
	r.Body = body
	m.next.ServeHTTP(c, r)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lines = append(m.lines, fmt.Sprintf("%s %s %d", r.Method, r.URL.Path, c.status))
	if strings.Contains(r.URL.Path, "blobs") {
		m.bytes += c.n + body.n
	}
}

type counter struct {
	http.ResponseWriter
	status int
	n      int64
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

type countedBody struct {
	io.ReadCloser
	n int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

// serve starts a server whose traffic is noted, and whose blobs are files of a
// directory, $VAR.blobs.
func serve(ts *testscript.TestScript, name string, dir string, h http.Handler) *httptest.Server {
	m := &meter{next: h}
	s := httptest.NewServer(m)
	ts.Defer(s.Close)
	meters.Store(ts.Getenv("WORK")+name, m)
	ts.Defer(func() { meters.Delete(ts.Getenv("WORK") + name) })
	ts.Setenv(name+"_BLOBS", dir)
	return s
}

var meters sync.Map // of *meter, by script and variable

// startRegistry runs a registry with its blobs in a directory.
func startRegistry(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "registry VAR")
	dir := tempDir(ts, "strake-registry-")
	s := serve(ts, args[0], dir, registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(dir))))
	ts.Setenv(args[0], strings.TrimPrefix(s.URL, "http://"))
}

// tempDir makes a directory that goes when the script has ended.
func tempDir(ts *testscript.TestScript, pattern string) string {
	dir, err := os.MkdirTemp("", pattern)
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startS3 runs an S3 server with the bucket "cache", and sets credentials for it.
func startS3(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "s3 VAR")
	h, stop, err := s3test.Start(tempDir(ts, "strake-s3-"))
	ts.Check(err)
	ts.Defer(func() { ts.Check(stop()) })
	s := serve(ts, args[0], "", h)
	ts.Setenv(args[0], s.URL)
	ts.Setenv("AWS_ACCESS_KEY_ID", s3test.ID)
	ts.Setenv("AWS_SECRET_ACCESS_KEY", s3test.Secret)
}

// startGHA runs a stand-in for the cache service of GitHub Actions, and sets the
// variables that a workflow has.
func startGHA(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "gha VAR")
	dir := tempDir(ts, "strake-gha-")
	h, stop, err := ghatest.Start(dir)
	ts.Check(err)
	ts.Defer(func() { ts.Check(stop()) })
	s := serve(ts, args[0], dir, h)
	ts.Setenv("ACTIONS_RESULTS_URL", s.URL+"/")
	ts.Setenv("ACTIONS_RUNTIME_TOKEN", ghatest.Token)
}

// printTraffic prints what a server was asked since the last time.
func printTraffic(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "traffic VAR")
	v, ok := meters.Load(ts.Getenv("WORK") + args[0])
	if !ok {
		ts.Fatalf("traffic: nothing is known of %s", args[0])
	}
	m := v.(*meter)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		fmt.Fprintln(ts.Stdout(), l)
	}
	fmt.Fprintf(ts.Stdout(), "%d requests, %d bytes of blobs\n", len(m.lines), m.bytes)
	m.lines, m.bytes = nil, 0
}

// spoil damages some of the blobs below a directory, files that have their
// digests as names: every second one is removed, the others get other bytes.
func spoil(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "spoil PERCENT DIR")
	percent, err := strconv.Atoi(args[0])
	ts.Check(err)
	var blobs []string
	ts.Check(filepath.WalkDir(ts.MkAbs(args[1]), func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && len(e.Name()) == 64 {
			blobs = append(blobs, p)
		}
		return err
	}))
	slices.Sort(blobs)
	n := (len(blobs)*percent + 99) / 100
	for i := range n {
		p := blobs[i*len(blobs)/n]
		if i%2 == 0 {
			ts.Check(os.Remove(p))
			continue
		}
		data, err := os.ReadFile(p)
		ts.Check(err)
		data[len(data)/2] ^= 1
		ts.Check(os.WriteFile(p, data, 0o644))
	}
	fmt.Fprintf(ts.Stdout(), "%d of %d\n", n, len(blobs))
}
