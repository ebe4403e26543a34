// Package flight runs a function once for all who ask for the same key at the
// same time.
package flight

import "context"

// Group is a set of flights. The zero value is ready.
type Group[T any] struct{}

// Do returns the result of fn for key. Callers that come while it runs wait for
// it and share what it returns. fn's context ends when the last caller has
// left, with that caller's cause; a caller whose ctx ends leaves at once. fn
// must not wait for another flight.
func (g *Group[T]) Do(ctx context.Context, key string, fn func(context.Context) (T, error)) (T, error) {
	panic("unwritten")
}
