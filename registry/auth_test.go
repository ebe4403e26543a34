package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strake-build/strake/layers/blob"
	"github.com/strake-build/strake/progress"
)

// guard puts token or basic authorization before a registry.
type guard struct {
	next     http.Handler
	basic    bool
	user     string // who may; empty: everybody gets a token
	password string
	refresh  string // the identity token that is good

	mu     sync.Mutex
	realm  string
	n      int
	good   map[string]string // token → scope
	asked  []string          // scopes
	expire func(r *http.Request) bool
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		g.token(w, r)
		return
	}
	g.mu.Lock()
	if g.expire != nil && g.expire(r) {
		clear(g.good)
	}
	scope, ok := g.good[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	g.mu.Unlock()
	if g.basic {
		user, password, _ := r.BasicAuth()
		ok = user == g.user && password == g.password
		scope = "pull,push"
	}
	write := r.Method != http.MethodGet && r.Method != http.MethodHead
	if !ok || write && !strings.Contains(scope, "push") {
		if g.basic {
			w.Header().Set("WWW-Authenticate", `Basic realm="a \"registry\""`)
		} else {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+g.realm+`",service="the, service",scope="repository:app:pull"`)
		}
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`)
		return
	}
	g.next.ServeHTTP(w, r)
}

func (g *guard) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	user, password, _ := r.BasicAuth()
	ok := g.user == "" || user == g.user && password == g.password
	if g.refresh != "" {
		ok = r.Method == http.MethodPost && r.PostForm.Get("refresh_token") == g.refresh
	}
	if !ok || r.Form.Get("service") != "the, service" {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"details":"incorrect username or password"}`)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	t := fmt.Sprint("token", g.n)
	scope := strings.Join(r.Form["scope"], " ")
	g.good[t] = scope
	g.asked = append(g.asked, scope)
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": t, "expires_in": 300})
}

func (g *guard) serve(t *testing.T) string {
	t.Helper()
	g.good = map[string]string{}
	addr := serve(t, func(next http.Handler) http.Handler {
		g.next = next
		return g
	})
	if g.realm == "" {
		g.realm = "http://" + addr + "/token"
	}
	return addr
}

// configDir is Docker's configuration with credentials for addr.
func configDir(t *testing.T, addr string, auth map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	data := marshal(t, map[string]any{"auths": map[string]any{addr: auth}})
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const annSecret = "YW5uOnNlY3JldA==" // ann:secret

func TestAuthorization(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		guard *guard
		auth  map[string]string
	}{
		"anonymous token": {&guard{}, nil},
		"token":           {&guard{user: "ann", password: "secret"}, map[string]string{"auth": annSecret}},
		"identity token":  {&guard{refresh: "r1"}, map[string]string{"auth": "YW5uOg==", "identitytoken": "r1"}},
		"basic":           {&guard{basic: true, user: "ann", password: "secret"}, map[string]string{"auth": annSecret}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := tc.guard
			addr := g.serve(t)
			c := client(t, Options{ConfigDir: configDir(t, addr, tc.auth)})
			m := makeImage(t, linux, 100, 2<<20)
			push(t, c, addr+"/app:1", m)
			pull(t, c, addr+"/app:1")
			if g.n > 2 {
				t.Errorf("%d tokens were asked for: %q", g.n, g.asked)
			}
		})
	}
}

func TestExpiredTokens(t *testing.T) {
	t.Parallel()
	g := &guard{}
	var once sync.Map
	g.expire = func(r *http.Request) bool { // once before each kind of request
		kind, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/app/"), "/")
		_, again := once.LoadOrStore(r.Method+kind, true)
		return !again
	}
	addr := g.serve(t)
	c := client(t, Options{})
	// One blob, as the guard takes tokens from all who are on their way.
	m := makeImage(t, linux)
	m.Blobs = []blob.Ref{ref1("", content(3<<20))}
	push(t, c, addr+"/app:1", m)
	if _, err := fetchAll(t, c, addr+"/app", m.Blobs[0].Desc); err != nil {
		t.Error(err)
	}
}

func TestRefusedCredentials(t *testing.T) {
	t.Parallel()
	for _, basic := range []bool{false, true} {
		g := &guard{basic: basic, user: "ann", password: "other"}
		addr := g.serve(t)
		stranger := client(t, Options{})
		_, err := stranger.Resolve(t.Context(), addr+"/app", linux)
		wantError(t, err, ErrUnauthorized, addr+"/app:latest", "strake login "+addr)
		ann := client(t, Options{ConfigDir: configDir(t, addr, map[string]string{"auth": annSecret})})
		_, err = ann.Resolve(t.Context(), addr+"/app", linux)
		wantError(t, err, ErrUnauthorized, "credentials stored for "+addr+" were refused")
	}
}

