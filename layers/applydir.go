package layers

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// handle is a directory below the root, opened with O_PATH.
type handle struct {
	fd   int
	real string // its path without symbolic links
}

func (h *handle) stat(base string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(h.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	return &st, nil
}

// handle opens the directory at the cleaned path dir. Every name on the way is
// opened on its own and never followed by the kernel; symbolic links are
// followed here, where ".." ends at the root and absolute targets begin there.
// With create, what is missing is made, a whiteout on the way becomes an opaque
// directory, and a dangling link leads to a new directory.
//
// The handle is good until closeHandles.
func (a *applier) handle(dir string, create bool) (*handle, error) {
	links := 0
	return a.reach(dir, create, &links)
}

func (a *applier) reach(dir string, create bool, links *int) (*handle, error) {
	if dir == "." {
		return a.root, nil
	}
	if h := a.handles[dir]; h != nil {
		return h, nil
	}
	parent, base := splitPath(dir)
	p, err := a.reach(parent, create, links)
	if err != nil {
		return nil, err
	}
	h, err := a.step(p, base, create, links)
	if err != nil {
		return nil, err
	}
	a.handles[dir] = h
	return h, nil
}

// step opens the directory name in p.
func (a *applier) step(p *handle, name string, create bool, links *int) (*handle, error) {
	real := joinPath(p.real, name)
	if h := a.handles[real]; h != nil && h.real == real {
		return h, nil
	}
	fd, err := openDir(p.fd, name)
	switch {
	case err == unix.ENOENT && create:
		err = a.mkdir(p, name, false)
	case err == unix.ENOTDIR:
		st, err1 := p.stat(name)
		if err1 != nil {
			return nil, err1
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return a.follow(p, name, st.Size, create, links)
		}
		if !create || !isWhiteout(p, name, st) {
			return nil, err
		}
		if err := unix.Unlinkat(p.fd, name, 0); err != nil {
			return nil, err
		}
		err = a.mkdir(p, name, true)
	}
	if err != nil {
		return nil, err
	}
	if fd < 0 {
		if fd, err = openDir(p.fd, name); err != nil {
			return nil, err
		}
	}
	h := &handle{fd: fd, real: real}
	a.opened = append(a.opened, h)
	a.handles[real] = h
	return h, nil
}

// openDir opens a directory and nothing else.
func openDir(fd int, name string) (int, error) {
	return unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// mkdir makes a directory that the stream has not told of.
func (a *applier) mkdir(p *handle, name string, opaque bool) error {
	if err := a.count(); err != nil {
		return err
	}
	if err := unix.Mkdirat(p.fd, name, 0o700); err != nil {
		return err
	}
	return a.remember(joinPath(p.real, name), missingDir(), opaque)
}

// follow goes where the symbolic link name in p leads.
func (a *applier) follow(p *handle, name string, size int64, create bool, links *int) (*handle, error) {
	if *links++; *links > maxLinks {
		return nil, unix.ELOOP
	}
	target, err := readlinkat(p.fd, name, size)
	if err != nil {
		return nil, err
	}
	h := p
	if strings.HasPrefix(target, "/") {
		h = a.root
	}
	for c := range strings.SplitSeq(target, "/") {
		switch c {
		case "", ".":
		case "..":
			// The parent of a real path is one.
			dir, _ := splitPath(h.real)
			if h, err = a.reach(dir, create, links); err != nil {
				return nil, err
			}
		default:
			if h, err = a.step(h, c, create, links); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
}

// closeHandles closes all handles but keep.
func (a *applier) closeHandles(keep ...*handle) {
	clear(a.handles)
	a.opened = slices.DeleteFunc(a.opened, func(h *handle) bool {
		if slices.Contains(keep, h) {
			return false
		}
		unix.Close(h.fd)
		return true
	})
}
