package file

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/strake-build/strake/plan"
)

// users is a tree with users and groups.
func users(t *testing.T) memory {
	return newTree(t, "").
		with("etc/passwd", []byte("root:x:0:0::/root:/bin/sh\nnode:x:1000:1001:Node:/home/node:/bin/sh\n7:x:70:71::/seven:\nhuge:x:4294967295:1::/:\n")).
		with("etc/group", []byte("root:x:0:\nnode:x:1001:\nwheel:x:10:root,node\nvideo:x:44:node\n12:x:120:\n"))
}

func TestUser(t *testing.T) {
	t.Parallel()
	tree := users(t)
	for _, tt := range []struct {
		spec     string
		uid, gid int
		groups   []int
		home     string
		err      string
	}{
		{"", 0, 0, []int{10}, "/root", ""},
		{"root", 0, 0, []int{10}, "/root", ""},
		{"node", 1000, 1001, []int{10, 44}, "/home/node", ""},
		{"1000", 1000, 1001, []int{10, 44}, "/home/node", ""},
		{"node:wheel", 1000, 10, nil, "/home/node", ""},
		{"node:5", 1000, 5, nil, "/home/node", ""},
		{"42", 42, 0, nil, "/", ""},
		{"42:43", 42, 43, nil, "/", ""},
		{"nobody", 0, 0, nil, "", `user "nobody": not in /etc/passwd`},
		{"node:none", 0, 0, nil, "", `group "none": not in /etc/group`},
		{"4294967296", 0, 0, nil, "", "not a user or group number"},
		{"99999999999999999999", 0, 0, nil, "", "not a user or group number"},
		{"huge", 0, 0, nil, "", "which can't be"},
		{"1:4294967295", 0, 0, nil, "", "not a user or group number"},
	} {
		uid, gid, groups, home, err := User(tree, tt.spec)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q: got %v, want %q", tt.spec, err, tt.err)
			}
			continue
		}
		if err != nil || uid != tt.uid || gid != tt.gid || !slices.Equal(groups, tt.groups) || home != tt.home {
			t.Errorf("%q: got %d:%d %v %s, %v", tt.spec, uid, gid, groups, home, err)
		}
	}
}

func TestUserWithoutTree(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string][2]int{"": {0, 0}, "root": {0, 0}, "5": {5, 0}, "5:6": {5, 6}, "root:6": {0, 6}} {
		if uid, gid, _, _, err := User(nil, spec); err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%q: %d:%d, %v", spec, uid, gid, err)
		}
	}
	if _, _, _, _, err := User(nil, "node"); err == nil {
		t.Error("a name was resolved without a tree")
	}
}

func TestUserFiles(t *testing.T) {
	t.Parallel()
	tree := newTree(t, "l 0:0 etc -> /real\nl 0:0 real/passwd -> ../../../outside").
		with("outside", []byte("node:x:3:4::/:\n"))
	if uid, gid, _, _, err := User(tree, "node"); err != nil || uid != 3 || gid != 4 {
		t.Errorf("through links: %d:%d, %v", uid, gid, err)
	}
	big := newTree(t, "").with("etc/passwd", bytes.Repeat([]byte("x"), maxUserFile+1))
	if _, _, _, _, err := User(big, "node"); err == nil || !strings.Contains(err.Error(), "larger than 10 MiB") {
		t.Errorf("huge file: %v", err)
	}
	long := newTree(t, "").with("etc/passwd", bytes.Repeat([]byte("x"), maxUserFile-1))
	if _, _, _, _, err := User(long, "node"); err == nil {
		t.Error("a line of 10 MiB was taken")
	}
	odd := newTree(t, "d 755 0:0 etc/passwd\np 644 0:0 etc/group")
	if uid, _, _, _, err := User(odd, "5"); err != nil || uid != 5 {
		t.Errorf("directory and fifo: %d, %v", uid, err)
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	tree := users(t)
	for _, tt := range []struct {
		user, group string
		uid, gid    int
		err         string
	}{
		{"node", "", 1000, 1001, ""},
		{"node", "wheel", 1000, 10, ""},
		{"1000", "", 1000, 1000, ""},
		{"1000", "0", 1000, 0, ""},
		{"", "wheel", 0, 10, ""},
		{"root", "", 0, 0, ""},
		{"root", "root", 0, 0, ""},
		{"7", "12", 7, 12, ""}, // a number is a number
		{"4294967294", "", 4294967294, 4294967294, ""},
		{"4294967295", "", 0, 0, "not a user or group number"},
		{"huge", "", 0, 0, "can't be"},
		// Names that aren't there are 0, as BuildKit has it.
		{"nobody", "", 0, 0, ""},
		{"1", "nogroup", 1, 1, ""},
		{"", "nogroup", 0, 0, ""},
	} {
		got, err := apply(t, &plan.File{Actions: actions(dockerfile("/a", "/b", chown(tt.user, tt.group)))}, tree, Input{Tree: newTree(t, "f 644 0:0 a x")})
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s:%s: got %v, want %q", tt.user, tt.group, err, tt.err)
			}
			continue
		}
		if err != nil || len(got) != 1 || got[0].UID != tt.uid || got[0].GID != tt.gid {
			t.Errorf("%s:%s: got %+v, %v", tt.user, tt.group, got, err)
		}
	}
	got, err := apply(t, &plan.File{Actions: actions(&plan.Mkdir{Path: "/x", Parents: true, Owner: &plan.Owner{User: "node"}})}, nil, Input{})
	if err == nil {
		t.Errorf("owner by name on nothing: %v", got)
	}
}
