// Command strake builds container images from Dockerfiles, and pulls, pushes,
// runs and keeps them. `strake help` lists the commands, docs/cli.md describes
// them.
package main

import (
	"os"

	"github.com/strake-build/strake/builder/sandbox/disorder"
	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/oci"
)

func main() {
	// Children that sandboxes are started by, and what runs in them, end here.
	disorder.Main()
	linux.Main()
	oci.Main()
	os.Exit(run(os.Args[1:], processEnv()))
}
