package faults

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

// parts are the requests by which the lab's base image is pulled.
type parts struct {
	manifest, config, layer match
	// layerSize is the size of the lowest layer, which is the largest.
	layerSize int
}

// kinds are the three of them.
func (p parts) kinds() map[string]match {
	return map[string]match{"manifest": p.manifest, "configuration": p.config, "layer": p.layer}
}

// parts looks at the base image.
func (l *lab) parts() parts {
	l.Helper()
	m, err := testbed.Pulled(l.T, l.base).Manifest()
	if err != nil {
		l.Fatal(err)
	}
	return parts{
		is(http.MethodGet, "/manifests/"), is(http.MethodGet, "/blobs/"+m.Config.Digest.String()), is(http.MethodGet, "/blobs/"+m.Layers[0].Digest.String()),
		int(m.Layers[0].Size),
	}
}

// noise is so many bytes that can't be compressed, always the same ones.
func noise(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// pulled is a point at which the base image is pulled through a wire with a fault.
// want is what the error says of it; empty: there is none.
func pulled(name, want string, m match, fault reply) point {
	return point{name, func(b *bed) {
		w := newWire(b.T, to(b.lab.host))
		w.breaks(m, fault)
		b.pulls(w, want)
	}}
}

// pulls makes the lab's image on a base that comes through a wire.
func (b *bed) pulls(w *wire, want string) {
	b.Helper()
	from := b.lab.base + "=docker-image://" + strings.Replace(b.lab.base, b.lab.host, w.host, 1)
	b.again = []string{"build", "--build-context", from, "-t", b.image, "--push", b.lab.context}
	if b.meets(w, want); want != "" {
		return
	}
	if got := testbed.DigestOf(b.T, b.image); got != b.lab.want {
		b.Errorf("it made %s, an undisturbed build makes %s", got, b.lab.want)
	}
}

// meets runs the point's command, which must meet with the fault of a wire, and
// then mends that.
func (b *bed) meets(w *wire, want string) result {
	b.Helper()
	r := b.strake(b.again...)
	if w.mend() == 0 {
		b.Errorf("it has not met with the fault: %v", r)
	}
	if want != "" {
		b.failed(r)
		if !regexp.MustCompile(want).MatchString(r.stderr) {
			b.Errorf("it does not say %q: %v", want, r)
		}
		return r
	}
	if r.code != 0 {
		b.Fatalf("it did not get over it: %v", r)
	}
	return r
}

// inOrder goes through a map, always in the same order.
func inOrder[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// offsets are the points in a body at which transfers are broken off.
func offsets(size int) []int { return []int{0, 1, 1000, size / 2, size - 1} }

// pullFaults are of registries that images are pulled from.
func pullFaults() []fault {
	const over, refused = "it gets over it", "refused in words; nothing of it is kept"
	// cuts are points of a layer that is cut off somewhere.
	cuts := func(fault func(at int) reply) func(l *lab) []point {
		return func(l *lab) (list []point) {
			p := l.parts()
			for _, at := range offsets(p.layerSize) {
				list = append(list, pulled(fmt.Sprint("byte ", at), "", p.layer, fault(at)))
			}
			return list
		}
	}
	// kinds are points of all kinds of requests.
	kinds := func(want string, faults map[string]reply) func(l *lab) []point {
		return func(l *lab) (list []point) {
			for kind, m := range inOrder(l.parts().kinds()) {
				for name, f := range inOrder(faults) {
					list = append(list, pulled(strings.TrimSpace(kind+" "+name), want, m, f))
				}
			}
			return list
		}
	}
	bits := map[string]reply{
		"the first byte": always(body(func(d []byte) []byte { return flip(d, 0) })),
		"in the middle":  always(body(func(d []byte) []byte { return flip(d, len(d)/2) })),
		"the last byte":  always(body(func(d []byte) []byte { return flip(d, len(d)-1) })),
	}
	return []fault{
		{name: "pull/reset in mid-transfer", outcome: over, points: cuts(func(at int) reply { return once(cut(at, resets)) })},
		{name: "pull/truncated", outcome: over, points: cuts(func(at int) reply { return once(cut(at, hangsUp)) })},
		{name: "pull/truncated, of no known length", outcome: over, points: cuts(func(at int) reply {
			return once(func(w *wire, rw http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(rw).Flush()
				body(func(d []byte) []byte { return d[:at] })(w, rw, r)
			})
		})},
		{name: "pull/reset again and again", outcome: over, points: cuts(func(at int) reply {
			return first(4, func(w *wire, n int, rw http.ResponseWriter, r *http.Request) { cut(max(at, 70<<10), resets)(w, rw, r) })
		})},
		{name: "pull/reset by a server that knows no ranges", outcome: over, points: cuts(func(at int) reply {
			return func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
				r.Header.Del("Range")
				return once(cut(at, resets))(w, n, rw, r)
			}
		})},
		{name: "pull/reset for ever", outcome: refused, waits: true, points: kinds("attempts", map[string]reply{"": always(resets)})},
		{name: "pull/reset in a document", outcome: over, points: func(l *lab) (list []point) {
			p := l.parts()
			for _, at := range []int{0, 1, 100} {
				list = append(list, pulled(fmt.Sprint("manifest, byte ", at), "", p.manifest, once(cut(at, resets))),
					pulled(fmt.Sprint("configuration, byte ", at), "", p.config, once(cut(at, resets))))
			}
			return list
		}},
		{name: "pull/wrong content", outcome: refused, points: kinds("digest", bits)},
		{name: "pull/wrong content of the right size", outcome: refused, points: kinds("digest", map[string]reply{
			"": always(body(func(d []byte) []byte { return noise(len(d)) })),
		})},
		{name: "pull/wrong size", outcome: refused, points: kinds("bytes|longer|digest", map[string]reply{
			"too long":  always(body(func(d []byte) []byte { return append(bytes.Clone(d), ' ') })),
			"too short": always(body(func(d []byte) []byte { return d[:len(d)-1] })),
			"nothing":   always(body(func([]byte) []byte { return nil })),
		})},
		{name: "pull/another range than was asked for", outcome: refused, points: func(l *lab) (list []point) {
			p := l.parts()
			for _, start := range []int{0, 5, p.layerSize - 1} {
				list = append(list, pulled(fmt.Sprint("from ", start), "range", p.layer, func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
					if n == 0 {
						cut(500_000, resets)(w, rw, r)
					}
					rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, p.layerSize-1, p.layerSize))
					rw.WriteHeader(http.StatusPartialContent)
					return true
				}))
			}
			return list
		}},
		{name: "pull/server errors", outcome: over, points: kinds("", notNow())},
		{name: "pull/server errors for ever", outcome: refused, waits: true, points: kinds("503.*not now", map[string]reply{"": always(status(503, ""))})},
		{name: "pull/429 that says when to come back", outcome: "it waits as long", points: kinds("", tooMany())},
		{name: "pull/429 until tomorrow", outcome: "told at once", points: kinds("come back in (24h0m0s|23h59m)", map[string]reply{
			"in seconds": always(status(429, "86400")),
			"as a date": always(func(w *wire, rw http.ResponseWriter, r *http.Request) {
				status(429, time.Now().Add(24*time.Hour).UTC().Format(http.TimeFormat))(w, rw, r)
			}),
		})},
		{name: "pull/connection refused for a moment", outcome: over, points: func(l *lab) (list []point) {
			for kind, m := range inOrder(l.parts().kinds()) {
				list = append(list, point{kind, func(b *bed) {
					w := newWire(b.T, to(b.lab.host))
					w.breaks(m, once(gone(b.T, 150*time.Millisecond)))
					b.pulls(w, "")
				}})
			}
			return list
		}},
		{name: "pull/connection refused from the middle on", outcome: refused, points: func(l *lab) (list []point) {
			for kind, m := range inOrder(l.parts().kinds()) {
				list = append(list, point{kind, func(b *bed) {
					w := newWire(b.T, to(b.lab.host))
					w.breaks(m, once(gone(b.T, 0)))
					b.pulls(w, "nothing listens there")
					w.open(b.T)
				}})
			}
			return list
		}},
		{name: "pull/token expires in mid-transfer", outcome: "another one is got", points: func(l *lab) (list []point) {
			p := l.parts()
			for _, at := range offsets(p.layerSize) {
				list = append(list, point{fmt.Sprintf("byte %d", at), func(b *bed) {
					d, w := newDoor(b.T, to(b.lab.host))
					w.breaks(func(r *http.Request) bool { return p.layer(r) && r.Header.Get("Authorization") != "" },
						once(cut(at, func(w *wire, rw http.ResponseWriter, r *http.Request) {
							d.expire()
							resets(w, rw, r)
						})))
					b.pulls(w, "")
					if n := d.given(); n < 2 {
						b.Errorf("%d tokens were asked for", n)
					}
				}})
			}
			return list
		}},
		{name: "pull/token server in trouble", outcome: over, points: func(*lab) (list []point) {
			for name, f := range inOrder(map[string]func(*wire, http.ResponseWriter, *http.Request){"503": status(503, ""), "429": status(429, "1"), "reset": resets}) {
				list = append(list, point{name, func(b *bed) {
					_, w := newDoor(b.T, to(b.lab.host))
					w.breaks(is(http.MethodGet, "/token"), once(f))
					b.pulls(w, "")
				}})
			}
			return list
		}},
		{name: "pull/token server that makes no sense", outcome: refused, points: func(*lab) (list []point) {
			for name, text := range inOrder(map[string]string{"nothing": "", "no JSON": "x", "no token": `{"token":""}`, "2 MiB": `{"token":"` + strings.Repeat("x", 2<<20) + `"}`}) {
				list = append(list, point{name, func(b *bed) {
					_, w := newDoor(b.T, to(b.lab.host))
					w.breaks(is(http.MethodGet, "/token"), always(func(_ *wire, rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, text) }))
					b.pulls(w, "token server")
				}})
			}
			return list
		}},
		{name: "pull/stalled", outcome: over, waits: true, points: kinds("", map[string]reply{
			"before the answer": once(stalls), "in the middle": once(cut(100, stalls)),
		})},
		{name: "pull/stalled for ever", outcome: "given up within half a minute", waits: true, points: func(l *lab) (list []point) {
			for kind, m := range inOrder(l.parts().kinds()) {
				list = append(list, point{kind, func(b *bed) {
					begin := time.Now()
					w := newWire(b.T, to(b.lab.host))
					w.breaks(m, always(cut(100, stalls)))
					b.pulls(w, "stalled: no data for")
					if took := time.Since(begin); took > 35*time.Second {
						b.Errorf("it took %v", took)
					}
				}})
			}
			return list
		}},
	}
}
