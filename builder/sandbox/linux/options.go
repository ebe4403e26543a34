package linux

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountOptions are the options of a runtime-spec mount, sorted out.
type mountOptions struct {
	set, clr  uint64 // MOUNT_ATTR_…
	bind      bool
	recursive bool     // rbind
	data      []string // for the file system
}

var attrOptions = map[string]struct {
	attr  uint64
	clear bool
}{
	"ro":          {unix.MOUNT_ATTR_RDONLY, false},
	"rro":         {unix.MOUNT_ATTR_RDONLY, false},
	"rw":          {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid":      {unix.MOUNT_ATTR_NOSUID, false},
	"suid":        {unix.MOUNT_ATTR_NOSUID, true},
	"nodev":       {unix.MOUNT_ATTR_NODEV, false},
	"dev":         {unix.MOUNT_ATTR_NODEV, true},
	"noexec":      {unix.MOUNT_ATTR_NOEXEC, false},
	"exec":        {unix.MOUNT_ATTR_NOEXEC, true},
	"noatime":     {unix.MOUNT_ATTR_NOATIME, false},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, false},
	"nodiratime":  {unix.MOUNT_ATTR_NODIRATIME, false},
	"diratime":    {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, false},
}

// Everything is private in a sandbox, and relatime is what there is anyway.
var noOptions = []string{
	"defaults", "relatime", "async", "private", "rprivate", "slave", "rslave",
	"shared", "rshared", "unbindable", "runbindable",
}

func parseOptions(m specs.Mount) mountOptions {
	o := mountOptions{bind: m.Type == "bind"}
	for _, name := range m.Options {
		if a, ok := attrOptions[name]; ok {
			if a.clear {
				o.set &^= a.attr
				o.clr |= a.attr
			} else {
				o.clr &^= a.attr
				o.set |= a.attr
			}
			continue
		}
		switch {
		case name == "bind":
			o.bind = true
		case name == "rbind":
			o.bind, o.recursive = true, true
		case slices.Contains(noOptions, name):
		default:
			o.data = append(o.data, name)
		}
	}
	return o
}
