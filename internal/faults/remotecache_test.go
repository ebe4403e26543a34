package faults

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// cached has the lab's image in a remote cache: in the registry's repository
// "cache", and in a directory that is returned.
func (l *lab) cached() string {
	l.Helper()
	return filepath.Join(lazily(l, l.stores, "remote cache", func() string {
		b := l.prepared()
		b.ok("build", "--cache-to", "type=registry,ref="+l.host+"/cache,mode=max", "--cache-to", "type=local,mode=max,dest="+b.out("cache"), l.context)
		return b.dir
	}), "out", "cache")
}

// imports builds from a cache behind a wire with a fault, with all of what it
// makes delivered. warning is what it warns of; empty: of nothing.
func imports(name, warning string, m match, fault reply) point {
	return point{name, func(b *bed) {
		w := newWire(b.T, to(b.lab.host))
		w.breaks(m, fault)
		b.builds(w, warning, "--cache-from", "type=registry,ref="+w.host+"/cache")
	}}
}

// builds makes an archive of the lab's image, with a cache. Whatever happens to
// the cache, the archive is made.
func (b *bed) builds(w *wire, warning string, flags ...string) {
	b.Helper()
	b.again = append([]string{"build", "-o", "type=oci,dest=" + b.out("image.tar"), b.lab.context}, flags...)
	r := b.meets(w, "")
	switch warned := strings.Contains(r.stderr, "WARN: cache "); {
	case warned && warning == "":
		b.Errorf("it warns: %v", r)
	case warning != "" && !regexp.MustCompile("WARN: cache .*"+warning).MatchString(r.stderr):
		b.Errorf("it does not warn of %q: %v", warning, r)
	}
	if n := strings.Count(r.stderr, "WARN: cache "); n > 1 {
		b.Errorf("it warns %d times: %v", n, r)
	}
}

// exports builds with a cache that is written through a wire with a fault. What
// is in the cache then is no worse for it.
func exports(name, warning string, m match, fault reply) point {
	return point{name, func(b *bed) {
		b.store("export cache", func(l *lab) [][]string { return [][]string{{"build", "-t", "app", l.context}} })
		w := newWire(b.T, emptyRegistry())
		w.breaks(m, fault)
		b.builds(w, warning, "--cache-to", "type=registry,mode=max,ref="+w.host+"/cache")
		w.open(b.T)
		fresh := newBed(b.T, b.lab)
		fresh.again = []string{"build", "--cache-from", "type=registry,ref=" + w.host + "/cache", "-o", "type=oci,dest=" + fresh.out("image.tar"), b.lab.context}
		fresh.ok(fresh.again...)
		fresh.verify()
	}}
}

// annotation finds the object in a manifest.
var annotation = regexp.MustCompile(`("dev.strake.cache.v1":")([0-9a-f]{64}\\n)`)

