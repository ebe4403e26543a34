package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

// imageOf is an image with a layer that is b, more or less.
func imageOf(t *testing.T, b blob.Ref) *Manifest {
	t.Helper()
	config := ref1(ocispec.MediaTypeImageConfig, []byte("{}"))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config.Desc, Layers: []ocispec.Descriptor{b.Desc}}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &Manifest{
		Desc: ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		Raw:  raw, Blobs: []blob.Ref{b, config},
	}
}

// A blob is sent while it is made, and whatever goes wrong with that, it is there
// after Push.
func TestEarly(t *testing.T) {
	t.Parallel()
	const size = 3 * earlySize
	upload := func(r *http.Request, method string) bool {
		return r.Method == method && strings.Contains(r.URL.Path, "/uploads/")
	}
	type fault = func(u *uploads) func(n int, w http.ResponseWriter, r *http.Request) bool
	for name, tc := range map[string]struct {
		size    int
		fault   fault
		there   bool // the registry has it from another time
		patches int  // 0: any number
		opened  bool // the finished blob is read
		stalls  bool
	}{
		"well":  {size: size, patches: 1},
		"small": {size: earlySize - 1, patches: 1, opened: true},
		"tiny":  {size: 100, opened: true},
		"reset, resumed": {size: size, patches: 2, opened: true, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if !upload(r, http.MethodPatch) || n > 0 {
					return false
				}
				id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
				body, _ := io.ReadAll(io.LimitReader(r.Body, earlySize))
				u.mu.Lock()
				u.parts[id] = body
				u.mu.Unlock()
				reset(w)
				return true
			}
		}},
		"no chunks": {size: size, patches: 2, opened: true, fault: func(*uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !upload(r, http.MethodPatch) || r.ContentLength >= 0 {
					return false
				}
				w.WriteHeader(http.StatusLengthRequired)
				return true
			}
		}},
		"answered too early": {size: size, patches: 2, opened: true, fault: func(*uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if !upload(r, http.MethodPatch) || n > 0 {
					return false
				}
				w.Header().Set("Connection", "close")
				w.WriteHeader(http.StatusAccepted)
				return true
			}
		}},
		"lost bytes": {size: size, opened: true, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			lost := false
			return func(_ int, w http.ResponseWriter, r *http.Request) bool {
				u.mu.Lock()
				defer u.mu.Unlock()
				id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
				if part := u.parts[id]; !lost && upload(r, http.MethodPut) && len(part) == size {
					lost, u.parts[id] = true, part[:size/2]
				}
				return false
			}
		}},
		"503": {size: size, patches: 2, opened: true, fault: func(*uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if !upload(r, http.MethodPatch) || n > 0 {
					return false
				}
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
		}},
		"stalled": {size: size, stalls: true, opened: true, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if !upload(r, http.MethodPatch) || n > 0 {
					return false
				}
				<-u.done
				return true
			}
		}},
		"there already": {size: size, there: true, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !upload(r, http.MethodPatch) {
					return false
				}
				_, _ = io.ReadAll(io.LimitReader(r.Body, earlySize)) // slow: no more until the end
				select {
				case <-r.Context().Done():
				case <-u.done:
				}
				return true
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUploads()
			if tc.fault != nil {
				u.fault = tc.fault(u)
			}
			addr := u.serve(t)
			c := client(t, Options{})
			if tc.stalls {
				impatient(c)
			}
			data := content(tc.size)
			b := ref1("", data)
			opened := false
			from := b.Open
			b.Open = func(ctx context.Context) (io.ReadCloser, error) { opened = true; return from(ctx) }
			if tc.there {
				u.blobs[b.Desc.Digest.String()] = data
			}

			e, err := c.Early(t.Context(), addr+"/app:1", progress.Discard)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			blobs, err := blob.Open(t.TempDir(), blob.TempIn(t.TempDir()))
			if err != nil {
				t.Fatal(err)
			}
			w, err := blobs.Create()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			f, err := w.Follow()
			if err != nil {
				t.Fatal(err)
			}
			e.Send(f)
			if _, err := io.CopyBuffer(w, struct{ io.Reader }{bytes.NewReader(data)}, make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := e.Push(t.Context(), imageOf(t, b)); err != nil {
				t.Fatal(err)
			}
			u.mu.Lock()
			defer u.mu.Unlock()
			if !bytes.Equal(u.blobs[b.Desc.Digest.String()], data) {
				t.Error("the blob did not arrive")
			}
			if n := u.calls[http.MethodPatch]; tc.patches != 0 && n != tc.patches {
				t.Errorf("%d requests had bytes of the blob, want %d", n, tc.patches)
			}
			if opened != tc.opened {
				t.Errorf("the finished blob was read: %v, want %v", opened, tc.opened)
			}
		})
	}
}

// What was begun and comes to nothing ends with Close, and no blob is there.
func TestEarlyGivenUp(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*blob.Writer, *Early){
		"blob": func(w *blob.Writer, e *Early) { w.Close() },
		"push": func(w *blob.Writer, e *Early) { e.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := make(chan struct{}, 1)
			u := newUploads()
			u.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPatch {
					began <- struct{}{}
				}
				return false
			}
			e, err := client(t, Options{}).Early(t.Context(), u.serve(t)+"/app:1", nil)
			if err != nil {
				t.Fatal(err)
			}
			tmp := t.TempDir()
			blobs, err := blob.Open(t.TempDir(), blob.TempIn(tmp))
			if err != nil {
				t.Fatal(err)
			}
			w, err := blobs.Create()
			if err != nil {
				t.Fatal(err)
			}
			f, err := w.Follow()
			if err != nil {
				t.Fatal(err)
			}
			e.Send(f)
			if _, err := w.Write(content(earlySize)); err != nil {
				t.Fatal(err)
			}
			<-began
			end(w, e)
			e.Close()
			w.Close()
			u.mu.Lock()
			defer u.mu.Unlock()
			if len(u.blobs) != 0 {
				t.Error("a blob that does not exist arrived")
			}
			if left, err := os.ReadDir(tmp); len(left) > 0 || err != nil {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
