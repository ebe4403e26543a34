package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// host is a server that speaks the distribution API.
type host struct {
	addr string // "registry-1.docker.io", "localhost:5000"
	key  string // of its credentials in config.json

	mu sync.Mutex
	// schemes are those it may be spoken to by, the likely one first; only one
	// is left once it has answered.
	schemes []string
	auth    auth
	// down is until when a mirror is passed over since it could not be
	// reached.
	down time.Time
}

// endpoint is a repository on a host.
type endpoint struct {
	*host
	path   string // of the repository, with the mirror's prefix
	mirror bool
}

// url returns the address of something of the repository.
func (e *endpoint) url(scheme, suffix string) string {
	return scheme + "://" + e.addr + "/v2/" + e.path + suffix
}

func (h *host) scheme() (scheme string, decided bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.schemes[0], len(h.schemes) == 1
}

// decide records that scheme is the one that works.
func (h *host) decide(scheme string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.schemes = []string{scheme}
}

// drop strikes out a scheme that does not work, and reports whether another one
// is left.
func (h *host) drop(scheme string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.schemes) == 1 {
		return h.schemes[0] != scheme // another goroutine decided
	}
	h.schemes = slices.DeleteFunc(h.schemes, func(s string) bool { return s == scheme })
	return true
}

// endpoints returns where the contents of a repository may be had, in the order
// to try: mirrors first if pull is set, of them first the one that answered
// last.
func (c *Client) endpoints(r ref, pull bool) []*endpoint {
	var eps []*endpoint
	if pull {
		for _, m := range c.options.Mirrors[r.domain] {
			scheme, addr, prefix, err := parseMirror(m)
			if err != nil {
				continue // New checked
			}
			h := c.host(addr, scheme)
			h.mu.Lock()
			down := time.Now().Before(h.down)
			h.mu.Unlock()
			if !down {
				eps = append(eps, &endpoint{host: h, path: prefix + r.path, mirror: true})
			}
		}
	}
	eps = append(eps, &endpoint{host: c.host(apiHost(r.domain), ""), path: r.path})

	c.mu.Lock()
	last := c.answered[r.repository()]
	c.mu.Unlock()
	slices.SortStableFunc(eps, func(a, b *endpoint) int {
		switch {
		case a.mirror && b.mirror && a.addr == last && b.addr != last:
			return -1
		case a.mirror && b.mirror && b.addr == last && a.addr != last:
			return 1
		}
		return 0
	})
	return eps
}

func (c *Client) answer(r ref, e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered[r.repository()] = e.addr
}

// apiHost is the server of a registry's domain.
func apiHost(domain string) string {
	if domain == "docker.io" || domain == "index.docker.io" {
		return "registry-1.docker.io"
	}
	return domain
}

// credentialKey is the name of a registry in config.json.
func credentialKey(addr string) string {
	switch addr {
	case "registry-1.docker.io", "docker.io", "index.docker.io":
		return "https://index.docker.io/v1/"
	}
	return addr
}

func (c *Client) host(addr, scheme string) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := scheme + "|" + addr
	h := c.hosts[id]
	if h == nil {
		h = &host{addr: addr, key: credentialKey(addr)}
		switch {
		case scheme != "":
			h.schemes = []string{scheme}
		case loopback(addr):
			h.schemes = []string{"http", "https"}
		case c.insecure(addr):
			h.schemes = []string{"https", "http"}
		default:
			h.schemes = []string{"https"}
		}
		c.hosts[id] = h
	}
	return h
}

// parseMirror splits "http://host:port/prefix"; the prefix ends with a slash if
// there is one.
func parseMirror(m string) (scheme, addr, prefix string, err error) {
	if s, rest, ok := strings.Cut(m, "://"); ok {
		if s != "http" && s != "https" {
			return "", "", "", fmt.Errorf("%q: the scheme must be http or https", m)
		}
		scheme, m = s, rest
	}
	addr, prefix, _ = strings.Cut(m, "/")
	u, err := url.Parse("https://" + addr + "/")
	if err != nil || addr == "" || u.Host != addr || u.Hostname() == "" {
		return "", "", "", fmt.Errorf("%q is not host, host:port or host:port/prefix", m)
	}
	prefix = strings.Trim(prefix, "/")
	prefix = strings.TrimPrefix(strings.TrimPrefix(prefix, "v2/"), "v2")
	if prefix != "" {
		prefix += "/"
	}
	return scheme, apiHost(addr), prefix, nil
}

// insecure reports whether addr ("host:port") may be spoken to without a
// certificate that we trust.
func (c *Client) insecure(addr string) bool {
	return loopback(addr) || slices.Contains(c.options.Insecure, addr) ||
		slices.Contains(c.options.Insecure, hostname(addr))
}

func loopback(addr string) bool {
	h := hostname(addr)
	if h == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(h)
	return err == nil && ip.Unmap().IsLoopback()
}

func hostname(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return strings.Trim(addr, "[]")
}

// transports speaks to insecure hosts without checking certificates, and to all
// others properly: also where a redirect leads from one to another.
type transports struct {
	strict, lax http.RoundTripper
	insecure    func(addr string) bool
}

func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.insecure(r.URL.Host) {
		return t.lax.RoundTrip(r)
	}
	return t.strict.RoundTrip(r)
}

func newTransport(t *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:     t,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
		// Blobs are to come as they are stored.
		DisableCompression: true,
	}
}

// checkRedirect drops credentials when a redirect leads to another server:
// net/http keeps them for other ports and for subdomains.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if !mayName(via[0].URL.Host, r.URL.Hostname()) {
		return fmt.Errorf("%s redirects to %s, where no registry has business", via[0].URL.Host, r.URL.Host)
	}
	if r.URL.Host != via[0].URL.Host || r.URL.Scheme != via[0].URL.Scheme {
		r.Header.Del("Authorization")
	}
	r.Header.Del("Referer")
	return nil
}

// wrongScheme reports whether an attempt failed since the host speaks plain
// http where we spoke https, or the other way round.
func (c *Client) wrongScheme(ctx context.Context, h *host, scheme string, resp *http.Response, err error) bool {
	if scheme == "https" {
		var record tls.RecordHeaderError
		return errors.As(err, &record) || errors.Is(err, syscall.ECONNREFUSED) ||
			err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
	}
	if err != nil || resp.StatusCode != http.StatusBadRequest {
		return false
	}
	if resp.Request.Method == http.MethodHead { // no text in the answer: ask again
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+h.addr+"/v2/", nil)
		if err != nil {
			return false
		}
		if resp, err = c.roundTrip(req, c.limits.header); err != nil {
			return false
		}
		defer resp.Body.Close()
	}
	// Go's and nginx's answer to plain http on a TLS port.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return bytes.Contains(body, []byte("to an HTTPS server")) || bytes.Contains(body, []byte("to HTTPS port"))
}
