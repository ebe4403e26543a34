package overlay_test

import (
	"testing"

	"github.com/strake-build/strake/layers/snapshot/overlay"
	"github.com/strake-build/strake/layers/snapshot/snapshottest"
)

func TestDriver(t *testing.T) {
	if !snapshottest.CanMount() {
		t.Skip("overlays can't be mounted here: it needs root, or a user namespace")
	}
	snapshottest.Run(t, &overlay.Driver{})
}
