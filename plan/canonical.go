package plan

import (
	"encoding/binary"
	"fmt"
)

// CanonicalVersion is the version of the bytes that Canonical writes. It grows
// whenever the meaning of an op or its encoding changes, which makes every
// result stored under an older version unreachable.
const CanonicalVersion = 1

// Canonical returns the bytes that stand for an op in a cache key: equal for
// ops that do the same, and different for ops that may not. They hold what the
// op says, never where its inputs come from; identities of inputs are the
// builder's to add. Left out is what cannot change a result: the reference,
// platform and layout of an Image (its digest says it all), the name of a Local
// (its contents do), how the target of a Mount was written, the access token and
// advice of a Git, the proxy, resources and BuildArgs of an Exec.
//
// Each field is written in a fixed order, strings and lists with their length
// before them, so that no two ops share an encoding.
func Canonical(op Op) []byte {
	c := canon{CanonicalVersion}
	switch op := op.(type) {
	case *Image:
		c.str("image")
		c.str(string(op.Digest))
	case *Local:
		c.str("local")
	case *Git:
		c.git(op)
	case *HTTP:
		c.http(op)
	case *Exec:
		c.exec(op)
	case *File:
		c.file(op)
	case *Merge:
		c.str("merge")
	case *Diff:
		c.str("diff")
	default:
		panic(fmt.Sprintf("plan: unknown op %T", op))
	}
	return c
}

// canon is an encoding in the making.
type canon []byte

func (c *canon) str(s string) {
	*c = binary.AppendUvarint(*c, uint64(len(s)))
	*c = append(*c, s...)
}

func (c *canon) int(n int64)   { *c = binary.AppendVarint(*c, n) }
func (c *canon) uint(n uint64) { *c = binary.AppendUvarint(*c, n) }

func (c *canon) bool(b bool) {
	if b {
		*c = append(*c, 1)
	} else {
		*c = append(*c, 0)
	}
}

func (c *canon) strs(list []string) {
	c.uint(uint64(len(list)))
	for _, s := range list {
		c.str(s)
	}
}

func (c *canon) git(op *Git) {
	c.str("git")
	c.str(op.Remote)
	c.str(op.Ref)
	c.str(op.Checksum)
	c.str(op.Subdir)
	c.bool(op.KeepGitDir)
	c.bool(op.SkipSubmodules)
}

func (c *canon) http(op *HTTP) {
	c.str("http")
	c.str(op.URL)
	c.str(string(op.Checksum))
	c.str(op.Filename)
	c.uint(uint64(op.Mode))
	c.int(int64(op.UID))
	c.int(int64(op.GID))
}

func (c *canon) exec(op *Exec) {
	c.str("exec")
	c.strs(op.Args)
	c.strs(op.Env)
	c.str(op.Dir)
	c.str(op.User)
	c.str(string(op.Network))
	c.bool(op.Insecure)
	c.str(op.Hostname)
	c.uint(uint64(len(op.Hosts)))
	for _, h := range op.Hosts {
		c.str(h.Name)
		c.str(h.IP)
	}
	c.uint(uint64(len(op.Mounts)))
	for i := range op.Mounts {
		c.mount(&op.Mounts[i])
	}
	c.uint(uint64(len(op.Ulimits)))
	for _, u := range op.Ulimits {
		c.str(u.Name)
		c.int(u.Soft)
		c.int(u.Hard)
	}
	c.int(op.ShmSize)
	c.bool(op.ReadonlyRoot)
	c.uint(uint64(len(op.ExitCodes)))
	for _, code := range op.ExitCodes {
		c.int(int64(code))
	}
	// Last, and only where there are some: keys of other steps stay.
	for _, d := range op.Devices {
		c.str(d.Name)
		c.bool(d.Optional)
	}
}

func (c *canon) mount(m *Mount) {
	c.str(string(m.Type))
	c.str(m.Target)
	c.int(int64(m.Input))
	c.str(m.Source)
	c.bool(m.Readonly)
	c.int(int64(m.Output))
	c.str(m.ID)
	c.str(string(m.Sharing))
	c.str(m.Env)
	c.bool(m.Required)
	c.uint(uint64(m.Mode))
	c.int(int64(m.UID))
	c.int(int64(m.GID))
	c.int(m.Size)
}

func (c *canon) file(op *File) {
	c.str("file")
	c.uint(uint64(len(op.Actions)))
	for _, a := range op.Actions {
		switch a := a.(type) {
		case *Copy:
			c.copy(a)
		case *Mkdir:
			c.str("mkdir")
			c.str(a.Path)
			c.uint(uint64(a.Mode))
			c.bool(a.Parents)
			c.owner(a.Owner)
		case *Mkfile:
			c.str("mkfile")
			c.str(a.Path)
			c.uint(uint64(a.Mode))
			c.str(string(a.Data))
			c.owner(a.Owner)
		case *Symlink:
			c.str("symlink")
			c.str(a.Path)
			c.str(a.Target)
			c.owner(a.Owner)
		case *Remove:
			c.str("remove")
			c.str(a.Path)
			c.bool(a.Wildcard)
			c.bool(a.AllowMissing)
		default:
			panic(fmt.Sprintf("plan: unknown action %T", a))
		}
	}
}

func (c *canon) copy(a *Copy) {
	c.str("copy")
	c.int(int64(a.Input))
	c.str(a.Source)
	c.str(a.Dest)
	c.bool(a.Wildcard)
	c.bool(a.AllowNoMatch)
	c.bool(a.ContentsOnly)
	c.bool(a.FollowLinks)
	c.bool(a.CreateParents)
	c.bool(a.Unpack)
	c.strs(a.Include)
	c.strs(a.Exclude)
	c.strs(a.Required)
	c.owner(a.Owner)
	c.str(a.Mode)
}

func (c *canon) owner(o *Owner) {
	c.bool(o != nil)
	if o != nil {
		c.str(o.User)
		c.str(o.Group)
	}
}
