// Command strake builds container images from Dockerfiles, and pulls, pushes,
// runs and keeps them. `strake help` lists the commands, docs/cli.md describes
// them.
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/strake-build/strake/builder/sandbox/disorder"
	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/oci"
)

func main() {
	// Children that sandboxes are started by, and what runs in them, end here.
	disorder.Main()
	linux.Main()
	oci.Main()
	collectLate()
	os.Exit(run(os.Args[1:], processEnv()))
}

// collectLate lets the first garbage collection wait for 32 MB instead of 4:
// short builds end before it. From then on it is as usual.
func collectLate() {
	usual := debug.SetGCPercent(800)
	type sentinel struct{ *sentinel } // a pointer: not put together with other small ones
	runtime.AddCleanup(&sentinel{}, func(percent int) { debug.SetGCPercent(percent) }, usual)
}
