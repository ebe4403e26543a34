package builder

import (
	"context"
	"errors"
	"fmt"

	"github.com/strake-build/strake/plan"
)

// StepError is the failure of a step.
type StepError struct {
	Step *plan.Step
	// Vertex is the step in progress events.
	Vertex string
	// Exit is the exit code of the process of an Exec; 0 if it is not that
	// which failed.
	Exit int
	// Log is the end of the step's output, 64 KiB at most.
	Log []byte
	Err error
}

// Error names the step and what happened.
func (e *StepError) Error() string { return fmt.Sprintf("%s: %v", e.Step.Name, e.Err) }

// Unwrap returns Err.
func (e *StepError) Unwrap() error { return e.Err }

// stepError makes err the failure of v, unless it is one of a step already or
// the end of the build.
func (bd *build) stepError(v *vertex, err error) error {
	var se *StepError
	if err == nil || errors.As(err, &se) || errors.Is(err, context.Canceled) {
		return err
	}
	return &StepError{Step: v.step, Vertex: v.id, Err: err}
}

// tail keeps the end of what is written to it.
type tail struct{ buf []byte }

const tailSize = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*tailSize {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	if len(t.buf) > tailSize {
		return t.buf[len(t.buf)-tailSize:]
	}
	return t.buf
}
