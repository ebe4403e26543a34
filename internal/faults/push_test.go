package faults

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/strake-build/strake/internal/testbed"
)

// emptyRegistry is a registry that has nothing yet.
func emptyRegistry() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

// blobSize is that of the blob which is pushed: it takes more than one request.
const blobSize = 3 << 20

// pushed is a point at which an image with a large blob is pushed through a wire
// with a fault. want is what the error says of it; empty: there is none.
func pushed(name, want string, m match, fault reply) point {
	return point{name, func(b *bed) {
		w := newWire(b.T, emptyRegistry())
		w.breaks(m, fault)
		b.pushes(w, w.registry, want)
	}}
}

// pushes pushes through a wire to a registry.
func (b *bed) pushes(w *wire, registry http.Handler, want string) {
	b.Helper()
	c := filepath.Join(b.dir, "context")
	b.must(os.Mkdir(c, 0o755))
	b.must(os.WriteFile(c+"/Dockerfile", []byte("FROM scratch\nCOPY noise /\n"), 0o644))
	b.must(os.WriteFile(c+"/noise", noise(blobSize), 0o644))
	b.allow(3 * blobSize) // its blob, and its pieces
	right := httptest.NewServer(emptyRegistry())
	defer right.Close()
	ref := strings.TrimPrefix(right.URL, "http://") + "/app:latest"
	b.ok("build", "-t", ref, "--push", c)
	digest := testbed.DigestOf(b.T, ref)

	ref = w.host + "/app:latest"
	b.again = []string{"build", "-t", ref, "--push", c}
	if b.meets(w, want); want != "" {
		rec := httptest.NewRecorder()
		registry.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/v2/app/manifests/latest", nil))
		if rec.Code != http.StatusNotFound {
			b.Errorf("a push that failed has made the tag (%d)", rec.Code)
		}
		w.open(b.T)
		b.ok(b.again...)
	}
	behind := httptest.NewServer(registry)
	defer behind.Close()
	if got := testbed.DigestOf(b.T, strings.TrimPrefix(behind.URL, "http://")+"/app:latest"); got != digest {
		b.Errorf("it pushed %s instead of %s", got, digest)
	}
}

// allow has the store take more than the lab's image takes: what the point itself
// has put there.
func (b *bed) allow(size int64) {
	l := *b.lab
	l.size += size
	b.lab = &l
}

// taking takes some of what is sent, and then something happens.
func taking(n int64, then func(w *wire, rw http.ResponseWriter, r *http.Request)) func(w *wire, rw http.ResponseWriter, r *http.Request) {
	return func(w *wire, rw http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyN(io.Discard, r.Body, n)
		then(w, rw, r)
	}
}

// unheard does what is asked for, but the answer is lost.
func unheard(w *wire, rw http.ResponseWriter, r *http.Request) {
	w.registry.ServeHTTP(httptest.NewRecorder(), r)
	resets(w, rw, r)
}