func TestMountScope(t *testing.T) {
	t.Parallel()
	g := &guard{}
	addr := g.serve(t)
	c := client(t, Options{})
	m := makeImage(t, linux, 100)
	for i := range m.Blobs {
		m.Blobs[i].Origins = []string{addr + "/base"}
	}
	push(t, c, addr+"/app:1", m)
	if want := "repository:app:pull,push repository:base:pull"; !strings.Contains(strings.Join(g.asked, "\n"), want) {
		t.Errorf("asked for %q, want %q among them", g.asked, want)
	}
}

// TestCredentialsStayHome lets a registry redirect and point elsewhere.
func TestCredentialsStayHome(t *testing.T) {
	t.Parallel()
	data := content(2 << 20)
	b := ref1("", data)
	var mu sync.Mutex
	var leaked []string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if a := r.Header.Get("Authorization"); a != "" {
			leaked = append(leaked, r.Method+" "+a)
		}
		switch r.Method {
		case http.MethodGet:
			serveRange(w, r, data)
		case http.MethodPatch:
			w.Header().Set("Location", r.URL.String())
			w.WriteHeader(http.StatusAccepted)
		default:
			w.WriteHeader(http.StatusCreated)
		}
	}))
	t.Cleanup(elsewhere.Close)
	// The same host, another port: net/http would keep the credentials.
	g := &guard{basic: true, user: "ann", password: "secret"}
	addr := g.serve(t)
	g.next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case http.MethodGet:
			http.Redirect(w, r, elsewhere.URL+"/blob", http.StatusTemporaryRedirect)
		case http.MethodPost:
			w.Header().Set("Location", elsewhere.URL+"/upload?state=1")
			w.WriteHeader(http.StatusAccepted)
		default:
			w.WriteHeader(http.StatusCreated)
		}
	})
	c := client(t, Options{ConfigDir: configDir(t, addr, map[string]string{"auth": annSecret})})
	if _, err := fetchAll(t, c, addr+"/app", b.Desc); err != nil {
		t.Fatal(err)
	}
	m := makeImage(t, linux)
	m.Blobs = []blob.Ref{b}
	if err := c.Push(t.Context(), addr+"/app:1", m, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if len(leaked) != 0 {
		t.Errorf("credentials went elsewhere: %q", leaked)
	}
}

func TestExpiredRedirect(t *testing.T) {
	t.Parallel()
	data := content(1000)
	n := 0
	elsewhere := blobServer(t, func(w http.ResponseWriter, r *http.Request) {
		if n++; n < 3 {
			w.WriteHeader(http.StatusForbidden) // as of a signed address
			return
		}
		serveRange(w, r, data)
	})
	addr := blobServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+elsewhere+"/x", http.StatusFound)
	})
	if _, err := fetchAll(t, client(t, Options{}), addr+"/app", ref1("", data).Desc); err != nil {
		t.Error(err)
	}
}

func TestTokenServerMustBeSafe(t *testing.T) {
	t.Parallel()
	c := client(t, Options{})
	h := &host{addr: "registry.example.com", schemes: []string{"https"}}
	for _, realm := range []string{"http://auth.example.com/token", "ftp://x/", "/token", ""} {
		_, _, err := c.fetchToken(t.Context(), h, challenge{"bearer", map[string]string{"realm": realm}}, nil, credential{Username: "ann"})
		wantError(t, err, nil, "token server")
	}
}

func TestChallenges(t *testing.T) {
	t.Parallel()
	got := parseChallenge([]string{`Basic realm="x"`, `Bearer realm="https://a/t?x=1,2",service=reg , scope="a:b:pull,push \"q\""`})
	if got.scheme != "bearer" || got.params["realm"] != "https://a/t?x=1,2" || got.params["service"] != "reg" || got.params["scope"] != `a:b:pull,push "q"` {
		t.Errorf("got %+v", got)
	}
	if got := parseChallenge([]string{"Negotiate", `basic realm=x`}); got.scheme != "basic" {
		t.Errorf("got %+v", got)
	}
}

func FuzzChallenge(f *testing.F) {
	for _, s := range []string{`Bearer realm="x",service="y"`, `Bearer a="\`, `Basic`, `Bearer =,=`, `Bearer a="b" c=d`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if c := parseChallenge([]string{s}); c.scheme != "" && c.scheme != "basic" && c.scheme != "bearer" {
			t.Errorf("scheme %q", c.scheme)
		}
	})
}

func TestLogin(t *testing.T) {
	t.Parallel()
	g := &guard{user: "ann", password: "secret"}
	addr := g.serve(t)
	dir := t.TempDir()
	c := client(t, Options{ConfigDir: dir})
	file := filepath.Join(dir, "config.json")

	wantError(t, c.Login(t.Context(), addr, "ann", "wrong"), ErrUnauthorized, "log in to "+addr, "incorrect user name or password")
	if _, err := os.Stat(file); err == nil {
		t.Error("refused credentials were stored")
	}
	if err := os.WriteFile(file, []byte(`{"detachKeys":"ctrl-x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Login(t.Context(), "http://"+addr+"/v2/", "ann", "secret"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(data), annSecret) || !strings.Contains(string(data), "ctrl-x") {
		t.Errorf("config.json is %s, %v", data, err)
	}
	push(t, c, addr+"/app:1", makeImage(t, linux, 10))
	push(t, client(t, Options{ConfigDir: dir}), addr+"/app:2", makeImage(t, linux, 10))

	if err := c.Logout(addr); err != nil {
		t.Fatal(err)
	}
	_, err = c.Resolve(t.Context(), addr+"/app:1", linux)
	wantError(t, err, ErrUnauthorized)
	wantError(t, c.Logout(addr), ErrNotLoggedIn, addr)
	wantError(t, c.Login(t.Context(), "a b", "x", "y"), nil, "a b")
}

func TestDockerHubNames(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"} {
		addr, err := loginHost(s)
		if err != nil || credentialKey(apiHost(addr)) != "https://index.docker.io/v1/" {
			t.Errorf("%q is %q, %v", s, addr, err)
		}
	}
}

