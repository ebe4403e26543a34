// Package rootless lets an ordinary user build: the program re-executes itself
// once in a user namespace where it is root.
package rootless

// Mode tells with which privileges this process runs.
type Mode struct {
	// Rootless: in a user namespace made by Enter, or by somebody else.
	Rootless bool
	// SingleID: only one uid and gid are mapped, because there is no subuid
	// range or no newuidmap. Reason says which.
	SingleID bool
	Reason   string
}

// Enter makes sure that this process may mount and has the ids it needs. As
// root it returns at once. As an ordinary user it re-executes the program in a
// new user and mount namespace with the user's subuid range (newuidmap) or a
// single id, and does not return except with an error: the child's exit code
// is this process's. In the child it returns the Mode. main calls it before
// commands that use the store.
func Enter() (Mode, error) { panic("unwritten") }

// UID is the uid of the user outside of the namespace.
func UID() int { panic("unwritten") }
