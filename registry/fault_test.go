package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

// blobServer serves one blob by handler.
func blobServer(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// reset breaks the connection so that the other side sees a reset.
func reset(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

func flush(w http.ResponseWriter) { w.(http.Flusher).Flush() }

// serveRange answers a GET of data, from where the client wants it.
func serveRange(w http.ResponseWriter, r *http.Request, data []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func TestFetchFaults(t *testing.T) {
	t.Parallel()
	data := content(1 << 20)
	desc := ref1("", data).Desc
	other := bytes.Clone(data)
	other[77]++
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	for name, tc := range map[string]struct {
		answer func(n int, w http.ResponseWriter, r *http.Request) // to the nth request
		want   string                                              // in the error; empty: the blob arrives
		most   int                                                 // requests
	}{
		"reset": {func(n int, w http.ResponseWriter, r *http.Request) {
			if n < 4 {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)-rangeOf(r)))
				if rangeOf(r) > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", rangeOf(r), len(data)-1, len(data)))
					w.WriteHeader(http.StatusPartialContent)
				}
				_, _ = w.Write(data[rangeOf(r):][:200_000])
				flush(w)
				reset(w)
				return
			}
			serveRange(w, r, data)
		}, "", 5},
		"truncated, no ranges": {func(n int, w http.ResponseWriter, r *http.Request) {
			if n < 3 {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:300_000])
				return // the server closes the connection
			}
			_, _ = w.Write(data)
		}, "", 4},
		"reset for ever": {func(n int, w http.ResponseWriter, r *http.Request) { reset(w) }, "attempts", 5},
		"drips for ever": {func(n int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:rangeOf(r)+1])
		}, "attempts", 6},
		"wrong content": {func(n int, w http.ResponseWriter, r *http.Request) { _, _ = w.Write(other) }, "does not have this digest", 1},
		"too long": {func(n int, w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(data)
			flush(w) // no Content-Length
			_, _ = w.Write([]byte("more"))
		}, "longer than", 1},
		"other length":    {func(n int, w http.ResponseWriter, r *http.Request) { _, _ = w.Write(data[:10]) }, "10 bytes", 1},
		"wrong range":     {wrongRange(data), "range", 2},
		"503 then well":   {failing(http.StatusServiceUnavailable, "", 3, data), "", 4},
		"503 for ever":    {failing(http.StatusServiceUnavailable, "", 100, data), "503", 5},
		"500 then well":   {failing(http.StatusInternalServerError, "", 1, data), "", 2},
		"429, seconds":    {failing(http.StatusTooManyRequests, "0", 2, data), "", 3},
		"429, a date":     {failing(http.StatusTooManyRequests, time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), 1, data), "", 2},
		"429, in an hour": {failing(http.StatusTooManyRequests, "3600", 1, data), "come back in 1h0m0s", 1},
		"403":             {failing(http.StatusForbidden, "", 1, data), "unauthorized", 1},
		"stalled": {func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:200_000])
				flush(w)
				<-r.Context().Done()
				return
			}
			serveRange(w, r, data)
		}, "", 2},
		"stalled before the answer": {func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 0 {
				<-r.Context().Done()
				return
			}
			serveRange(w, r, data)
		}, "", 2},
		"stalled for ever": {func(n int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:1])
			flush(w)
			select {
			case <-r.Context().Done():
			case <-never:
			}
		}, "stalled: no data for", 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int32
			addr := blobServer(t, func(w http.ResponseWriter, r *http.Request) { tc.answer(int(n.Add(1))-1, w, r) })
			c := client(t, Options{})
			c.limits.stall, c.limits.header = 300*time.Millisecond, 300*time.Millisecond
			got, err := fetchAll(t, c, addr+"/app", desc)
			if tc.want == "" {
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			} else {
				wantError(t, err, nil, tc.want, addr+"/app@"+desc.Digest.String())
			}
			if int(n.Load()) > tc.most {
				t.Errorf("%d requests, want at most %d", n.Load(), tc.most)
			}
		})
	}
}

