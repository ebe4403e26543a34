package layers

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Attributes of overlayfs. With the mount option userxattr they are in the
// namespace "user".
const (
	trustedOverlay = "trusted.overlay."
	userOverlay    = "user.overlay."

	xattrCapability = "security.capability"
)

// keepXattr tells which extended attributes belong to a layer: those that
// programs give to files, and file capabilities. The others are the file
// system's, the security module's or overlayfs's own, and mean nothing, or
// something else, on another machine.
func keepXattr(name string) bool {
	if name == xattrCapability {
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, userOverlay) && name != OwnerXattr
}

// owner is what OwnerXattr holds.
type owner struct {
	uid, gid int
	mode     uint32
}

func (o owner) String() string { return fmt.Sprintf("%d:%d:%o", o.uid, o.gid, o.mode) }

func parseOwner(s string) (owner, bool) {
	f := strings.Split(s, ":")
	if len(f) != 3 {
		return owner{}, false
	}
	uid, err1 := strconv.ParseUint(f[0], 10, 32)
	gid, err2 := strconv.ParseUint(f[1], 10, 32)
	mode, err3 := strconv.ParseUint(f[2], 8, 12)
	if errors.Join(err1, err2, err3) != nil {
		return owner{}, false
	}
	return owner{int(uid), int(gid), uint32(mode)}, true
}

// xattrReader reads extended attributes into buffers it keeps.
type xattrReader struct {
	list, value []byte
}

// names returns the attributes of the file at path itself. The result is good
// until the next call.
func (x *xattrReader) names(path string) ([]byte, error) {
	if x.list == nil {
		x.list = make([]byte, 64<<10) // XATTR_LIST_MAX
	}
	n, err := unix.Llistxattr(path, x.list)
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	return x.list[:n], nil
}

// get returns the value of an attribute; ok is false if it is not there.
func (x *xattrReader) get(path, name string) (value string, ok bool, err error) {
	if x.value == nil {
		x.value = make([]byte, 64<<10) // XATTR_SIZE_MAX
	}
	n, err := unix.Lgetxattr(path, name, x.value)
	if err == unix.ENODATA {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("extended attribute %s: %w", name, err)
	}
	return string(x.value[:n]), true, nil
}
