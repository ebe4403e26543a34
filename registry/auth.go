package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// auth is what is known of how a host wants to be asked. It is guarded by
// host.mu.
type auth struct {
	challenge challenge
	tokens    map[string]*token // by scopes
	refusals  int               // how often tokens were refused that had been given
}

// challenge is what a WWW-Authenticate header says.
type challenge struct {
	scheme string // "basic", "bearer"; empty: none was sent yet
	params map[string]string
}

// token is one that was given for some scopes. Whoever holds sem renews it.
type token struct {
	sem     chan struct{}
	value   string
	expires time.Time
}

// authorization returns the Authorization header for scopes on h, or nothing if
// the host has not asked for any.
func (c *Client) authorization(ctx context.Context, h *host, scopes []string) (string, error) {
	h.mu.Lock()
	ch := h.auth.challenge
	h.mu.Unlock()
	switch ch.scheme {
	case "basic":
		cred, err := c.config.get(ctx, h.key)
		if err != nil {
			return "", permanent{credentialError{err}}
		}
		if cred.Username == "" {
			return "", nil
		}
		return basic(cred.Username, cred.Password), nil
	case "bearer":
		t, err := c.token(ctx, h, ch, scopes)
		if err != nil {
			return "", err
		}
		return "Bearer " + t, nil
	}
	return "", nil
}

