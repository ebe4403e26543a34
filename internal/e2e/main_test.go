package e2e

import (
	"os"
	"testing"

	"github.com/strake-build/strake/internal/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Main(m)) }
