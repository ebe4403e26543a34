package hostile

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// git makes a repository and serves its parent directory over HTTP.
func (b *bed) git(prepare func(dir string, git func(args ...string))) (url string) {
	b.Helper()
	program, err := exec.LookPath("git")
	if err != nil {
		b.Skip("SKIPPED: needs git")
	}
	out, err := exec.Command(program, "--exec-path").Output()
	b.must(err)
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	root := filepath.Join(b.dir, "git")
	repo := filepath.Join(root, "repo.git")
	b.must(os.MkdirAll(repo, 0o755))
	git := func(args ...string) {
		b.Helper()
		cmd := exec.Command(program, append([]string{"-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always", "-c", "core.protectHFS=false", "-c", "core.protectNTFS=false"}, args...)...)
		cmd.Dir = repo
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q", "-b", "main")
	b.write(repo, "Dockerfile", "FROM "+b.base+"\nCOPY . /c/\nRUN cat /c/secret /c/*/secret; ls -lR /c; true\n")
	prepare(repo, git)
	git("add", "-A")
	git("commit", "-q", "-m", "x", "--allow-empty")
	git("config", "uploadpack.allowAnySHA1InWant", "true")
	addr := b.serve(&cgi.Handler{Path: backend, Root: "/", Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}})
	return "http://" + addr + "/repo.git"
}

func gitAttacks() []attack {
	return []attack{
		{name: "git/options in place of a repository or ref", after: "CVE-2019-13139 CVE-2017-1000117", outcome: "refused; no program is run", run: func(b *bed) {
			url := b.git(func(string, func(...string)) {})
			evil := "touch%20" + b.host + "/pwned"
			for _, u := range []string{
				"ssh://-oProxyCommand=" + evil + "/x.git", "git://-oProxyCommand=" + evil + "/x.git", "-oProxyCommand=" + evil + ":x.git", "git@-oProxyCommand=x:y.git",
				"ext::sh -c touch% " + b.host + "/pwned", "file://" + b.host, "git+ext::sh", "fd::7/x.git",
				url + "#--upload-pack=touch " + b.host + "/pwned", url + "#-u" + b.host + "/pwned:x", url + "#main:--x", url + "#+main", url + "#a..b", url + "#main:refs/heads/x:y",
			} {
				b.strake("build", "--progress", "plain", u)
				b.strake("build", "--progress", "plain", b.context("FROM "+b.base+"\nADD [\""+u+"\", \"/x\"]\n"))
			}
		}},
		{name: "git/subdirectories that lead out", after: "CVE-2026-33748", outcome: "refused", run: func(b *bed) {
			url := b.git(func(dir string, git func(...string)) {
				b.must(os.Symlink(b.host, dir+"/out"))
				b.must(os.Symlink("../../../../../../../../../../../.."+b.host, dir+"/rel"))
				b.write(dir, "a/b", "x")
			})
			for _, sub := range []string{"out", "rel", "../../..", "a/../../../.." + b.host, "rel/dir", ".git", "/" + b.host} {
				b.strake("build", "--progress", "plain", "-f", "secret", url+"#main:"+sub)
				b.strake("build", "--progress", "plain", b.context("FROM "+b.base+"\nADD "+url+"#main:"+sub+" /x\nRUN cat /x/secret /x/*; true\n"))
			}
		}},
		{name: "git/links in a repository", after: "CVE-2022-39253 CVE-2026-33748", outcome: "never followed out", run: func(b *bed) {
			url := b.git(func(dir string, git func(...string)) {
				b.must(os.Symlink(b.host, dir+"/out"))
				b.must(os.Remove(dir + "/Dockerfile"))
				b.must(os.Symlink(b.host+"/secret", dir+"/Dockerfile"))
			})
			b.refused("", "build", "--progress", "plain", url)
		}},
		{name: "git/submodules with hostile names, paths and addresses", after: "CVE-2018-11235 CVE-2018-17456 CVE-2022-39253 CVE-2024-32002", outcome: "no hook and no program of them is run", run: func(b *bed) {
			evil := "touch " + b.host + "/pwned"
			for _, m := range []string{
				"[submodule \"../../../../../../evil\"]\n\tpath = sub\n\turl = ./\n",
				"[submodule \"x\"]\n\tpath = sub\n\turl = -u" + b.host + "/payload\n",
				"[submodule \"x\"]\n\tpath = sub\n\turl = ext::sh -c \"" + evil + "\"\n",
				"[submodule \"x\"]\n\tpath = sub\n\turl = file://" + b.host + "\n\tupdate = !" + evil + "\n",
				"[submodule \"x\"]\n\tpath = ../../out\n\turl = " + b.host + "\n",
			} {
				b.must(os.RemoveAll(filepath.Join(b.dir, "git")))
				url := b.git(func(dir string, git func(...string)) {
					b.write(dir, ".gitmodules", m)
					git("commit", "-q", "--allow-empty", "-m", "first")
					out, err := exec.Command("git", "-C", dir, "rev-parse", "HEAD").Output()
					b.must(err)
					git("update-index", "--add", "--cacheinfo", "160000,"+strings.TrimSpace(string(out))+",sub")
				})
				b.strake("build", "--progress", "plain", url)
			}
		}},
		{name: "git/hooks and settings of a repository and of the user", after: "CVE-2024-32002 CVE-2022-24765", outcome: "none is used", run: func(b *bed) {
			evil := "#!/bin/sh\ntouch " + b.host + "/pwned\n"
			home := filepath.Join(b.dir, "home")
			b.write(home, ".gitconfig", "[core]\n\thooksPath = "+home+"/hooks\n\tfsmonitor = "+home+"/hooks/post-checkout\n[init]\n\ttemplateDir = "+home+"\n")
			for _, h := range []string{"post-checkout", "post-merge", "reference-transaction"} {
				b.must(os.Chmod(b.write(home, "hooks/"+h, evil), 0o755))
			}
			b.s.Env = append(b.s.Env, "HOME="+home, "GIT_TEMPLATE_DIR="+home, "GIT_SSH_COMMAND=touch "+b.host+"/pwned", "GIT_EXTERNAL_DIFF=touch "+b.host+"/pwned")
			url := b.git(func(dir string, git func(...string)) {
				b.must(os.Chmod(b.write(dir, "hooks/post-checkout", evil), 0o755))
				b.write(dir, ".gitattributes", "* filter=x\n")
				b.write(dir, ".gitconfig", "[filter \"x\"]\n\tsmudge = touch "+b.host+"/pwned\n")
			})
			b.ok("build", "--progress", "plain", url)
		}},
		{name: "git/credentials in an address", after: "CVE-2019-13509", outcome: "not shown and not stored", run: func(b *bed) {
			url := b.git(func(string, func(...string)) {})
			with := strings.Replace(url, "http://", "http://me:pass-"+b.token[:12]+"@", 1)
			r := b.strake("build", "--progress", "plain", "-t", "x", with)
			r2 := b.strake("build", "--progress", "plain", b.context("FROM "+b.base+"\nADD "+with+" /x\nRUN false\n"))
			r3 := b.strake("build", "--progress", "plain", with+"#nothing")
			for _, r := range []result{r, r2, r3} {
				b.hasNot(r, "pass-"+b.token[:12])
			}
			if found := b.inStore("pass-" + b.token[:12]); len(found) > 0 {
				b.Errorf("the password is in %v", found)
			}
		}},
	}
}

