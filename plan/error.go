package plan

// Error is a fault of a build file, or a failure that belongs to a place in one.
type Error struct {
	// Source is the place; never nil.
	Source *Source
	Err    error
	// Hint tells what to do about it (`did you mean "build"?`); may be empty.
	Hint string
}

// Error gives the place, the message and the hint in one line:
// `Dockerfile:12:8: COPY --from=bulid: no stage named "bulid" (did you mean "build"?)`.
func (e *Error) Error() string { panic("unwritten") }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Excerpt returns the lines of the build file around the source, numbered, the
// lines themselves marked by ">>>" and a caret under the column if there is
// one; as BuildKit prints it.
func (s *Source) Excerpt() string { panic("unwritten") }
