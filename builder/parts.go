package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"

	"github.com/strake-build/strake/plan"
	"github.com/strake-build/strake/state/builds"
)

// partsOf says what a step says, in words that a person finds in the build
// file. Whatever is part of its key has a place in them, so that two steps with
// different ops have different parts.
func partsOf(s *plan.Step) (kind string, parts []builds.Part) {
	p := partList{}
	switch op := s.Op.(type) {
	case *plan.Image:
		kind = "image"
		p.add("base", "", op.Ref)
		p.add("digest", "", string(op.Digest))
		p.add("platform", "", platforms.FormatAll(op.Platform))
	case *plan.Local:
		kind = "local"
		p.add("context", "", op.Name)
	case *plan.Git:
		kind = "git"
		p.add("url", "", builds.Hide("", op.Remote))
		p.add("ref", "", op.Ref)
		p.add("checksum", "", op.Checksum)
		p.add("directory", "", op.Subdir)
		p.flag("--keep-git-dir", op.KeepGitDir)
		p.flag("submodules left out", op.SkipSubmodules)
	case *plan.HTTP:
		kind = "http"
		p.add("url", "", builds.Hide("", op.URL))
		p.add("checksum", "", string(op.Checksum))
		p.add("file name", "", op.Filename)
		p.mode(op.Mode)
		p.ids(op.UID, op.GID)
	case *plan.Exec:
		kind = "exec"
		p.exec(op)
		p.add("platform", "", platforms.FormatAll(s.Platform))
	case *plan.File:
		kind = "file"
		for i, a := range op.Actions {
			p.action(i, a)
		}
	case *plan.Merge:
		kind = "merge"
	case *plan.Diff:
		kind = "diff"
	}
	return kind, p
}

type partList []builds.Part

// add adds a part, unless it is empty.
func (p *partList) add(kind, name, value string) {
	if value != "" {
		*p = append(*p, builds.Part{Kind: kind, Name: name, Value: value})
	}
}

func (p *partList) flag(kind string, set bool) {
	if set {
		p.add(kind, "", "yes")
	}
}

func (p *partList) mode(mode uint32) {
	if mode != 0 {
		p.add("mode", "", fmt.Sprintf("%04o", mode))
	}
}

func (p *partList) ids(uid, gid int) {
	if uid != 0 || gid != 0 {
		p.add("owner", "", fmt.Sprintf("%d:%d", uid, gid))
	}
}

func (p *partList) exec(op *plan.Exec) {
	if n := len(op.Args); n == 3 && strings.HasPrefix(op.Args[1], "-") {
		p.add("shell", "", op.Args[0]+" "+op.Args[1])
		p.add("command", "", op.Args[2])
	} else {
		for i, a := range op.Args {
			p.add("command", numbered(i), quoteEmpty(a))
		}
	}
	args := map[string]bool{}
	for _, kv := range op.BuildArgs {
		name, _, _ := strings.Cut(kv, "=")
		args[name] = true
	}
	var names []string
	for _, kv := range op.Env {
		name, value, _ := strings.Cut(kv, "=")
		kind := "env"
		if args[name] {
			kind = "arg"
		}
		names = append(names, name)
		p.add(kind, name, quoteEmpty(builds.Hide(name, value)))
	}
	p.add("dir", "", op.Dir)
	p.add("user", "", op.User)
	p.add("network", "", string(op.Network))
	p.flag("--security=insecure", op.Insecure)
	p.add("hostname", "", op.Hostname)
	for i, h := range op.Hosts {
		p.add("host", numbered(i), h.Name+" "+h.IP)
	}
	for _, m := range op.Mounts {
		p.mount(m)
	}
	for i, d := range op.Devices {
		p.add("device", numbered(i), d.Name)
		p.flag("optional device", d.Optional)
	}
	for _, u := range op.Ulimits {
		p.add("ulimit", u.Name, fmt.Sprintf("%d:%d", u.Soft, u.Hard))
	}
	if op.ShmSize != 0 {
		p.add("shm-size", "", strconv.FormatInt(op.ShmSize, 10))
	}
	p.flag("read-only root", op.ReadonlyRoot)
	for i, code := range op.ExitCodes {
		p.add("exit code", numbered(i), strconv.Itoa(code))
	}
	// Last: it changes with every variable that is added.
	p.add("order of variables", "", strings.Join(names, " "))
}

