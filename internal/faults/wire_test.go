package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// wire is the way to a registry. Some requests meet with a fault on it.
type wire struct {
	registry http.Handler
	server   *httptest.Server
	host     string

	mu    sync.Mutex
	match match
	fault reply
	n     int
}

// match says which requests meet with a fault.
type match func(*http.Request) bool

// reply answers the nth of those requests, from 0, unless it reports that the
// registry shall.
type reply func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool

// newWire leads to a registry.
func newWire(t *testing.T, registry http.Handler) *wire {
	w := &wire{registry: registry}
	w.server = httptest.NewUnstartedServer(w)
	w.server.Start()
	w.host = w.server.Listener.Addr().String()
	t.Cleanup(func() {
		w.server.CloseClientConnections()
		w.server.Close()
	})
	return w
}

// to is a registry at an address, which tests' registries are made more of one by
// it: they know no ranges without an end.
func to(addr string) http.Handler {
	return ranged{httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})}
}

type ranged struct{ http.Handler }

func (h ranged) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Range") == "" {
		h.Handler.ServeHTTP(rw, r)
		return
	}
	rec := httptest.NewRecorder()
	whole := r.Clone(r.Context())
	whole.Header.Del("Range")
	h.Handler.ServeHTTP(rec, whole)
	http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(rec.Body.Bytes()))
}

// breaks has requests that match meet with a fault, from now on.
func (w *wire) breaks(m match, fault reply) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.match, w.fault, w.n = m, fault, 0
}

// mend ends it, and returns how many requests have met with it.
func (w *wire) mend() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = nil
	return w.n
}

func (w *wire) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	fault, n := w.fault, w.n
	if fault != nil && w.match(r) {
		w.n++
	} else {
		fault = nil
	}
	w.mu.Unlock()
	if fault == nil || !fault(w, n, rw, r) {
		w.registry.ServeHTTP(rw, r)
	}
}

// is matches requests of a method whose path has this part.
func is(method, part string) match {
	return func(r *http.Request) bool { return r.Method == method && strings.Contains(r.URL.Path, part) }
}

// first is a fault of the first times.
func first(times int, f func(w *wire, n int, rw http.ResponseWriter, r *http.Request)) reply {
	return func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
		if n < times {
			f(w, n, rw, r)
		}
		return n < times
	}
}

// once is a fault of the first time, always one that stays.
func once(f func(w *wire, rw http.ResponseWriter, r *http.Request)) reply {
	return first(1, func(w *wire, _ int, rw http.ResponseWriter, r *http.Request) { f(w, rw, r) })
}

func always(f func(w *wire, rw http.ResponseWriter, r *http.Request)) reply {
	return first(1<<30, func(w *wire, _ int, rw http.ResponseWriter, r *http.Request) { f(w, rw, r) })
}

