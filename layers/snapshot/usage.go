package snapshot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/strake-build/strake/layers"
)

// Usage is how many bytes layers take on the disk, files that they share
// counted once. A layer that is not there takes none.
func (s *Store) Usage(ids ...layers.ID) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	for _, id := range ids {
		err := filepath.WalkDir(s.path(id), func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				var info os.FileInfo
				info, err = d.Info()
				if err == nil {
					st := info.Sys().(*syscall.Stat_t)
					n := inode{st.Dev, st.Ino}
					if st.Nlink > 1 && !d.IsDir() {
						if seen[n] {
							return nil
						}
						seen[n] = true
					}
					total += st.Blocks * 512
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}