// mount is a mount by its kind and where it is: secrets and agents by their ID.
func (p *partList) mount(m plan.Mount) {
	kind, name := string(m.Type)+" mount", m.Target
	var v []string
	set := func(key, value string) {
		if value != "" {
			v = append(v, key+"="+value)
		}
	}
	switch m.Type {
	case plan.MountSecret, plan.MountSSH:
		kind, name = string(m.Type), m.ID
		set("target", m.Target)
	case plan.MountCache:
		set("id", m.ID)
	}
	set("env", m.Env)
	if m.Input >= 0 && m.Type != plan.MountSecret && m.Type != plan.MountSSH && m.Type != plan.MountTmpfs {
		set("input", strconv.Itoa(m.Input))
	}
	set("source", m.Source)
	set("sharing", string(m.Sharing))
	if m.Readonly {
		v = append(v, "readonly")
	}
	if m.Required {
		v = append(v, "required")
	}
	if m.Mode != 0 {
		set("mode", fmt.Sprintf("%04o", m.Mode))
	}
	if m.UID != 0 || m.GID != 0 {
		set("owner", fmt.Sprintf("%d:%d", m.UID, m.GID))
	}
	if m.Size != 0 {
		set("size", strconv.FormatInt(m.Size, 10))
	}
	if m.Output != 0 {
		set("output", strconv.Itoa(m.Output))
	}
	p.add(kind, name, quoteEmpty(strings.Join(v, ",")))
}

func (p *partList) action(i int, a plan.Action) {
	n := numbered(i)
	switch a := a.(type) {
	case *plan.Copy:
		p.add("source", n, a.Source)
		p.add("destination", n, a.Dest)
		if o := a.Owner; o != nil {
			p.add("--chown", n, o.User+":"+o.Group)
		}
		p.add("--chmod", n, a.Mode)
		p.add("--exclude", n, strings.Join(a.Exclude, " "))
		p.add("include", n, strings.Join(a.Include, " "))
		p.add("required", n, strings.Join(a.Required, " "))
		var flags []string
		for name, set := range map[string]bool{
			"pattern": a.Wildcard, "may match nothing": a.AllowNoMatch, "contents only": a.ContentsOnly, "links followed": a.FollowLinks,
			"parents made": a.CreateParents, "unpacked": a.Unpack,
		} {
			if set {
				flags = append(flags, name)
			}
		}
		slices.Sort(flags)
		p.add("options", n, strings.Join(flags, ", "))
		if a.Input != 1 {
			p.add("input", n, strconv.Itoa(a.Input))
		}
	case *plan.Mkdir:
		p.add("directory", n, a.Path)
		p.add("mode", n, fmt.Sprintf("%04o", a.Mode))
		p.owner(n, a.Owner)
		if !a.Parents {
			p.add("options", n, "no parents")
		}
	case *plan.Mkfile:
		p.add("inline file", n, a.Path)
		p.add("mode", n, fmt.Sprintf("%04o", a.Mode))
		sum := sha256.Sum256(a.Data)
		p.add("text of inline file", n, fmt.Sprintf("%d bytes, sha256:%s", len(a.Data), hex.EncodeToString(sum[:6])))
		p.owner(n, a.Owner)
	case *plan.Symlink:
		p.add("symlink", n, a.Path+" -> "+a.Target)
		p.owner(n, a.Owner)
	case *plan.Remove:
		p.add("remove", n, a.Path)
		if a.Wildcard {
			p.add("options", n, "pattern")
		}
		if a.AllowMissing {
			p.add("options", n, "may be missing")
		}
	}
}

func (p *partList) owner(n string, o *plan.Owner) {
	if o != nil {
		p.add("owner", n, o.User+":"+o.Group)
	}
}

// numbered is the name of one of several parts; the first one needs none.
func numbered(i int) string {
	if i == 0 {
		return ""
	}
	return strconv.Itoa(i + 1)
}

// quoteEmpty makes an empty value one that shows that it is there.
func quoteEmpty(s string) string {
	if s == "" {
		return `""`
	}
	return s
}
