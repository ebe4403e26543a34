package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// archiveFormat changes whenever the same bundles give other archives, of which
// TestArchiveFormat has digests.
const archiveFormat = 2

// ArchiveID identifies the bytes of an archive of bundles: those of WriteOCI
// ("oci") or WriteDocker ("docker").
func ArchiveID(kind string, bundles []Bundle) (digest.Digest, error) {
	type content struct {
		Desc  ocispec.Descriptor
		Names []string
	}
	list := make([]content, len(bundles))
	for i, b := range bundles {
		list[i] = content{b.Desc, b.Names}
	}
	data, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	return digest.FromString(fmt.Sprintf("strake archive %d %s\n%s", archiveFormat, kind, data)), nil
}

// written is what is remembered of an archive file.
type written struct {
	ID                digest.Digest
	Dev, Ino          uint64
	Size              int64
	Modified, Changed int64 // in nanoseconds
}

func writtenOf(id digest.Digest, st *unix.Stat_t) written {
	return written{id, uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}
}

// maxWritten is how many archive files are remembered.
const maxWritten = 128

func (s *Store) writtenPath(dest string) string {
	sum := sha256.Sum256([]byte(dest))
	return s.root.Path("images", "archives", hex.EncodeToString(sum[:]))
}

// Written reports whether the file dest, an absolute path, has been written as
// the archive id (see ArchiveID) and is the same file, untouched since: no need
// to write it again.
func (s *Store) Written(dest string, id digest.Digest) bool {
	data, err := os.ReadFile(s.writtenPath(dest))
	if err != nil {
		return false
	}
	var w written
	var st unix.Stat_t
	return json.Unmarshal(data, &w) == nil && unix.Lstat(dest, &st) == nil && w == writtenOf(id, &st)
}

// tick is more than the clock of files' times is coarse.
const tick = 12 * time.Millisecond

// Place renames f, a temporary file that only this process has opened, to dest
// and remembers it for Written, if the system can tell that nobody touches the
// file before its times can no longer be taken for later ones. Else it is only
// renamed.
func (s *Store) Place(f *os.File, dest string, id digest.Digest) error {
	fd := int(f.Fd())
	// Under a lease nobody opens the file without breaking it.
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
	leased := err == nil
	if leased {
		defer func() { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK) }()
	}
	if err := os.Rename(f.Name(), dest); err != nil || !leased {
		return err
	}
	time.Sleep(tick)
	var st unix.Stat_t
	if lease, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0); err != nil || lease != unix.F_WRLCK || unix.Fstat(fd, &st) != nil {
		return nil
	}
	// What can't be remembered is written again.
	data, err := json.Marshal(writtenOf(id, &st))
	if err != nil {
		return nil
	}
	dir, err := s.root.MkdirAll("images", "archives")
	if err != nil {
		return nil
	}
	_ = s.root.WriteFile(s.writtenPath(dest), data, 0o600, false)
	s.forgetWritten(dir)
	return nil
}

// forgetWritten removes the oldest records if there are too many.
func (s *Store) forgetWritten(dir string) {
	list, err := os.ReadDir(dir)
	if err != nil || len(list) <= maxWritten {
		return
	}
	age := func(d os.DirEntry) int64 {
		if fi, err := d.Info(); err == nil {
			return fi.ModTime().UnixNano()
		}
		return 0
	}
	slices.SortFunc(list, func(a, b os.DirEntry) int { return int(min(max(age(a)-age(b), -1), 1)) })
	for _, d := range list[:len(list)-maxWritten] {
		_ = os.Remove(filepath.Join(dir, d.Name()))
	}
}
