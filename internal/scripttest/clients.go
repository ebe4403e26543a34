package scripttest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// BuildKit, and the clients of its API, that scripts run, built from their
// modules.
var clients = map[string]struct{ module, pkg string }{
	"buildctl":  {"github.com/moby/buildkit@v0.34.2", "./cmd/buildctl"},
	"buildkitd": {"github.com/moby/buildkit@v0.34.2", "./cmd/buildkitd"},
	"buildx":    {"github.com/docker/buildx@v0.38.2", "./cmd/buildx"},
}

// clientDir is where clients are kept between runs: building them takes a minute.
var clientDir = sync.OnceValue(func() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "strake-test", "clients")
})

var clientMu sync.Mutex

// haveClient builds a client unless it is there. The second result says why
// there is none: its module can't be had.
func haveClient(name string) (bool, error) {
	clientMu.Lock()
	defer clientMu.Unlock()
	c := clients[name]
	path := filepath.Join(clientDir(), name)
	stamp := path + ".version"
	if v, err := os.ReadFile(stamp); err == nil && string(v) == c.module {
		if _, err := os.Stat(path); err == nil {
			return true, nil
		}
	}
	if err := os.MkdirAll(clientDir(), 0o755); err != nil {
		return false, err
	}
	download := exec.Command("go", "mod", "download", "-json", c.module)
	download.Dir = clientDir() // of no module
	out, err := download.Output()
	var m struct{ Dir string }
	if json.Unmarshal(out, &m) != nil || err != nil || m.Dir == "" {
		return false, fmt.Errorf("download %s: %w", c.module, err)
	}
	build := exec.Command("go", "build", "-mod=readonly", "-o", path+".new", c.pkg)
	build.Dir, build.Env = m.Dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		return false, fmt.Errorf("build %s: %w\n%s", c.module, err, out)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return false, err
	}
	return true, os.WriteFile(stamp, []byte(c.module), 0o644)
}
