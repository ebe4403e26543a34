package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/layers/image"
	"github.com/strake-build/strake/parser"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/progress"
)

// schemeLayout begins what stands for an OCI layout.
const schemeLayout = "oci-layout://"

// addNamed adds a --build-context.
func (in *inputs) addNamed(name, value string, index *source.Index) error {
	name = strings.ToLower(name)
	fail := func(err error) error { return fmt.Errorf("--build-context %s: %w", name, err) }
	if ref, ok := strings.CutPrefix(value, "docker-image://"); ok {
		in.contexts[name] = parser.Context{Image: ref}
		return nil
	}
	if dir, ok := strings.CutPrefix(value, schemeLayout); ok {
		dir, ref := splitLayout(dir)
		l, err := image.OpenLayout(dir)
		if err != nil {
			return fail(err)
		}
		in.closers = append(in.closers, l.Close)
		in.layouts[dir] = l
		if ref == "" {
			ref = "latest"
		}
		in.contexts[name] = parser.Context{Layout: dir, Image: ref}
		return nil
	}
	if stage, ok := strings.CutPrefix(value, "target:"); ok {
		in.contexts[name] = parser.Context{Stage: stage}
		return nil
	}
	if step, ok, err := parser.Remote(name, value); ok || err != nil {
		if err != nil {
			return fail(err)
		}
		in.contexts[name] = parser.Context{Step: step}
		return nil
	}
	if err := checkContext(value); err != nil {
		return fail(err)
	}
	c := parser.Context{Local: "context:" + name, IgnoreFile: filepath.Join(value, ".dockerignore")}
	var err error
	if c.Exclude, err = readIgnore(c.IgnoreFile, openFile); err != nil {
		return err
	}
	local, close, err := openLocal(value, c.Exclude, c.IgnoreFile, index)
	if err != nil {
		return err
	}
	in.contexts[name] = c
	in.locals[c.Local] = local
	in.closers = append(in.closers, close)
	return nil
}

// splitLayout splits "dir", "dir:tag" and "dir@digest".
func splitLayout(s string) (dir, ref string) {
	if dir, digest, ok := strings.Cut(s, "@"); ok {
		return dir, digest
	}
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// layout takes an image out of a named context into the store. ref is the
// parser's: oci-layout://dir:tag or @digest.
func (in *inputs) layout(ctx context.Context, ref string, p ocispec.Platform, b *builder.Builder, event progress.Func) (_ parser.Resolved, err error) {
	dir, tag := splitLayout(strings.TrimPrefix(ref, schemeLayout))
	l := in.layouts[dir]
	if l == nil {
		return parser.Resolved{}, fmt.Errorf("%s: no such context", ref)
	}
	id := "layout " + ref + p.OS + p.Architecture + p.Variant
	event(progress.Event{Kind: progress.Start, Time: time.Now(), Vertex: id, Name: "[internal] load " + ref, Internal: true})
	defer func() {
		done := progress.Event{Kind: progress.Done, Time: time.Now(), Vertex: id}
		if err != nil {
			done.Error = err.Error()
		}
		event(done)
	}()
	found, err := l.Resolve(ctx, tag, p)
	if err != nil {
		return parser.Resolved{}, err
	}
	open := func(d ocispec.Descriptor) (io.ReadCloser, error) { return l.Blob(d) }
	stored, err := b.Images.LoadOne(ctx, found, open, b.Layers)
	if err != nil {
		return parser.Resolved{}, fmt.Errorf("%s: %w", ref, err)
	}
	base, err := b.Stored(stored, schemeLayout+dir, p)
	return parser.Resolved{Ref: base.Ref, Digest: base.Digest, Config: base.Config, Layout: dir}, err
}

// gitContext reads a context argument as a git repository. ok is false if it is
// something else.
func gitContext(arg string) (op *plan.Git, ok bool, err error) {
	if rest, ok := strings.CutPrefix(arg, "github.com/"); ok {
		repo, fragment, more := strings.Cut(rest, "#")
		arg = "https://github.com/" + strings.TrimSuffix(repo, ".git") + ".git"
		if more {
			arg += "#" + fragment
		}
	}
	op, ok, err = parser.Git(arg)
	if err != nil {
		err = fmt.Errorf("%s: %w", arg, err)
	}
	return op, ok, err
}

// isURL reports whether a context is somewhere else.
func isURL(s string) bool {
	_, git, err := gitContext(s)
	return isHTTP(s) || git || err != nil
}
