// Command strake builds container images from Dockerfiles, and pulls, pushes,
// runs and keeps them. `strake help` lists the commands, docs/cli.md describes
// them.
package main

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

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
// short builds end before it. From then on it is as usual, but for memoryBound.
func collectLate() {
	usual := debug.SetGCPercent(800)
	if debug.SetMemoryLimit(-1) == math.MaxInt64 { // else the user has set one
		debug.SetMemoryLimit(memoryBound)
	}
	runtime.AddCleanup(&sentinel{}, func(percent int) {
		debug.SetGCPercent(percent)
		unbind()
	}, usual)
}

// sentinel is garbage that a collection finds. It is a pointer: not put together
// with other small ones.
type sentinel struct{ *sentinel }

// Up to memoryBound, garbage is collected before memory grows, unless more than
// memoryInUse is no garbage: then there would be no end of collecting.
const (
	memoryBound = 100 << 20
	memoryInUse = 72 << 20
)

// unbind lifts the bound when too much is in use; it looks after each collection.
func unbind() {
	inUse := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(inUse)
	if v := inUse[0].Value; v.Kind() == metrics.KindUint64 && v.Uint64() > memoryInUse {
		if debug.SetMemoryLimit(-1) == memoryBound {
			debug.SetMemoryLimit(math.MaxInt64)
		}
		return
	}
	runtime.AddCleanup(&sentinel{}, func(struct{}) { unbind() }, struct{}{})
}