func rangeOf(r *http.Request) int {
	var n int
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &n)
	return n
}

func failing(status int, after string, times int, data []byte) func(int, http.ResponseWriter, *http.Request) {
	return func(n int, w http.ResponseWriter, r *http.Request) {
		if n < times {
			if after != "" {
				w.Header().Set("Retry-After", after)
			}
			w.WriteHeader(status)
			return
		}
		serveRange(w, r, data)
	}
}

func wrongRange(data []byte) func(int, http.ResponseWriter, *http.Request) {
	return func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 0 {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:500_000])
			flush(w)
			reset(w)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(data)-1, len(data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[5:])
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	data := content(10)
	addr := blobServer(t, func() http.HandlerFunc {
		answer := failing(http.StatusTooManyRequests, "1", 1, data)
		var n atomic.Int32
		return func(w http.ResponseWriter, r *http.Request) { answer(int(n.Add(1))-1, w, r) }
	}())
	start := time.Now()
	if _, err := fetchAll(t, client(t, Options{}), addr+"/app", ref1("", data).Desc); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < time.Second {
		t.Errorf("came back after %v", d)
	}
}

func TestRetryAfterHeader(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": -1, "7": 7 * time.Second, "-7": 0, "x": -1,
		"Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second,
		"Fri, 02 Jan 2026 03:04:00 GMT": 0,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: got %v, want %v", in, got, want)
		}
	}
}

func TestForeignLayersAreNotFollowed(t *testing.T) {
	t.Parallel()
	data := content(10)
	var asked atomic.Bool
	foreign := blobServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(true)
		_, _ = w.Write(data)
	})
	desc := ref1("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", data).Desc
	desc.URLs = []string{"http://" + foreign + "/layer"}
	_, err := fetchAll(t, client(t, Options{}), serve(t, nil)+"/app", desc)
	wantError(t, err, ErrNotFound, "foreign layer")
	if asked.Load() {
		t.Error("an address in the descriptor was fetched")
	}
}

func TestSlowReaderIsNoStall(t *testing.T) {
	t.Parallel()
	data := content(8 << 20)
	addr := blobServer(t, func(w http.ResponseWriter, r *http.Request) { serveRange(w, r, data) })
	c := client(t, Options{})
	c.limits.stall = 50 * time.Millisecond
	r, err := c.Blob(t.Context(), addr+"/app", ref1("", data).Desc, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	timer := time.NewTimer(200 * time.Millisecond) // the reader's own time
	<-timer.C
	if _, err := io.ReadAll(r); err != nil {
		t.Error(err)
	}
}

// uploads is a registry that keeps uploads in memory, follows the specification
// and misbehaves where fault tells it to.
type uploads struct {
	mu    sync.Mutex
	parts map[string][]byte
	blobs map[string][]byte
	n     int
	calls map[string]int
	// fault may answer a request itself; n counts the requests of its method.
	fault    func(n int, w http.ResponseWriter, r *http.Request) bool
	noStatus bool
	done     chan struct{} // closed when the test ends
}

func newUploads() *uploads {
	return &uploads{parts: map[string][]byte{}, blobs: map[string][]byte{}, calls: map[string]int{}, done: make(chan struct{})}
}

// serve starts the registry and returns its address.
func (u *uploads) serve(t *testing.T) string {
	t.Helper()
	addr := blobServer(t, u.ServeHTTP)
	t.Cleanup(func() { close(u.done) })
	return addr
}

// impatient has c take what hangs for a stall at once. For all else a busy
// machine would be one.
func impatient(c *Client) {
	c.limits.stall, c.limits.header = time.Second, 1500*time.Millisecond
}

func (u *uploads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	n := u.calls[r.Method]
	u.calls[r.Method]++
	u.mu.Unlock()
	if u.fault != nil && u.fault(n, w, r) {
		return
	}
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodHead:
		u.mu.Lock()
		b, ok := u.blobs[name]
		u.mu.Unlock()
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	case r.Method == http.MethodPost:
		u.mu.Lock()
		u.n++
		id := fmt.Sprint("u", u.n)
		u.parts[id] = nil
		u.mu.Unlock()
		w.Header().Set("Location", "/v2/app/blobs/uploads/"+id)
		w.WriteHeader(http.StatusAccepted)
	default:
		u.upload(name, w, r)
	}
}

