// Package linux starts sandboxed processes directly, in a few milliseconds and
// without a runtime binary.
package linux

import "github.com/strake-build/strake/builder/sandbox"

// Options says how the runner starts processes.
type Options struct {
	// Reexec makes it use the fallback path: a re-execution of this program
	// (see Main) instead of a raw clone.
	Reexec   bool
	Rootless bool
	// CgroupRoot is the cgroup below which steps get their own; empty: found
	// out. Without cgroups that can be written, resource limits are an error.
	CgroupRoot string
}

// New returns the runner.
func New(o Options) (sandbox.Runner, error) { panic("unwritten") }

// Main is the entry point of re-executed children. It returns at once unless
// this process is one; then it never returns. main calls it first.
func Main() { panic("unwritten") }