// remoteCacheFaults are of remote caches: whatever they do, a build is made, and
// right.
func remoteCacheFaults() []fault {
	const local = "the steps run; one warning"
	record, memo, blob := is(http.MethodGet, "/cache/manifests/strake1-r-"), is(http.MethodGet, "/cache/manifests/strake1-m-"), is(http.MethodGet, "/cache/blobs/")
	// unsigned answers with a changed document whose digest isn't told.
	unsigned := func(change func([]byte) []byte) func(w *wire, rw http.ResponseWriter, r *http.Request) {
		return func(w *wire, rw http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			w.registry.ServeHTTP(rec, r)
			rw.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
			rw.WriteHeader(rec.Code)
			_, _ = rw.Write(change(rec.Body.Bytes()))
		}
	}
	objects := map[string]match{"record": record, "memo": memo}
	each := func(kinds map[string]match, warning string, faults map[string]reply) func(l *lab) []point {
		return func(l *lab) (list []point) {
			l.cached()
			for kind, m := range inOrder(kinds) {
				for name, f := range inOrder(faults) {
					list = append(list, imports(strings.TrimSpace(kind+" "+name), warning, m, f))
				}
			}
			return list
		}
	}
	writes := map[string]match{
		"HEAD": is(http.MethodHead, "/cache/"), "POST": is(http.MethodPost, "/uploads/"), "PUT": is(http.MethodPut, "/uploads/"), "manifest": is(http.MethodPut, "/manifests/"),
	}
	written := func(warning string, faults map[string]reply) func(l *lab) []point {
		return func(*lab) (list []point) {
			for kind, m := range inOrder(writes) {
				for name, f := range inOrder(faults) {
					list = append(list, exports(strings.TrimSpace(kind+" "+name), warning, m, f))
				}
			}
			return list
		}
	}
	return []fault{
		{name: "cache/dead", outcome: local, points: func(l *lab) (list []point) {
			l.cached()
			for name, m := range inOrder(map[string]match{"from the start": is("GET", "/"), "after a record": record, "at a blob": blob}) {
				list = append(list, point{name, func(b *bed) {
					w := newWire(b.T, to(b.lab.host))
					w.breaks(m, func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
						if name == "after a record" && n == 0 {
							return false
						}
						gone(b.T, 0)(w, rw, r)
						return true
					})
					warning := "is not used: .*nothing listens there"
					if name == "after a record" {
						warning = "" // may be all that it wanted to know
					}
					b.again = []string{"build", "--cache-from", "type=registry,ref=" + w.host + "/cache", "-o", "type=oci,dest=" + b.out("image.tar"), b.lab.context}
					if r := b.meets(w, ""); !regexp.MustCompile(warning).MatchString(r.stderr) {
						b.Errorf("it does not warn: %v", r)
					}
				}})
			}
			return list
		}},
		{name: "cache/server errors", outcome: "it gets over it", points: each(map[string]match{"record": record, "memo": memo, "blob": blob}, "", map[string]reply{
			"503": once(status(503, "")), "429": once(status(429, "1")), "reset": once(resets), "cut off": once(cut(50, resets)),
		})},
		{name: "cache/server errors for ever", outcome: local, points: each(objects, "is not used", map[string]reply{
			"503": always(status(503, "")), "403": always(status(403, "")), "429": always(status(429, "86400")), "reset": always(resets),
			"no manifest": always(unsigned(func([]byte) []byte { return []byte("{}") })),
		})},
		{name: "cache/objects that are none", outcome: "the steps run", points: each(objects, "", map[string]reply{
			"another artifact": always(unsigned(func(d []byte) []byte {
				return bytes.Replace(d, []byte("strake.cache"), []byte("nobody.knows"), 1)
			})),
			"some bits are wrong": always(unsigned(func(d []byte) []byte {
				at := annotation.FindIndex(d)
				if at == nil {
					return nil
				}
				return append(bytes.Clone(d[:at[1]]), bytes.Replace(d[at[1]:], []byte("sha256:"), []byte("sha257:"), 1)...)
			})),
			"wrong checksum": always(unsigned(func(d []byte) []byte {
				return annotation.ReplaceAll(d, []byte("${1}"+strings.Repeat("0", 64)+`\n`))
			})),
		})},
		{name: "cache/objects of others", outcome: "the steps run", points: func(l *lab) (list []point) {
			l.cached()
			for kind, m := range inOrder(objects) {
				list = append(list, point{kind, func(b *bed) {
					w := newWire(b.T, to(b.lab.host))
					first := ""
					w.breaks(m, func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
						w.mu.Lock()
						if first == "" {
							first = r.URL.Path
						}
						other := r.Clone(r.Context())
						other.URL.Path = first
						w.mu.Unlock()
						w.registry.ServeHTTP(rw, other)
						return true
					})
					b.builds(w, "", "--cache-from", "type=registry,ref="+w.host+"/cache")
				}})
			}
			return list
		}},
		{name: "cache/blobs that are lost or wrong", outcome: "the steps run", points: each(map[string]match{"": blob}, "", map[string]reply{
			"404":            always(status(404, "")),
			"403":            always(status(403, "")),
			"a bit is wrong": always(body(func(d []byte) []byte { return flip(d, len(d)/2) })),
			"too short":      always(body(func(d []byte) []byte { return d[:len(d)-1] })),
			"too long":       always(body(func(d []byte) []byte { return append(bytes.Clone(d), 0) })),
			"other content":  always(body(func(d []byte) []byte { return noise(len(d)) })),
			"the first is":   once(status(404, "")),
			"all but one are": func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
				return n != 0 && always(status(404, ""))(w, n, rw, r)
			},
		})},
		{name: "cache/blobs that can't be read to the end", outcome: local, points: each(map[string]match{"": blob}, "is not used", map[string]reply{
			"reset": always(cut(10, resets)),
		})},
		{name: "cache/stalled", outcome: local, waits: true, points: each(map[string]match{"record": record, "blob": blob}, "", map[string]reply{"": once(stalls)})},
		{name: "cache/stalled for ever", outcome: local, waits: true, points: each(objects, "is not used", map[string]reply{"": always(stalls)})},
		{name: "cache/written through server errors", outcome: "it gets over it", points: written("", map[string]reply{
			"503": once(status(503, "")), "429": once(status(429, "1")), "reset": once(resets), "lost answer": once(unheard),
		})},
		{name: "cache/that can't be written", outcome: "the image is made; one warning", points: written("is not written", map[string]reply{
			"503": always(status(503, "")), "403": always(status(403, "")), "reset": always(resets),
		})},
		{name: "cache/dies while it is written", outcome: "the image is made; one warning", points: func(*lab) (list []point) {
			for kind, m := range inOrder(writes) {
				list = append(list, exports(kind, "is not written", m, func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
					if n == 1 {
						w.server.Listener.Close()
					}
					if n > 0 {
						resets(w, rw, r)
					}
					return n > 0
				}))
			}
			return list
		}},
		{name: "cache/damaged directory", outcome: "the steps run", points: directoryPoints},
	}
}

