package scripttest

import (
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/strake-build/strake/internal/distribution"
)

// startDistribution runs Debian's docker-registry.
func startDistribution(ts *testscript.TestScript, neg bool, args []string) {
	one(ts, neg, args, "distribution VAR")
	dir, err := os.MkdirTemp("", "strake-distribution-")
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	addr, stop, err := distribution.Start(filepath.Join(dir, "data"))
	ts.Check(err)
	ts.Defer(stop)
	ts.Setenv(args[0], addr)
}