func TestCredentialHelpers(t *testing.T) { // not parallel: changes PATH
	g := &guard{user: "ann", password: "secret"}
	addr := g.serve(t)
	dir := t.TempDir()
	script := `#!/bin/sh
case $1 in
get) read server; [ -f "$0.$server" ] || { echo "credentials not found in native keychain"; exit 1; }; cat "$0.$server";;
store) cat > "$0.` + addr + `";;
erase) rm "$0.` + addr + `";;
esac
`
	for name, text := range map[string]string{
		"docker-credential-good":   script,
		"docker-credential-broken": "#!/bin/sh\necho it is broken >&2\nexit 1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	with := func(config string) *Client {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		return client(t, Options{ConfigDir: d})
	}
	c := with(`{"credsStore":"good"}`)
	_, err := c.Resolve(t.Context(), addr+"/app", linux)
	wantError(t, err, ErrUnauthorized)
	if err := c.Login(t.Context(), addr, "ann", "secret"); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(c.config.dir, "config.json"))
	if err != nil || strings.Contains(string(config), annSecret) || !strings.Contains(string(config), addr) {
		t.Errorf("config.json: %s, %v", config, err)
	}
	push(t, c, addr+"/app:1", makeImage(t, linux, 10))
	pull(t, with(`{"credHelpers":{"`+addr+`":"good"},"credsStore":"broken"}`), addr+"/app:1")

	broken := with(`{"credsStore":"broken"}`)
	_, err = broken.Resolve(t.Context(), addr+"/app:1", linux)
	wantError(t, err, nil, "credential helper broken", "it is broken")
	open := serve(t, nil) // one that asks nobody
	push(t, broken, open+"/app:1", makeImage(t, linux, 10))

	if err := c.Logout(addr); err != nil {
		t.Fatal(err)
	}
	_, err = c.Resolve(t.Context(), addr+"/app:1", linux)
	wantError(t, err, ErrUnauthorized)

	bad := with(`{"auths":`)
	_, err = bad.Resolve(t.Context(), addr+"/app:1", linux)
	wantError(t, err, nil, "config.json")
	wantError(t, bad.Login(t.Context(), addr, "ann", "secret"), nil, "config.json")
}

func TestTokensAreRenewedInTime(t *testing.T) {
	t.Parallel()
	g := &guard{}
	addr := g.serve(t)
	c := client(t, Options{})
	push(t, c, addr+"/app:1", makeImage(t, linux, 10))
	h := c.host(addr, "")
	h.mu.Lock()
	for _, tok := range h.auth.tokens {
		if left := time.Until(tok.expires); left > 271*time.Second || left < 200*time.Second {
			t.Errorf("token of 300 seconds is used for %v", left)
		}
		tok.expires = time.Now()
	}
	h.mu.Unlock()
	n := g.n
	push(t, c, addr+"/app:2", makeImage(t, linux, 10))
	if g.n != n+1 {
		t.Errorf("%d tokens were asked for, want 1", g.n-n)
	}
}

// A token that was given before another one was refused is not used after that.
func TestTokenOnItsWay(t *testing.T) {
	t.Parallel()
	c := client(t, Options{})
	h := &host{addr: "127.0.0.1:1", key: "127.0.0.1:1", schemes: []string{"http"}}
	h.auth.tokens = map[string]*token{"other": {sem: make(chan struct{}, 1), value: "ended"}}
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			resp := &http.Response{Header: http.Header{"Www-Authenticate": {`Bearer realm="x"`}}}
			h.refuse(resp, "Bearer ended", &[]string{})
		}
		fmt.Fprintf(rw, `{"token": "%d"}`, asked)
	}))
	defer server.Close()
	ch := challenge{"bearer", map[string]string{"realm": server.URL}}
	for range 2 {
		if got, err := c.token(t.Context(), h, ch, []string{"repository:app:pull"}); got != "2" || err != nil {
			t.Fatalf("got token %q, %v; want the second one", got, err)
		}
	}
}
