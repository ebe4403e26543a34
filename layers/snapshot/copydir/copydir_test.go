package copydir_test

import (
	"os"
	"testing"

	"github.com/strake-build/strake/layers/snapshot/copydir"
	"github.com/strake-build/strake/layers/snapshot/snapshottest"
)

func TestDriver(t *testing.T) {
	rootless := os.Geteuid() != 0
	snapshottest.Run(t, &copydir.Driver{UserXattr: rootless, RecordOwners: rootless})
}