// recorder remembers the credentials that requests bring.
type recorder struct {
	mu   sync.Mutex
	seen []string
	http.Handler
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.seen = append(r.seen, req.Method+" "+req.URL.String()+" "+req.Header.Get("Authorization")+" "+req.Header.Get("Cookie"))
	r.mu.Unlock()
	r.Handler.ServeHTTP(w, req)
}

// login writes credentials for a registry.
func (b *bed) login(addr string) {
	b.write(b.dir, "docker/config.json", `{"auths":{"`+addr+`":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("me:"+b.token[:12]+"pw"))+`"}}}`)
}

// leaked fails if credentials came here.
func (b *bed) leaked(r *recorder) {
	b.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.seen {
		if strings.Contains(s, "Basic ") || strings.Contains(s, "Bearer ") {
			b.Errorf("credentials were sent to another place: %s", s)
		}
	}
}

func networkAttacks() []attack {
	// basic wraps a registry that wants a password.
	basic := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
	good := func(b *bed) (blobs, []byte) {
		s := blobs{}
		l := b.archive(file("f", "x"))
		ld, ln := s.add(l)
		cd, cn := s.add([]byte(`{"os":"linux","architecture":"amd64","config":{},"rootfs":{"type":"layers","diff_ids":["` + ld + `"]}}`))
		s["manifest"] = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, cd, cn, ld, ln)
		return s, l
	}
	// redirected serves s, to who is logged in to it, with what is asked for
	// below part at another origin, which is returned, too.
	redirected := func(b *bed, s http.Handler, part string, code int) (addr string, other *recorder) {
		other = &recorder{Handler: s}
		to := b.serve(other)
		addr = b.serve(basic(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, part) {
				http.Redirect(w, r, "http://"+to+r.URL.Path, code)
				return
			}
			s.ServeHTTP(w, r)
		})))
		b.login(addr)
		return addr, other
	}
	return []attack{
		{name: "network/blobs redirected to another origin", after: "CVE-2020-15157 GHSA-vh4v-2xq2-g5cg", outcome: "the credentials stay", run: func(b *bed) {
			s, _ := good(b)
			addr, other := redirected(b, s, "/blobs/", http.StatusTemporaryRedirect)
			b.ok("pull", addr+"/x:1")
			b.leaked(other)
		}},
		{name: "network/manifests redirected to another origin", after: "GHSA-vh4v-2xq2-g5cg", outcome: "the credentials stay", run: func(b *bed) {
			s, _ := good(b)
			addr, other := redirected(b, s, "/manifests/", http.StatusFound)
			b.strake("pull", addr+"/x:1")
			b.leaked(other)
		}},
		{name: "network/an upload sent on to another origin", after: "CVE-2026-50151", outcome: "the credentials stay", run: func(b *bed) {
			other := &recorder{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusCreated) })}
			to := b.serve(other)
			addr := b.serve(basic(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodPost:
					w.Header().Set("Location", "http://"+to+"/upload?x=1")
					w.WriteHeader(http.StatusAccepted)
				case r.Method == http.MethodHead || r.Method == http.MethodGet && r.URL.Path != "/v2/":
					http.NotFound(w, r)
				default:
					w.WriteHeader(http.StatusCreated)
				}
			})))
			b.login(addr)
			b.strake("build", "-t", addr+"/x:1", "--push", b.context("FROM scratch\nCOPY Dockerfile /\n"))
			b.leaked(other)
		}},
		{name: "network/a token server that the registry has no business to name", after: "CVE-2026-48978 CVE-2020-15157 GHSA-xf85-363p-868w", outcome: "other schemes and metadata services are refused", run: func(b *bed) {
			for _, realm := range []string{"file://" + b.host + "/secret", "gopher://127.0.0.1/x", "http://169.254.169.254/latest/meta-data", "http://user:pass@[fe80::1]/x", "//x", "javascript:alert(1)", "http://169.254.170.2/v2/credentials"} {
				addr := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				}))
				b.login(addr)
				b.refused("token server", "pull", addr+"/x:1")
			}
		}},
		{name: "network/a registry's words with terminal escapes", after: "CVE-2021-41190", outcome: "shown harmlessly", run: func(b *bed) {
			addr := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Docker-Content-Digest", "\u009bx")
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, `{"errors":[{"code":"DENIED\u001b[2J","message":"\u001b]0;pwned\u0007\u202e\r","detail":"\u001b[31m"}]}`)
			}))
			b.refused("", "pull", addr+"/x:1")
			b.buildRefused("", "FROM "+addr+"/x:1\nRUN true\n")
		}},
		{name: "network/redirects in a circle and to other schemes", after: "CVE-2023-45142", outcome: "refused", run: func(b *bed) {
			addr := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/file":
					w.Header().Set("Location", "file://"+b.host+"/secret")
					w.WriteHeader(http.StatusFound)
				default:
					http.Redirect(w, r, "http://"+r.Host+r.URL.Path+"x", http.StatusFound)
				}
			}))
			b.refused("redirect", "pull", addr+"/x:1")
			b.buildRefused("", "FROM "+b.base+"\nADD http://"+addr+"/file /leak\nRUN cat /leak\n")
			b.buildRefused("redirect", "FROM "+b.base+"\nADD http://"+addr+"/circle /leak\n")
		}},
		{name: "network/ADD with a password, redirected", after: "CVE-2018-1000007", outcome: "the password stays, and is not shown", run: func(b *bed) {
			other := &recorder{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "content") })}
			to := b.serve(other)
			addr := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://"+to+"/f", http.StatusFound)
			}))
			pw := "pw" + b.token[:12]
			b.hasNot(b.build("FROM "+b.base+"\nADD http://me:"+pw+"@"+addr+"/f /f\nRUN cat /f\n", "-t", "x"), pw)
			b.hasNot(b.ok("history", "--no-trunc", "x"), pw)
			b.leaked(other)
		}},
		{name: "network/names that a server gives to files", after: "CVE-2022-36113", outcome: "the file stays in its directory", run: func(b *bed) {
			addr := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Disposition", `attachment; filename="../../../../../`+b.token+`"`)
				fmt.Fprint(w, "content")
			}))
			for _, p := range []string{"/%2e%2e%2f%2e%2e%2f" + b.token, "/a/..%2f..%2fx", "/x%00y", "/..", "/%0d%0aevil"} {
				b.contained("FROM " + b.base + "\nADD http://" + addr + p + " /into/\nRUN ls -lR /into; ls /\n")
			}
		}},
		{name: "network/a checksum that is not that of the file", outcome: "refused", run: func(b *bed) {
			addr := b.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "content") }))
			b.buildRefused("", "FROM scratch\nADD --checksum=sha256:"+strings.Repeat("1", 64)+" http://"+addr+"/f /f\n")
		}},
	}
}
