package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/policy"
	"github.com/strake-build/strake/progress"
)

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// contextSource says what a context that is a URL must be.
type contextSource struct {
	policies []*policy.Policy
	// pin has a step be what a lock file says; nil: it is what there is now.
	pin func(context.Context, *plan.Step) error
}

// step is the step that gives a context.
func (c contextSource) step(ctx context.Context, op plan.Op) (*plan.Step, error) {
	step := &plan.Step{Op: op}
	err := policy.Step(c.policies, step, clientName)
	if err == nil && c.pin != nil {
		err = c.pin(ctx, step)
	}
	return step, err
}

// fetchContext gets a context from a URL into a temporary directory, which it
// returns: a git repository, a tar archive or a build file.
func (in *inputs) fetchContext(ctx context.Context, arg string, mayBeFile bool, b *builder.Builder, s *store, source contextSource, event progress.Func) (dir string, err error) {
	if dir, err = in.tempDir(s, "context-"); err != nil {
		return "", err
	}
	id := "context " + plan.Redact(arg)
	event(progress.Event{Kind: progress.Start, Time: time.Now(), Vertex: id, Name: "[internal] load remote context " + plan.Redact(arg)})
	defer func() {
		done := progress.Event{Kind: progress.Done, Time: time.Now(), Vertex: id}
		if err != nil {
			done.Error = err.Error()
		}
		event(done)
	}()
	op, git, err := gitContext(arg)
	if err != nil {
		return "", err
	}
	if git {
		step, err := source.step(ctx, op)
		if err != nil {
			return "", err
		}
		var ok bool
		if op, ok = step.Op.(*plan.Git); !ok {
			return "", errors.New("source policy: a git context can only be converted to another repository")
		}
		commit := op.Pin
		if commit == "" {
			if commit, err = b.Git.Resolve(ctx, op); err != nil {
				return "", err
			}
		}
		in.changed = func(ctx context.Context) (time.Time, error) {
			at := *op
			at.Ref = commit
			return gitTime(ctx, b, &at)
		}
		in.remote, in.remoteID = op, commit
		return dir, b.Git.Checkout(ctx, op, commit, dir, nil)
	}
	fetched, err := in.tempDir(s, "fetch-")
	if err != nil {
		return "", err
	}
	step, err := source.step(ctx, &plan.HTTP{URL: arg, Filename: "context"})
	if err != nil {
		return "", err
	}
	remote, ok := step.Op.(*plan.HTTP)
	if !ok {
		return "", errors.New("source policy: a context that is a URL can only be converted to another URL")
	}
	remote = remote.Pinned()
	entries, err := b.HTTP.Fetch(ctx, remote, fetched)
	if err != nil {
		return "", err
	}
	if at, err := b.HTTP.LastModified(ctx, remote); err == nil && !at.IsZero() {
		in.changed = func(context.Context) (time.Time, error) { return at, nil }
	}
	if len(entries) != 1 {
		return "", errors.New("not one file")
	}
	f, err := os.Open(entries[0].Origin.Staged)
	if err != nil {
		return "", err
	}
	defer f.Close()
	d, err := digest.FromReader(f)
	if err != nil {
		return "", err
	}
	in.remote, in.remoteID = remote, d.String()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return dir, in.unpack(ctx, f, dir, arg, mayBeFile)
}
