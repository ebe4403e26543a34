//go:build amd64 || arm64

package linux

import "unsafe"

// direct says that this machine has spawn.
const direct = true

// spawn clones (clone3) a child that runs the instructions from first on, in
// our memory, and never returns. It returns its pid or an error number. All
// signals must be blocked, and args must ask for the handlers to be cleared.
//
//go:noescape
func spawn(args unsafe.Pointer, size uintptr, first unsafe.Pointer) uintptr
