package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/moby/sys/user"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/plan"
)

// maxUserFile bounds /etc/passwd and /etc/group.
const maxUserFile = 10 << 20

// maxID is the largest user or group number: the one above means "no change" to
// chown.
const maxID = 1<<32 - 2

type ids struct{ uid, gid int }

// User resolves user[:group], as USER takes it, in a tree (nil: only numbers
// can be resolved). Without a group it is the user's primary one, and groups
// are the others that the user is in. The home of a user that is not in
// /etc/passwd is "/".
func User(tree Tree, spec string) (uid, gid int, groups []int, home string, err error) {
	ctx := context.Background()
	name, group, _ := strings.Cut(spec, ":")
	for _, s := range []string{name, group} {
		if _, err := parseID(s); err != nil && !errors.Is(err, errNoNumber) {
			return 0, 0, nil, "", err
		}
	}
	passwd, err := userFile(ctx, tree, "/etc/passwd")
	if err != nil {
		return 0, 0, nil, "", err
	}
	defer passwd.Close()
	group2, err := userFile(ctx, tree, "/etc/group")
	if err != nil {
		return 0, 0, nil, "", err
	}
	defer group2.Close()
	if name == "root" {
		// Root is 0, be it in the file or not.
		spec = "0" + strings.TrimPrefix(spec, "root")
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group2)
	switch {
	case err == nil:
		for _, gid := range append([]int{u.Gid}, u.Sgids...) {
			if _, err := checkIDs(u.Uid, gid); err != nil {
				return 0, 0, nil, "", fmt.Errorf("user %q: %w", spec, err)
			}
		}
		return u.Uid, u.Gid, u.Sgids, u.Home, nil
	case errors.Is(err, user.ErrNoPasswdEntries):
		err = fmt.Errorf("user %q: %w", name, errNoUser)
	case errors.Is(err, user.ErrNoGroupEntries):
		err = fmt.Errorf("group %q: %w", group, errNoGroup)
	default:
		err = fmt.Errorf("user %q: %w", spec, err)
	}
	return 0, 0, nil, "", err
}

var (
	errNoNumber = errors.New("not a number")
	errNoUser   = errors.New("not in /etc/passwd of the image; add the user there, or use a number")
	errNoGroup  = errors.New("not in /etc/group of the image; add the group there, or use a number")
)

// parseID reads a user or group number.
func parseID(s string) (int, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, errNoNumber
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > maxID {
		return 0, fmt.Errorf("%s: not a user or group number (0 to %d)", s, maxID)
	}
	return int(n), nil
}

// resolveOwner works out the owner of new files; names are looked up in tree. A
// user that is not there is 0, and so is a group unless the user gives one:
// that is what BuildKit does, and images are built with it. Without a tree,
// names are an error.
func resolveOwner(ctx context.Context, tree Tree, o *plan.Owner) (own ids, err error) {
	if o == nil {
		return ids{}, nil
	}
	if o.User != "" && o.User != "root" {
		own.uid, err = parseID(o.User)
		own.gid = own.uid
		if errors.Is(err, errNoNumber) {
			own, err = lookupUser(ctx, tree, o.User)
		}
		if err != nil {
			return ids{}, fmt.Errorf("owner %q: %w", o.User, err)
		}
	}
	if o.Group != "" {
		primary := own.gid
		own.gid, err = parseID(o.Group)
		if errors.Is(err, errNoNumber) && o.Group == "root" {
			own.gid, err = 0, nil
		} else if errors.Is(err, errNoNumber) {
			own.gid, err = lookupGroup(ctx, tree, o.Group, primary)
		}
		if err != nil {
			return ids{}, fmt.Errorf("group %q: %w", o.Group, err)
		}
	}
	return own, nil
}

func lookupUser(ctx context.Context, tree Tree, name string) (ids, error) {
	f, err := userFile(ctx, tree, "/etc/passwd")
	if err != nil {
		return ids{}, err
	}
	defer f.Close()
	users, err := user.ParsePasswdFilter(f, func(u user.User) bool { return u.Name == name })
	if err != nil {
		return ids{}, fmt.Errorf("/etc/passwd: %w", err)
	}
	if len(users) == 0 {
		if tree == nil {
			return ids{}, errNoUser
		}
		return ids{}, nil
	}
	return checkIDs(users[0].Uid, users[0].Gid)
}

// lookupGroup returns the number of a group, or missing if it is not there.
func lookupGroup(ctx context.Context, tree Tree, name string, missing int) (int, error) {
	f, err := userFile(ctx, tree, "/etc/group")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	groups, err := user.ParseGroupFilter(f, func(g user.Group) bool { return g.Name == name })
	if err != nil {
		return 0, fmt.Errorf("/etc/group: %w", err)
	}
	if len(groups) == 0 {
		if tree == nil {
			return 0, errNoGroup
		}
		return missing, nil
	}
	own, err := checkIDs(0, groups[0].Gid)
	return own.gid, err
}

func checkIDs(uid, gid int) (ids, error) {
	if uid < 0 || gid < 0 || uid > maxID || gid > maxID {
		return ids{}, fmt.Errorf("the image gives it the number %d:%d, which can't be", uid, gid)
	}
	return ids{uid, gid}, nil
}

// userFile opens /etc/passwd or /etc/group of a tree, symlinks followed inside
// it. One that is missing, or no file, is empty.
func userFile(ctx context.Context, tree Tree, name string) (io.ReadCloser, error) {
	none := io.NopCloser(strings.NewReader(""))
	if tree == nil {
		return none, nil
	}
	p, e, err := Resolve(tree, name, true)
	if errors.Is(err, fs.ErrNotExist) || err == nil && e.Type != layers.Regular {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	if e.Size > maxUserFile {
		return nil, fmt.Errorf("%s of the image is larger than %d MiB", name, maxUserFile>>20)
	}
	r, err := tree.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, maxUserFile), r}, nil
}
