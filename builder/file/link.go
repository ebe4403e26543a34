package file

import (
	"os"
	"strings"
	"syscall"
)

// identify tells which file a path is if it may have other names: trees give
// hard links as files of their own, but the host's file system knows.
func identify(tree Tree, p string) linkID {
	t, ok := tree.(interface {
		HostPath(string) (string, error)
	})
	if !ok {
		return linkID{}
	}
	host, err := t.HostPath(p)
	if err != nil || host == "" {
		return linkID{}
	}
	st, err := os.Lstat(host)
	if err != nil {
		return linkID{}
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || sys.Nlink < 2 {
		return linkID{}
	}
	// Layers link files of each other to save room; that makes no hard links
	// of the tree. What is above the path in it is the layer's directory.
	dir, ok := strings.CutSuffix(host, "/"+p)
	if !ok {
		return linkID{}
	}
	return linkID{dir, sys.Ino}
}