func (u *uploads) upload(id string, w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	part, ok := u.parts[id]
	u.mu.Unlock()
	if !ok || u.noStatus && r.Method == http.MethodGet {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if cr := r.Header.Get("Content-Range"); cr != "" {
		var start int
		_, _ = fmt.Sscanf(cr, "%d-", &start)
		if start != len(part) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
	}
	if r.Method != http.MethodGet {
		body, err := io.ReadAll(r.Body)
		part = append(part, body...)
		u.mu.Lock()
		u.parts[id] = part
		u.mu.Unlock()
		if err != nil {
			return
		}
	}
	switch r.Method {
	case http.MethodGet:
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(part)-1, 0)))
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPatch:
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		d := r.URL.Query().Get("digest")
		if got := ref1("", part).Desc.Digest.String(); got != d {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		u.mu.Lock()
		u.blobs[d] = part
		delete(u.parts, id)
		u.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	}
}

func TestUploadFaults(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	is := func(r *http.Request, method string) bool {
		return r.Method == method && strings.Contains(r.URL.Path, "/uploads/")
	}
	// part takes n bytes of an upload and breaks the connection.
	part := func(u *uploads, n int64, w http.ResponseWriter, r *http.Request) bool {
		id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		body, _ := io.ReadAll(io.LimitReader(r.Body, n))
		u.mu.Lock()
		u.parts[id] = append(u.parts[id], body...)
		u.mu.Unlock()
		reset(w)
		return true
	}
	for name, tc := range map[string]struct {
		size     int
		fault    func(u *uploads) func(n int, w http.ResponseWriter, r *http.Request) bool
		noStatus bool
		want     string
		posts    int // uploads begun; 0: any number
		stalls   bool
	}{
		"well":  {size: size, posts: 1},
		"small": {size: 100, posts: 1},
		"empty": {size: 0, posts: 1},
		"reset, resumed": {size: size, posts: 1, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				return is(r, http.MethodPatch) && n < 3 && part(u, 1<<20, w, r)
			}
		}},
		"reset, restarted": {size: size, posts: 3, noStatus: true, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				return is(r, http.MethodPatch) && n < 2 && part(u, 1<<20, w, r)
			}
		}},
		"reset for ever": {size: size, want: "attempts", fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPatch) {
					reset(w)
					return true
				}
				return false
			}
		}},
		"503 and 429": {size: size, posts: 1, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPost) && n == 0 {
					w.Header().Set("Retry-After", "0")
					w.WriteHeader(http.StatusTooManyRequests)
					return true
				}
				if r.Method == http.MethodHead && n == 0 || is(r, http.MethodPut) && n == 0 {
					w.WriteHeader(http.StatusServiceUnavailable)
					return true
				}
				return false
			}
		}},
		"lost answer": {size: size, posts: 1, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPut) && n == 0 {
					u.upload(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:], httptest.NewRecorder(), r)
					reset(w)
					return true
				}
				return false
			}
		}},
		"forgotten upload": {size: size, posts: 2, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPatch) && n == 0 {
					u.mu.Lock()
					clear(u.parts)
					u.mu.Unlock()
				}
				return false
			}
		}},
		"stalled": {size: size, stalls: true, fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPatch) && n == 0 {
					_, _ = io.ReadAll(io.LimitReader(r.Body, 1<<20))
					<-u.done
					return true
				}
				return false
			}
		}},
		"never an answer": {size: size, stalls: true, want: "stalled", fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPatch) {
					_, _ = io.ReadAll(r.Body)
					<-u.done
					return true
				}
				return false
			}
		}},
		"denied": {size: size, want: "unauthorized", fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPost) {
					w.WriteHeader(http.StatusForbidden)
					fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"quota"}]}`)
					return true
				}
				return false
			}
		}},
		"no location": {size: size, want: "did not say where", fault: func(u *uploads) func(int, http.ResponseWriter, *http.Request) bool {
			return func(n int, w http.ResponseWriter, r *http.Request) bool {
				if is(r, http.MethodPost) {
					w.WriteHeader(http.StatusAccepted)
					return true
				}
				return false
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUploads()
			u.noStatus = tc.noStatus
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
			m := makeImage(t, linux)
			m.Blobs = []blob.Ref{b, b} // the same twice
			err := c.Push(t.Context(), addr+"/app:1", m, progress.Discard)
			if tc.want != "" {
				wantError(t, err, nil, tc.want, "push "+addr+"/app")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			u.mu.Lock()
			defer u.mu.Unlock()
			if !bytes.Equal(u.blobs[b.Desc.Digest.String()], data) {
				t.Error("the blob did not arrive")
			}
			if tc.posts != 0 && u.n != tc.posts {
				t.Errorf("%d uploads were begun, want %d", u.n, tc.posts)
			}
		})
	}
}

func TestPushOfBadContent(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*blob.Ref){
		"short":    func(b *blob.Ref) { b.Desc.Size++ },
		"long":     func(b *blob.Ref) { b.Desc.Size-- },
		"other":    func(b *blob.Ref) { b.Desc.Digest = ref1("", content(3)).Desc.Digest },
		"unopened": func(b *blob.Ref) { b.Open = nil },
		"error": func(b *blob.Ref) {
			b.Open = func(context.Context) (io.ReadCloser, error) { return nil, errors.New("no such thing") }
		},
	} {
		for _, size := range []int{1000, 3 << 20} {
			t.Run(fmt.Sprint(name, size), func(t *testing.T) {
				t.Parallel()
				u := newUploads()
				c := client(t, Options{})
				b := ref1("", content(size))
				change(&b)
				m := makeImage(t, linux)
				m.Blobs = []blob.Ref{b}
				err := c.Push(t.Context(), u.serve(t)+"/app:1", m, progress.Discard)
				wantError(t, err, nil, b.Desc.Digest.String())
				u.mu.Lock()
				defer u.mu.Unlock()
				if len(u.blobs) != 0 || u.calls[http.MethodPatch] > 1 {
					t.Errorf("%d blobs arrived in %d attempts", len(u.blobs), u.calls[http.MethodPatch])
				}
			})
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	began := make(chan struct{}, 10)
	addr := blobServer(t, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
	})
	why := errors.New("enough")
	m := makeImage(t, linux, 10)
	for name, call := range map[string]func(context.Context, *Client) error{
		"Resolve": func(ctx context.Context, c *Client) error { _, err := c.Resolve(ctx, addr+"/app", linux); return err },
		"Push":    func(ctx context.Context, c *Client) error { return c.Push(ctx, addr+"/app:1", m, progress.Discard) },
		"Blob": func(ctx context.Context, c *Client) error {
			_, err := c.Blob(ctx, addr+"/app", m.Blobs[0].Desc, progress.Discard)
			return err
		},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			<-began
			cancel(why)
		}()
		if err := call(ctx, client(t, Options{})); err != why {
			t.Errorf("%s: got %v, want the cause", name, err)
		}
		for len(began) > 0 {
			<-began
		}
	}
}

func TestNoGoroutinesLeft(t *testing.T) {
	addr := serve(t, nil)
	before := runtime.NumGoroutine()
	c := client(t, Options{})
	m := makeImage(t, linux, 100, 2<<20)
	push(t, c, addr+"/app:1", m)
	pull(t, c, addr+"/app:1")
	r, err := c.Blob(t.Context(), addr+"/app", m.Blobs[1].Desc, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	r.Close() // in the middle
	c.http.Transport.(*transports).lax.(*http.Transport).CloseIdleConnections()
	for start := time.Now(); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Since(start) > 10*time.Second {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
