// Package flight runs a function once for all who ask for the same key at the
// same time.
//
// Unlike golang.org/x/sync/singleflight it knows who is waiting: the function
// runs for as long as one caller wants its result, and is cancelled when the
// last one has left.
package flight

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group is a set of flights. The zero value is ready.
type Group[T any] struct {
	mu      sync.Mutex
	flights map[string]*flight[T]
}

// flight is one run of a function. Fields above done are guarded by Group.mu;
// those below are written before done is closed and read after.
type flight[T any] struct {
	callers int
	cancel  context.CancelCauseFunc

	done     chan struct{}
	value    T
	err      error
	panicked error
}

// Do returns the result of fn for key. Callers that come while it runs wait for
// it and share what it returns. fn's context ends when the last caller has
// left, with that caller's cause; it has none of the callers' values. fn must
// not wait for another flight.
//
// A caller whose ctx ends leaves at once and gets the context's cause, except
// that the last one waits for fn to return: nothing runs on when all callers
// have gone. One who comes in between starts fn anew after that, so that fn
// never runs twice at the same time for one key. If fn panics, so does every
// caller.
func (g *Group[T]) Do(ctx context.Context, key string, fn func(context.Context) (T, error)) (T, error) {
	for {
		if ctx.Err() != nil {
			var none T
			return none, context.Cause(ctx)
		}
		f, joined := g.join(key, fn)
		if joined {
			return g.wait(ctx, f)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
		}
	}
}

// join makes the caller one of those of key's flight, which is started if there
// is none. It reports false if the flight is already cancelled.
func (g *Group[T]) join(key string, fn func(context.Context) (T, error)) (f *flight[T], joined bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flights[key]; f != nil {
		if f.callers == 0 {
			return f, false
		}
		f.callers++
		return f, true
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	f = &flight[T]{callers: 1, cancel: cancel, done: make(chan struct{})}
	if g.flights == nil {
		g.flights = make(map[string]*flight[T])
	}
	g.flights[key] = f
	go func() {
		returned := false
		defer func() { // runs after a panic and runtime.Goexit, too
			if r := recover(); r != nil {
				f.panicked = fmt.Errorf("%v\n\n%s", r, debug.Stack())
			} else if !returned {
				f.panicked = errors.New("the function of a flight called runtime.Goexit")
			}
			cancel(nil)
			g.mu.Lock()
			delete(g.flights, key)
			g.mu.Unlock()
			close(f.done)
		}()
		f.value, f.err = fn(ctx)
		returned = true
	}()
	return f, true
}

func (g *Group[T]) wait(ctx context.Context, f *flight[T]) (T, error) {
	select {
	case <-f.done:
		return f.result()
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	g.mu.Lock()
	f.callers--
	last := f.callers == 0
	g.mu.Unlock()
	if last {
		f.cancel(cause)
		<-f.done
		if f.panicked != nil {
			panic(f.panicked)
		}
	}
	var none T
	return none, cause
}

func (f *flight[T]) result() (T, error) {
	if f.panicked != nil {
		panic(f.panicked)
	}
	return f.value, f.err
}