// pushFaults are of registries that images are pushed to.
func pushFaults() []fault {
	const over, refused = "it gets over it", "refused in words; the tag is not made"
	kinds := map[string]match{
		"HEAD": is(http.MethodHead, "/blobs/"), "POST": is(http.MethodPost, "/uploads/"), "PATCH": is(http.MethodPatch, "/uploads/"),
		"PUT": is(http.MethodPut, "/uploads/"), "manifest": is(http.MethodPut, "/manifests/"),
	}
	points := func(want string, faults map[string]reply) func(l *lab) []point {
		return func(*lab) (list []point) {
			for kind, m := range inOrder(kinds) {
				for name, f := range inOrder(faults) {
					list = append(list, pushed(strings.TrimSpace(kind+" "+name), want, m, f))
				}
			}
			return list
		}
	}
	patch := func(want string, f func(at int64) reply) func(l *lab) []point {
		return func(*lab) (list []point) {
			for _, at := range offsets(blobSize) {
				list = append(list, pushed(fmt.Sprint("byte ", at), want, kinds["PATCH"], f(int64(at))))
			}
			return list
		}
	}
	return []fault{
		{name: "push/reset in mid-transfer", outcome: over, points: patch("", func(at int64) reply { return once(taking(at, resets)) })},
		{name: "push/closed in mid-transfer", outcome: over, points: patch("", func(at int64) reply {
			return first(2, func(w *wire, _ int, rw http.ResponseWriter, r *http.Request) { taking(at, hangsUp)(w, rw, r) })
		})},
		{name: "push/reset at a request", outcome: over, points: points("", map[string]reply{"": once(resets)})},
		{name: "push/answer lost", outcome: over, points: points("", map[string]reply{"": once(unheard)})},
		{name: "push/reset for ever", outcome: refused, waits: true, points: points("attempts", map[string]reply{"": always(resets)})},
		{name: "push/PATCH lost", outcome: over, points: func(*lab) (list []point) {
			for name, keep := range inOrder(map[string]int64{"all of it": 0, "half of it": blobSize / 2, "the last byte": blobSize - 1}) {
				list = append(list, pushed(name, "", kinds["PATCH"], once(func(w *wire, rw http.ResponseWriter, r *http.Request) {
					part := r.Clone(r.Context())
					part.Body, part.ContentLength = io.NopCloser(io.LimitReader(r.Body, keep)), keep
					w.registry.ServeHTTP(rw, part)
					_, _ = io.Copy(io.Discard, r.Body)
				})))
			}
			return list
		}},
		{name: "push/upload forgotten", outcome: over, points: func(*lab) (list []point) {
			for _, kind := range []string{"PATCH", "PUT"} {
				list = append(list, pushed(kind, "", kinds[kind], once(status(404, ""))), pushed(kind+" 416", "", kinds[kind], once(status(416, ""))))
			}
			return list
		}},
		{name: "push/server errors", outcome: over, points: points("", notNow())},
		{name: "push/server errors for ever", outcome: refused, waits: true, points: points("503", map[string]reply{"": always(status(503, ""))})},
		{name: "push/429 that says when to come back", outcome: "it waits as long", points: points("", tooMany())},
		{name: "push/429 until tomorrow", outcome: "told at once", points: points("come back in 24h", map[string]reply{"": always(status(429, "86400"))})},
		{name: "push/denied", outcome: refused, points: points("not now|unauthorized|denied|403|413", map[string]reply{
			"403": always(status(403, "")), "413": always(status(413, "")),
		})},
		{name: "push/stored under another digest", outcome: refused, points: func(*lab) []point {
			return []point{pushed("manifest", "with the digest", kinds["manifest"], always(func(_ *wire, rw http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				rw.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("1", 64))
				rw.WriteHeader(http.StatusCreated)
			}))}
		}},
		{name: "push/connection refused for a moment", outcome: over, points: func(*lab) (list []point) {
			for kind, m := range inOrder(kinds) {
				list = append(list, point{kind, func(b *bed) {
					w := newWire(b.T, emptyRegistry())
					w.breaks(m, once(gone(b.T, 150*time.Millisecond)))
					b.pushes(w, w.registry, "")
				}})
			}
			return list
		}},
		{name: "push/connection refused from the middle on", outcome: refused, points: func(*lab) (list []point) {
			for kind, m := range inOrder(kinds) {
				list = append(list, point{kind, func(b *bed) {
					w := newWire(b.T, emptyRegistry())
					w.breaks(m, once(gone(b.T, 0)))
					b.pushes(w, w.registry, "nothing listens there")
				}})
			}
			return list
		}},
		{name: "push/token expires in mid-transfer", outcome: "another one is got", points: func(*lab) (list []point) {
			for kind, m := range inOrder(kinds) {
				for name, f := range inOrder(map[string]func(d *door) func(w *wire, rw http.ResponseWriter, r *http.Request){
					"before it": func(d *door) func(w *wire, rw http.ResponseWriter, r *http.Request) {
						return func(_ *wire, rw http.ResponseWriter, r *http.Request) { d.expire(); d.ServeHTTP(rw, r) }
					},
					"in the middle": func(d *door) func(w *wire, rw http.ResponseWriter, r *http.Request) {
						return taking(1<<20, func(w *wire, rw http.ResponseWriter, r *http.Request) { d.expire(); resets(w, rw, r) })
					},
					"after it": func(d *door) func(w *wire, rw http.ResponseWriter, r *http.Request) {
						return func(_ *wire, rw http.ResponseWriter, r *http.Request) { d.ServeHTTP(rw, r); d.expire() }
					},
				}) {
					list = append(list, point{kind + ", " + name, func(b *bed) {
						d, w := newDoor(b.T, emptyRegistry())
						w.breaks(func(r *http.Request) bool { return m(r) && r.Header.Get("Authorization") != "" },
							once(f(d)))
						b.pushes(w, d.registry, "")
					}})
				}
			}
			return list
		}},
		{name: "push/stalled", outcome: over, waits: true, points: points("", map[string]reply{"": once(stalls)})},
		{name: "push/stalled in the middle of a blob", outcome: over, waits: true, points: patch("", func(at int64) reply {
			return once(func(w *wire, rw http.ResponseWriter, r *http.Request) {
				_, _ = io.CopyN(io.Discard, r.Body, at)
				time.Sleep(20 * time.Second)
			})
		})},
	}
}