// directoryPoints damage files of a cache in a directory: all that are of a kind.
func directoryPoints(l *lab) (list []point) {
	dir := l.cached()
	kinds := map[string]string{"records": "strake/strake1-r-*", "memos": "strake/strake1-m-*", "blobs": "blobs/sha256/*"}
	damages := map[string]func(path string) error{
		"removed": os.Remove,
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"cut":     func(p string) error { return os.Truncate(p, 30) },
		"zeroes": func(p string) error {
			fi, err := os.Stat(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, make([]byte, fi.Size()), 0o644)
		},
		"flipped": func(p string) error {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, flip(data, len(data)/2), 0o644)
		},
		"a directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
		"a link":      func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) },
		"a link to endless zeroes": func(p string) error {
			return errors.Join(os.Remove(p), os.Symlink("/dev/zero", p))
		},
		"a pipe": func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o644)) },
	}
	for kind, pattern := range inOrder(kinds) {
		for name, damage := range inOrder(damages) {
			list = append(list, point{kind + " " + name, func(b *bed) {
				b.must(copyTree(dir, b.out("cache")))
				files, err := filepath.Glob(filepath.Join(b.out("cache"), pattern))
				b.must(err)
				if len(files) == 0 {
					b.Fatalf("the cache has no %s", kind)
				}
				for _, f := range files {
					b.must(damage(f))
				}
				cache := b.out("cache")
				b.again = []string{"build", "--cache-from", "type=local,src=" + cache, "--cache-to", "type=local,mode=max,dest=" + cache, "-o", "type=oci,dest=" + b.out("image.tar"), b.lab.context}
				b.ok(b.again...)
				// What it has written again is good.
				fresh := newBed(b.T, b.lab)
				fresh.ok("build", "--cache-from", "type=local,src="+cache, "-o", "type=oci,dest="+fresh.out("image.tar"), b.lab.context)
				fresh.verify()
			}})
		}
	}
	return list
}
