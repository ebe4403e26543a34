package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Login checks credentials with the registry host and stores them as `docker
// login` does (credential helper or config.json). An empty host is Docker Hub.
// The error is ErrUnauthorized if the registry refuses them.
func (c *Client) Login(ctx context.Context, server, username, password string) error {
	addr, err := loginHost(server)
	if err != nil {
		return err
	}
	if username == "" || password == "" {
		return errors.New("login wants a user name and a password")
	}
	// A client of its own: nothing that it learns is to be used before the
	// credentials turn out to be right.
	probe := &Client{options: c.options, limits: c.limits, http: c.http, hosts: map[string]*host{}, answered: map[string]string{}}
	e := &endpoint{host: probe.host(apiHost(addr), "")}
	cred := credential{Username: username, Password: password}
	probe.config.cached = map[string]credential{e.key: cred}
	err = probe.retry(ctx, nil, func(*attempts) error {
		resp, err := probe.send(ctx, e, request{method: http.MethodGet, suffix: ""})
		if err != nil {
			return err
		}
		discard(resp)
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrUnauthorized):
		return fmt.Errorf("log in to %s: %w", addr, &hinted{ErrUnauthorized, "incorrect user name or password", err})
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("log in to %s: no registry answers there: %w", addr, err)
	case err != nil:
		return explain(ctx, "log in to", ref{domain: addr}, e, err)
	}
	if err := c.config.store(ctx, e.key, cred); err != nil {
		return fmt.Errorf("log in to %s: %w", addr, err)
	}
	c.forget(apiHost(addr))
	return nil
}

// Logout removes stored credentials. To have none is an error that
// ErrNotLoggedIn tells.
func (c *Client) Logout(server string) error {
	addr, err := loginHost(server)
	if err != nil {
		return err
	}
	found, err := c.config.erase(context.Background(), credentialKey(apiHost(addr)))
	if err != nil {
		return fmt.Errorf("log out from %s: %w", addr, err)
	}
	c.forget(apiHost(addr))
	if !found {
		return fmt.Errorf("%w to %s", ErrNotLoggedIn, addr)
	}
	return nil
}

// ErrNotLoggedIn: there were no credentials to remove.
var ErrNotLoggedIn = errors.New("not logged in")

// forget drops the tokens of a host.
func (c *Client) forget(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, h := range c.hosts {
		if h.addr == addr {
			delete(c.hosts, id)
		}
	}
}

// loginHost is the registry that a person means.
func loginHost(s string) (string, error) {
	_, rest, ok := strings.Cut(s, "://")
	if !ok {
		rest = s
	}
	addr, _, _ := strings.Cut(rest, "/")
	if addr == "" && s == "" || addr == "index.docker.io" || addr == "registry-1.docker.io" {
		return "docker.io", nil
	}
	if _, _, _, err := parseMirror(addr); err != nil {
		return "", fmt.Errorf("registry %w", err)
	}
	return addr, nil
}
