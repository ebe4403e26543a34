package main

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/registry"
)

// guard returns what knows the secrets that were given and the passwords of
// proxies; nil with --no-leak-guard.
func (o buildOptions) guard(ctx context.Context, ids []string, secret func(context.Context, string) ([]byte, error)) *leak.Guard {
	if o.noLeakGuard {
		return nil
	}
	g := &leak.Guard{}
	for _, id := range ids {
		if v, err := secret(ctx, id); err == nil { // else the step that wants it says why not
			g.Add(id, v)
		}
	}
	for _, a := range o.args {
		name, value, _ := strings.Cut(a, "=")
		if !slices.Contains([]string{"http_proxy", "https_proxy", "ftp_proxy", "all_proxy"}, strings.ToLower(name)) {
			continue
		}
		if u, err := url.Parse(value); err == nil {
			if password, ok := u.User.Password(); ok {
				g.Add("password of "+name, []byte(password))
			}
		}
	}
	return g
}

// addCredentials makes the guard know the passwords and tokens that are stored
// for registries as plain text, and those that the build has used so far.
func addCredentials(g *leak.Guard, c *registry.Client) {
	if g != nil {
		c.Credentials(func(host, value string) { g.Add("credential for "+host, []byte(value)) })
	}
}

// leakError says which step of the build file is to blame for a leak, and what
// can be done.
func leakError(err error, results []builder.Result) error {
	const hint = "keep it out of the image: RUN --mount=type=secret shows a secret to a step without storing it, .dockerignore keeps files out of the context; --no-leak-guard builds all the same"
	var found *image.LeakError
	var unknown *image.UnsearchedError
	e := &plan.Error{Err: err, Hint: hint}
	switch {
	case errors.As(err, &found):
		e.Err = found
		e.Source = sourceOf(found.Layer, results)
	case errors.As(err, &unknown):
		e.Err = unknown
		e.Hint = "give it again with --secret, or build with --no-cache; --no-leak-guard takes the risk"
		e.Source = sourceOf(unknown.Layer, results)
	default:
		return err
	}
	return e
}

// sourceOf is where the step that made a layer is in the build file.
func sourceOf(id layers.ID, results []builder.Result) *plan.Source {
	for _, r := range results {
		if r.Step == nil || id == "" {
			continue
		}
		if step := r.Step(id); step != nil && step.Source != nil {
			return step.Source
		}
	}
	return &plan.Source{}
}
