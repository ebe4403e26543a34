package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/strake-build/strake/internal/distribution"
)

// A mirror is a directory in the form that BuildKit's tests expect of their
// stand-in for Docker Hub: data/ is the storage of the registry that
// config.yaml configures.
type mirror struct{ dir string }

// newMirror makes a mirror that holds the stand-ins.
func newMirror(dir string) (*mirror, error) {
	m := &mirror{dir}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\nhttp: {addr: \"127.0.0.1:0\"}\n", filepath.Join(m.dir, "data"))
	if err := os.WriteFile(filepath.Join(m.dir, "config.yaml"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	addr, stop, err := m.serve()
	if err != nil {
		return nil, err
	}
	defer stop()
	return m, pushImages(addr)
}

// serve runs the registry until stop is called.
func (m *mirror) serve() (addr string, stop func(), err error) {
	return distribution.Start(filepath.Join(m.dir, "data"))
}