// refuse tells that h refused the header used for scopes with a 401. It reports
// whether another attempt has a chance.
func (h *host) refuse(resp *http.Response, used string, scopes *[]string) bool {
	ch := parseChallenge(resp.Header.Values("WWW-Authenticate"))
	if ch.scheme == "" {
		return false
	}
	// Registries may want more than we thought of.
	for s := range strings.FieldsSeq(ch.params["scope"]) {
		if !slices.ContainsFunc(*scopes, func(have string) bool { return covers(have, s) }) {
			*scopes = append(*scopes, s)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.auth.challenge = ch
	for _, t := range h.auth.tokens {
		if t.value != "" && used == "Bearer "+t.value {
			// What ended it may have ended those for other scopes, too.
			for _, t := range h.auth.tokens {
				t.value = ""
			}
			h.auth.refusals++
			break
		}
	}
	return ch.scheme == "bearer" || used == ""
}

// covers reports whether the scope have ("repository:app:pull,push") allows all
// that want does.
func covers(have, want string) bool {
	i, j := strings.LastIndex(have, ":"), strings.LastIndex(want, ":")
	if i < 0 || j < 0 || have[:i] != want[:j] {
		return have == want
	}
	actions := strings.Split(have[i+1:], ",")
	for a := range strings.SplitSeq(want[j+1:], ",") {
		if !slices.Contains(actions, a) {
			return false
		}
	}
	return true
}

func scopeKey(scopes []string) string { return strings.Join(scopes, " ") }

func (c *Client) token(ctx context.Context, h *host, ch challenge, scopes []string) (string, error) {
	h.mu.Lock()
	t := h.auth.tokens[scopeKey(scopes)]
	if t == nil {
		if h.auth.tokens == nil {
			h.auth.tokens = map[string]*token{}
		}
		t = &token{sem: make(chan struct{}, 1)}
		h.auth.tokens[scopeKey(scopes)] = t
	}
	h.mu.Unlock()

	select {
	case t.sem <- struct{}{}:
		defer func() { <-t.sem }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	h.mu.Lock()
	value, good := t.value, time.Now().Before(t.expires)
	refusals := h.auth.refusals
	h.mu.Unlock()
	if value != "" && good {
		return value, nil
	}
	cred, credErr := c.config.get(ctx, h.key)
	for range 3 {
		var ttl time.Duration
		var err error
		if value, ttl, err = c.fetchToken(ctx, h, ch, scopes, cred); err != nil {
			if credErr != nil {
				err = errors.Join(err, credentialError{credErr})
			}
			return "", err
		}
		h.mu.Lock()
		before := refusals
		refusals = h.auth.refusals
		t.value, t.expires = value, time.Now().Add(ttl)
		h.mu.Unlock()
		if before == refusals {
			break
		}
		// What ended another token while this one was on its way may have
		// ended this one, too.
	}
	return value, nil
}

// fetchToken asks the token server for a token and says how long it is good.
func (c *Client) fetchToken(ctx context.Context, h *host, ch challenge, scopes []string, cred credential) (string, time.Duration, error) {
	if cred.RegistryToken != "" {
		return cred.RegistryToken, time.Hour, nil
	}
	realm, err := url.Parse(ch.params["realm"])
	if err != nil || realm.Host == "" {
		return "", 0, fmt.Errorf("%s names no usable token server (%q)", h.addr, ch.params["realm"])
	}
	switch scheme, _ := h.scheme(); {
	case realm.Scheme == "https":
	case realm.Scheme == "http" && (scheme == "http" || c.insecure(h.addr)):
	default:
		return "", 0, fmt.Errorf("%s names a token server that is not spoken to by https (%s)", h.addr, ch.params["realm"])
	}
	if !mayName(h.addr, realm.Hostname()) {
		return "", 0, fmt.Errorf("%s names a token server that no registry has business with (%s)", h.addr, ch.params["realm"])
	}
	form := url.Values{}
	if s := ch.params["service"]; s != "" {
		form.Set("service", s)
	}

	var reply []byte
	if cred.IdentityToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", cred.IdentityToken)
		form.Set("client_id", "strake")
		form.Set("scope", scopeKey(scopes))
		reply, err = c.askToken(ctx, http.MethodPost, realm, form, credential{})
	} else {
		q := realm.Query()
		for k, v := range form {
			q[k] = v
		}
		q["scope"] = scopes
		if cred.Username != "" {
			q.Set("account", cred.Username)
		}
		u := *realm
		u.RawQuery = q.Encode()
		reply, err = c.askToken(ctx, http.MethodGet, &u, nil, cred)
	}
	if err != nil {
		return "", 0, fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal(reply, &t); err != nil {
		return "", 0, fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsAny(t.Token, "\r\n") {
		return "", 0, fmt.Errorf("token server %s gave no token", realm.Host)
	}
	// The specification's default is 60 seconds. A token is renewed a little
	// early, as a request takes its time.
	ttl := time.Duration(max(t.ExpiresIn, 60)) * time.Second
	return t.Token, ttl - ttl/10, nil
}

// mayName reports whether a registry may send its clients to a host: not to
// addresses that mean something only where the client is, which are those of
// metadata services, and its own loopback unless the registry is there.
func mayName(registry, host string) bool {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return true
	}
	ip = ip.Unmap()
	return !ip.IsLinkLocalUnicast() && !ip.IsUnspecified() && !ip.IsMulticast() && (!ip.IsLoopback() || loopback(registry))
}

func (c *Client) askToken(ctx context.Context, method string, u *url.URL, form url.Values, cred credential) ([]byte, error) {
	var reply []byte
	err := c.retry(ctx, nil, func(*attempts) error {
		var body io.Reader
		if form != nil {
			body = strings.NewReader(form.Encode())
		}
		req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
		if err != nil {
			return err
		}
		if form != nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if cred.Username != "" {
			req.Header.Set("Authorization", basic(cred.Username, cred.Password))
		}
		resp, err := c.roundTrip(req, c.limits.header)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			e := readError(resp)
			e.refused = cred.Username != "" || form != nil
			return e
		}
		reply, err = readAll(resp.Body, 1<<20)
		return err
	})
	return reply, err
}

// parseChallenge returns the challenge that we can answer best.
func parseChallenge(headers []string) challenge {
	var best challenge
	for _, h := range headers {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
		switch scheme = strings.ToLower(scheme); scheme {
		case "bearer":
			return challenge{scheme, parseParams(rest)}
		case "basic":
			best = challenge{scheme, parseParams(rest)}
		}
	}
	return best
}

// parseParams reads key="value" pairs (RFC 9110 section 11.2).
func parseParams(s string) map[string]string {
	params := map[string]string{}
	for {
		s = strings.TrimLeft(s, " \t,")
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return params
		}
		key = strings.ToLower(strings.TrimSpace(key))
		rest = strings.TrimLeft(rest, " \t")
		var value strings.Builder
		if strings.HasPrefix(rest, `"`) {
			i := 1
			for ; i < len(rest) && rest[i] != '"'; i++ {
				if rest[i] == '\\' && i+1 < len(rest) {
					i++
				}
				value.WriteByte(rest[i])
			}
			s = rest[min(i+1, len(rest)):]
		} else {
			v, more, _ := strings.Cut(rest, ",")
			value.WriteString(strings.TrimSpace(v))
			s = more
		}
		if _, dup := params[key]; !dup && key != "" {
			params[key] = value.String()
		}
	}
}
