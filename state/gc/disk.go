package gc

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// disk counts bytes on the disk, those of files with several names once.
type disk struct {
	mu   sync.Mutex
	seen map[inode]uint64 // files with several names: how many were met
}

type inode struct{ dev, ino uint64 }

// usage returns what a tree takes that was not counted before, without the paths
// in except. What goes meanwhile takes nothing.
func (d *disk) usage(path string, except map[string]bool) (int64, error) {
	var total int64
	err := walk(path, except, func(fi fs.FileInfo, st *syscall.Stat_t) {
		if d.meet(fi, st) == 1 {
			total += st.Blocks * 512
		}
	})
	return total, err
}

// freed returns what is freed when a tree is removed, if those that were given
// to freed before are removed as well: a file counts with its last name.
func (d *disk) freed(path string) (int64, error) {
	var total int64
	err := walk(path, nil, func(fi fs.FileInfo, st *syscall.Stat_t) {
		if n := d.meet(fi, st); fi.IsDir() || n == uint64(st.Nlink) { // 32 bits on arm64
			total += st.Blocks * 512
		}
	})
	return total, err
}

// meet returns how often a file was met, this time included.
func (d *disk) meet(fi fs.FileInfo, st *syscall.Stat_t) uint64 {
	if st.Nlink <= 1 || fi.IsDir() {
		return 1
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen = map[inode]uint64{}
	}
	i := inode{st.Dev, st.Ino}
	d.seen[i]++
	return d.seen[i]
}

func walk(root string, except map[string]bool, fn func(fs.FileInfo, *syscall.Stat_t)) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if path != root && except[path] {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var fi os.FileInfo
		if err == nil {
			fi, err = e.Info()
		}
		if err == nil {
			fn(fi, fi.Sys().(*syscall.Stat_t))
		}
		return ignoreMissing(err)
	})
}

// blocks is what a file takes.
func blocks(fi fs.FileInfo) int64 { return fi.Sys().(*syscall.Stat_t).Blocks * 512 }
