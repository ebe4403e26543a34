// Package oci runs sandboxed processes by an OCI runtime: runc, crun or runsc.
package oci

import "github.com/strake-build/strake/builder/sandbox"

// Options says which runtime to use and where.
type Options struct {
	Runtime  string // name or path
	StateDir string // for bundles and the runtime's state
	Rootless bool
}

// New returns the runner, or an error if the runtime isn't there.
func New(o Options) (sandbox.Runner, error) { panic("unwritten") }

// Main is the entry point of re-executed children; see linux.Main.
func Main() { panic("unwritten") }
