package hostile

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// serve serves a handler on loopback.
func (b *bed) serve(h http.Handler) (addr string) {
	s := httptest.NewServer(h)
	b.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// manual serves an image made by hand: its manifest is the format, filled with
// the digest and size of a good configuration and a good layer.
func (b *bed) manual(change func(s blobs, m map[string]any)) string {
	b.Helper()
	s := blobs{}
	l := b.archive(file("f", "x"))
	ld, ln := s.add(l)
	cd, cn := s.add([]byte(`{"os":"linux","architecture":"amd64","config":{},"rootfs":{"type":"layers","diff_ids":["` + ld + `"]}}`))
	m := map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": cd, "size": cn},
		"layers":        []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": ld, "size": ln}},
	}
	change(s, m)
	if s["manifest"] == nil {
		s["manifest"] = b.json(m)
	}
	s.add(s["manifest"])
	return b.serve(s) + "/hostile:1"
}

func imageAttacks() []attack {
	refused := func(want string, change func(b *bed, s blobs, m map[string]any)) func(b *bed) {
		return func(b *bed) {
			ref := b.manual(func(s blobs, m map[string]any) { change(b, s, m) })
			b.refused(want, "pull", ref)
			b.buildRefused(want, "FROM "+ref+" AS x\nFROM "+b.base+"\nCOPY --from=x /f /f\nRUN cat /f\n")
		}
	}
	first := func(m map[string]any) map[string]any { return m["layers"].([]any)[0].(map[string]any) }
	user := func(user string) func(*v1.ConfigFile) { return func(c *v1.ConfigFile) { c.Config.User = user } }
	return []attack{
		{name: "image/a layer's digest is a path", after: "CVE-2024-3727", outcome: "refused", run: refused("", func(b *bed, s blobs, m map[string]any) {
			first(m)["digest"] = "sha256:" + up + b.host[1:] + "/secret"
		})},
		{name: "image/a blob longer than its size", after: "CVE-2025-58183", outcome: "refused", run: refused("", func(b *bed, s blobs, m map[string]any) {
			first(m)["size"] = 10
		})},
		{name: "image/negative and huge sizes", outcome: "refused", run: refused("", func(b *bed, s blobs, m map[string]any) {
			first(m)["size"] = -1
			m["config"].(map[string]any)["size"] = int64(1) << 62
		})},
		{name: "image/a manifest of 64 MiB", after: "CVE-2025-24965 CVE-2023-25153", outcome: "refused, in bounded memory", run: refused("", func(b *bed, s blobs, m map[string]any) {
			m["annotations"] = map[string]string{"a": strings.Repeat("x", 64<<20)}
		})},
		{name: "image/a manifest nested a million deep", after: "CVE-2022-30633", outcome: "refused, in bounded memory", run: refused("", func(b *bed, s blobs, m map[string]any) {
			s["manifest"] = []byte(strings.Repeat(`{"a":`, 1_000_000))
		})},
		{name: "image/a configuration of 64 MiB", after: "CVE-2023-25153", outcome: "refused, in bounded memory", run: refused("", func(b *bed, s blobs, m map[string]any) {
			cd, cn := s.add([]byte(`{"os":"linux","architecture":"amd64","x":"` + strings.Repeat("x", 64<<20) + `"}`))
			m["config"] = map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": cd, "size": cn}
		})},
		{name: "image/an index of indexes without end", after: "CVE-2021-41190", outcome: "refused", run: func(b *bed) {
			var requests atomic.Int64
			addr := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				// Each index names another one by a digest that is not its own.
				n := requests.Add(1)
				w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
				fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:%064x","size":300,"platform":{"os":"linux","architecture":"amd64"}}]}`, n)
			}))
			b.refused("", "pull", addr+"/x:1")
			if n := requests.Load(); n > 50 {
				b.Errorf("%d requests", n)
			}
		}},
		{name: "image/an index that contains itself a hundred times", outcome: "refused", run: func(b *bed) {
			s := blobs{}
			inner := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
			for range 100 {
				d, n := s.add(inner)
				one := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.index.v1+json","digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}}`, d, n)
				inner = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + one + "," + one + `]}`)
			}
			s["manifest"] = inner
			b.refused("", "pull", b.serve(s)+"/x:1")
		}},
		{name: "image/a manifest that is an index, too", after: "CVE-2021-41190", outcome: "refused", run: refused("", func(b *bed, s blobs, m map[string]any) {
			m["manifests"] = []any{map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + strings.Repeat("1", 64), "size": 1}}
		})},
		{name: "image/another media type than the header's", after: "CVE-2021-41190", outcome: "refused", run: refused("", func(b *bed, s blobs, m map[string]any) {
			s["media type"] = []byte("application/vnd.oci.image.index.v1+json")
		})},
		{name: "image/more layers than diff IDs", after: "CVE-2014-8179", outcome: "refused", run: refused("", func(b *bed, s blobs, m map[string]any) {
			m["layers"] = append(m["layers"].([]any), first(m))
		})},
		{name: "image/other content than its digest", after: "CVE-2014-8178", outcome: "refused", run: refused("", func(b *bed, s blobs, m map[string]any) {
			s[first(m)["digest"].(string)] = b.archive(file("f", "y"))
		})},
		{name: "image/layers at other addresses", after: "CVE-2020-15157", outcome: "the address is not asked", run: func(b *bed) {
			var asked atomic.Int64
			evil := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1) }))
			ref := b.manual(func(s blobs, m map[string]any) {
				l := first(m)
				l["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar"
				l["urls"] = []string{"http://" + evil + "/layer", "file://" + b.host + "/secret"}
				delete(s, l["digest"].(string))
			})
			b.refused("", "pull", ref)
			if asked.Load() > 0 {
				b.Error("the address that the manifest names was asked")
			}
		}},
		{name: "image/passwd is a link to the host", after: "CVE-2024-9676 CVE-2019-14271", outcome: "names are those of the image", run: func(b *bed) {
			b.write(b.dir, "passwd", "pwn:x:0:0::/:/bin/sh\n")
			ref := b.imageOf(nil, b.archive(symlink("etc/passwd", b.dir+"/passwd"), symlink("etc/group", up+b.dir+"/passwd")))
			b.buildRefused("pwn", "FROM "+ref+"\nUSER pwn\nRUN id\n")
			b.contained("FROM " + ref + "\nCOPY --chown=pwn Dockerfile /\n")
		}},
		{name: "image/passwd is a pipe", after: "CVE-2024-9676", outcome: "refused, no hang", run: func(b *bed) {
			ref := b.image(b.archive(file("etc/.wh.passwd", ""), file("etc/.wh.group", "")), b.archive(special("etc/passwd", tar.TypeFifo, 0, 0), special("etc/group", tar.TypeFifo, 0, 0)))
			b.contained("FROM " + ref + "\nUSER user\nRUN id\n")
			b.contained("FROM " + ref + "\nCOPY --chown=user:user Dockerfile /\n")
		}},
		{name: "image/passwd is a device that never ends", after: "CVE-2024-9676", outcome: "refused, no hang, bounded memory", run: func(b *bed) {
			ref := b.image(b.archive(file("etc/.wh.passwd", ""), file("etc/.wh.group", "")), b.archive(special("etc/passwd", tar.TypeChar, 1, 5), special("etc/group", tar.TypeChar, 1, 5)))
			b.contained("FROM " + ref + "\nUSER user\nRUN id\n")
		}},
		{name: "image/passwd of 192 MiB", after: "CVE-2022-23471", outcome: "bounded memory", run: func(b *bed) {
			var buf bytes.Buffer
			tw := tar.NewWriter(&buf)
			b.must(tw.WriteHeader(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Size: 192 << 20, Mode: 0o644}))
			_, err := io.CopyN(tw, zeros{}, 192<<20)
			b.must(err)
			b.must(tw.Close())
			ref := b.image(buf.Bytes())
			b.contained("FROM " + ref + "\nUSER user\nRUN id\n")
			b.contained("FROM " + ref + "\nCOPY --chown=user Dockerfile /\n")
		}},
		{name: "image/a user whose name is a number", after: "CVE-2016-3697", outcome: "a number is an ID", run: func(b *bed) {
			ref := b.imageOf(user("1000"), b.archive(file("etc/passwd", "1000:x:0:0:root:/root:/bin/sh\nroot:x:0:0::/:/bin/sh\n")))
			b.has(b.build("FROM "+ref+"\nRUN echo uid=$(id -u)\n"), "uid=1000")
		}},
		{name: "image/users beyond 31 bits", after: "CVE-2024-40635", outcome: "refused, never root", run: func(b *bed) {
			for _, u := range []string{"4294967296", "4294967295", "2147483648:2147483648", "-1", "0:4294967296", "18446744073709551616"} {
				r := b.contained("FROM " + b.base + "\nUSER " + u + "\nRUN echo uid=$(id -u) gid=$(id -g)\n")
				if r.code == 0 {
					b.Errorf("USER %s was accepted:\n%s", u, r.stderr)
				}
			}
			ref := b.image(b.archive(file("etc/passwd", "evil:x:4294967296:4294967296::/:/bin/sh\n")))
			b.buildRefused("", "FROM "+ref+"\nUSER evil\nRUN id -u\n")
			b.buildRefused("", "FROM "+b.base+"\nCOPY --chown=4294967296 Dockerfile /\n")
		}},
		{name: "image/supplementary groups", after: "CVE-2022-2995 CVE-2022-2990 CVE-2023-25173 CVE-2022-36109", outcome: "those of the image's group file, none of the caller", run: func(b *bed) {
			b.s.Attr = withGroups(42, 1234)
			b.has(b.build("FROM "+b.base+"\nRUN echo groups=$(id -G)=\nUSER user\nRUN echo groups=$(id -G)=\n"), "groups=0=")
			b.has(b.build("FROM "+b.image(b.archive(file("etc/group", "user:x:1000:\nmore:x:77:user\n")))+"\nUSER user\nRUN echo groups=$(id -G)=\n"), "groups=1000 77=")
		}},
		{name: "image/volumes that lead outside", after: "CVE-2022-23648", outcome: "nothing of the host is copied", run: func(b *bed) {
			ref := b.imageOf(func(c *v1.ConfigFile) { c.Config.Volumes = map[string]struct{}{"/" + up + b.host: {}, "/x": {}} })
			b.strake("run", ref, "sh", "-c", "cat "+b.host+"/secret; ls /x; true")
		}},
		{name: "image/a working directory in proc", after: "CVE-2024-21626", outcome: "no directory of the host can be reached", run: func(b *bed) {
			for fd := 3; fd < 12; fd++ {
				dir := fmt.Sprintf("/proc/self/fd/%d", fd)
				r := b.contained("FROM " + b.base + "\nWORKDIR " + dir + "\nRUN cat " + up + b.host[1:] + "/secret\n")
				if r.code == 0 {
					b.Errorf("WORKDIR %s leads out", dir)
				}
				if fd < 5 {
					ref := b.imageOf(func(c *v1.ConfigFile) { c.Config.WorkingDir = dir })
					b.strake("run", ref, "cat", up+b.host[1:]+"/secret")
				}
			}
		}},
		{name: "image/proc is a link", after: "CVE-2023-28642 CVE-2019-19921 CVE-2025-31133 CVE-2025-52881", outcome: "masks are where they belong, or the image is refused", run: func(b *bed) {
			for _, target := range []string{b.host, "etc", "sys", "/" + up + b.host[1:]} {
				ref := b.image(b.archive(symlink("proc", target)))
				r := b.contained("FROM " + ref + "\nRUN mkdir -p /p; for f in /proc/kcore /proc/sysrq-trigger; do [ -s $f ] && echo un''masked $f; done; (echo x > /proc/sys/kernel/core_pattern) 2>/dev/null && echo writ''able; true\n")
				b.hasNot(r, "unmasked")
				b.hasNot(r, "writable")
			}
		}},
		{name: "image/dev and what is in it are links", after: "CVE-2026-41579 CVE-2025-31133 CVE-2025-52565", outcome: "nothing of the host is removed or made", run: func(b *bed) {
			b.contained("FROM " + b.image(b.archive(symlink("dev", b.host))) + "\nRUN ls -l /dev/\n")
			r := b.contained("FROM " + b.image(b.archive(dir("dev"), symlink("dev/null", b.host+"/secret"), symlink("dev/console", b.host+"/secret"), symlink("dev/ptmx", b.host+"/ptmx"), symlink("dev/pts", b.host))) + "\nRUN echo x > /dev/null; [ -c /dev/null ] && echo go''od; head -c 10 /proc/kcore | grep . && echo un''masked; true\n")
			b.hasNot(r, "unmasked")
		}},
		{name: "image/etc/resolv.conf and hosts are links to the host", after: "CVE-2015-3629 CVE-2024-45310", outcome: "the host's files are not written or made", run: func(b *bed) {
			ref := b.image(b.archive(symlink("etc/resolv.conf", b.host+"/secret"), symlink("etc/hosts", b.host+"/made"), symlink("etc/hostname", "../"+up+b.host[1:]+"/made2")))
			b.contained("FROM " + ref + "\nRUN cat /etc/resolv.conf /etc/hosts; true\n")
			b.strake("run", ref, "true")
		}},
		{name: "image/the entry point is the launcher itself", after: "CVE-2019-5736", outcome: "strake's program is neither run nor changed", run: func(b *bed) {
			exe := b.s.Command().Path
			before, err := os.ReadFile(exe)
			b.must(err)
			ref := b.image(b.archive(symlink("self", "/proc/self/exe")))
			r := b.contained("FROM " + ref + "\nRUN [\"/self\", \"version\"]\n")
			b.hasNot(r, "strake "+"version")
			b.contained("FROM " + b.base + "\nRUN for p in /proc/[0-9]*; do (echo x >> $p/exe) 2>/dev/null && echo writ''ten $p; done; true\n")
			after, err := os.ReadFile(exe)
			b.must(err)
			if !bytes.Equal(before, after) {
				b.Error("the program was changed")
			}
		}},
		{name: "image/environment and labels without end", outcome: "refused, in bounded memory", run: func(b *bed) {
			ref := b.imageOf(func(c *v1.ConfigFile) {
				for i := range 5000 {
					c.Config.Env = append(c.Config.Env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", 1000)))
				}
			})
			b.contained("FROM " + ref + "\nRUN true\n")
		}},
		{name: "image/history with terminal escapes", after: "CVE-2024-24786", outcome: "shown without control characters", run: func(b *bed) {
			ref := b.imageOf(func(c *v1.ConfigFile) {
				c.History = []v1.History{{CreatedBy: "\x1b]0;pwned\x07\x1b[2J\u009b31m\u202eevil", Comment: "\x1b[31m", Author: "\r\x1b[K"}}
				c.Config.Cmd = []string{"\x1b[31m"}
			})
			b.ok("pull", ref)
			b.ok("history", ref)
			b.ok("history", "--no-trunc", ref)
			b.ok("images")
			b.ok("inspect", ref)
		}},
		{name: "image/names that are paths", after: "CVE-2014-9358", outcome: "refused", run: func(b *bed) {
			for _, n := range []string{"../../" + b.token, "/etc/passwd", "a/../b", "a:../../x", "-x", b.registry + "/..%2f..%2fx", "a@sha256:../../x", strings.Repeat("a/", 300) + "b"} {
				b.buildRefused("", "FROM scratch\nCOPY Dockerfile /\n", "-t", n)
				b.refused("", "pull", n)
				b.refused("", "inspect", n)
			}
			b.buildRefused("", "FROM ../../etc/passwd\nRUN true\n")
			b.buildRefused("", "FROM docker-archive:/etc/passwd\nRUN true\n")
			b.buildRefused("", "FROM oci-layout:///etc\nRUN true\n")
			if exists(b.dir, b.token) || exists(filepath.Dir(b.dir), b.token) {
				b.Error("a file was made")
			}
		}},
	}
}