// resets breaks the connection so that the other side sees a reset.
func resets(_ *wire, rw http.ResponseWriter, _ *http.Request) {
	if conn, _, err := http.NewResponseController(rw).Hijack(); err == nil {
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

// hangsUp closes the connection.
func hangsUp(_ *wire, rw http.ResponseWriter, _ *http.Request) {
	if conn, _, err := http.NewResponseController(rw).Hijack(); err == nil {
		conn.Close()
	}
}

// stalls says nothing more until the other side goes away.
func stalls(_ *wire, _ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	select {
	case <-r.Context().Done():
	case <-time.After(2 * time.Minute):
	}
}

// until passes an answer on up to a byte of its body.
type until struct {
	http.ResponseWriter
	left int
	then func()
}

func (u *until) Write(p []byte) (int, error) {
	if len(p) < u.left {
		u.left -= len(p)
		return u.ResponseWriter.Write(p)
	}
	_, _ = u.ResponseWriter.Write(p[:u.left])
	_ = http.NewResponseController(u.ResponseWriter).Flush()
	u.then()
	panic(http.ErrAbortHandler)
}

// cut gives the answer up to a byte of its body, and then something happens.
func cut(at int, then func(w *wire, rw http.ResponseWriter, r *http.Request)) func(w *wire, rw http.ResponseWriter, r *http.Request) {
	return func(w *wire, rw http.ResponseWriter, r *http.Request) {
		w.registry.ServeHTTP(&until{rw, at, func() { then(w, rw, r) }}, r)
	}
}

// status answers with an error, and when to come back if that is not empty.
func status(code int, after string) func(w *wire, rw http.ResponseWriter, r *http.Request) {
	return func(_ *wire, rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if after != "" {
			rw.Header().Set("Retry-After", after)
		}
		rw.WriteHeader(code)
		fmt.Fprint(rw, `{"errors":[{"code":"UNKNOWN","message":"not now"}]}`)
	}
}

// notNow are the answers that another attempt may get over.
func notNow() map[string]reply {
	replies := map[string]reply{}
	for _, code := range []int{408, 429, 500, 502, 503, 504} {
		replies[fmt.Sprint(code)] = once(status(code, ""))
	}
	return replies
}

// tooMany are answers that say when to come back.
func tooMany() map[string]reply {
	return map[string]reply{
		"in seconds": once(status(429, "1")),
		"as a date": once(func(w *wire, rw http.ResponseWriter, r *http.Request) {
			status(429, time.Now().Add(2*time.Second).UTC().Format(http.TimeFormat))(w, rw, r) // in whole seconds
		}),
	}
}

// body answers with another body, its length told truly.
func body(change func([]byte) []byte) func(w *wire, rw http.ResponseWriter, r *http.Request) {
	return func(w *wire, rw http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		w.registry.ServeHTTP(rec, r)
		data := change(rec.Body.Bytes())
		for k, v := range rec.Header() {
			rw.Header()[k] = v
		}
		rw.Header().Set("Content-Length", fmt.Sprint(len(data)))
		rw.WriteHeader(rec.Code)
		_, _ = rw.Write(data)
	}
}

// flip changes one bit.
func flip(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 0x10
	return data
}

// gone closes the server; nobody listens at its address any more. It is there
// again after a while, if that is not 0.
func gone(t *testing.T, while time.Duration) func(w *wire, rw http.ResponseWriter, r *http.Request) {
	return func(w *wire, rw http.ResponseWriter, r *http.Request) {
		w.server.Listener.Close()
		resets(w, rw, r)
		w.server.CloseClientConnections()
		if while != 0 {
			time.AfterFunc(while, func() { w.open(t) })
		}
	}
}

// open listens again at the address, if gone has left it.
func (w *wire) open(t *testing.T) {
	l, err := net.Listen("tcp", w.host)
	if errors.Is(err, syscall.EADDRINUSE) {
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	s := httptest.NewUnstartedServer(w)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
}

// door lets those in who have a token of it that has not expired.
type door struct {
	registry http.Handler

	mu     sync.Mutex
	tokens int // that were given
	good   map[string]bool
}

// newDoor puts a door before a registry.
func newDoor(t *testing.T, registry http.Handler) (*door, *wire) {
	d := &door{registry: registry, good: map[string]bool{}}
	return d, newWire(t, d)
}

// expire makes all tokens useless.
func (d *door) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.good)
}

// given is how many tokens there were.
func (d *door) given() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tokens
}

func (d *door) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	if r.URL.Path == "/token" {
		name := fmt.Sprint("token-", d.tokens)
		d.tokens++
		d.good[name] = true
		d.mu.Unlock()
		_ = json.NewEncoder(rw).Encode(map[string]any{"token": name, "expires_in": 300})
		return
	}
	good := d.good[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	d.mu.Unlock()
	if good {
		d.registry.ServeHTTP(rw, r)
		return
	}
	_, _ = io.CopyN(io.Discard, r.Body, 64<<10)
	rw.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s",scope="repository:x:pull"`)
	rw.WriteHeader(http.StatusUnauthorized)
}
