package main

import (
	"flag"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/strake-build/strake/builder/sandbox/disorder"
	"github.com/strake-build/strake/builder/sandbox/linux"
	"github.com/strake-build/strake/builder/sandbox/oci"
	"github.com/strake-build/strake/internal/scripttest"
)

var update = flag.Bool("update", false, "rewrite expected files in scripts")

func TestMain(m *testing.M) {
	// Sandboxes start this program again, and must not run the tests again.
	disorder.Main()
	linux.Main()
	oci.Main()
	testscript.Main(m, map[string]func(){"strake": main})
}

func TestScript(t *testing.T) {
	testscript.Run(t, scripttest.Params("../../testdata/script", *update))
}
