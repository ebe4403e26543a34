package file

import (
	"context"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/layers"
)

// empty is a tree with nothing but its root.
type empty struct{}

var rootDir = layers.Entry{Path: ".", Type: layers.Dir, Mode: 0o755, ModTime: layers.DefaultModTime}

func notExist(op, p string) error { return &fs.PathError{Op: op, Path: p, Err: fs.ErrNotExist} }

func (empty) Lookup(p string) (layers.Entry, error) {
	if p == "." {
		return rootDir, nil
	}
	return layers.Entry{}, notExist("lookup", p)
}

func (empty) ReadDir(p string) ([]layers.Entry, error) {
	if p == "." {
		return nil, nil
	}
	return nil, notExist("readdir", p)
}

func (empty) Open(_ context.Context, p string) (io.ReadCloser, error) {
	return nil, notExist("open", p)
}

func (empty) Digest(_ context.Context, p string) (digest.Digest, error) {
	return "", notExist("open", p)
}
