package buildkit

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
)

// The JSON of BuildKit's ExecOp, in the order of its fields: the digest of an
// operation is that of these bytes.

type execOp struct {
	Meta      *execMeta   `json:"meta,omitempty"`
	Mounts    []execMount `json:"mounts,omitempty"`
	Network   int         `json:"network,omitempty"`
	Security  int         `json:"security,omitempty"`
	SecretEnv []secretEnv `json:"secretenv,omitempty"`
}

type execMeta struct {
	Args                      []string `json:"args,omitempty"`
	Env                       []string `json:"env,omitempty"`
	Cwd                       string   `json:"cwd,omitempty"`
	User                      string   `json:"user,omitempty"`
	ExtraHosts                []host   `json:"extraHosts,omitempty"`
	Hostname                  string   `json:"hostname,omitempty"`
	Ulimit                    []ulimit `json:"ulimit,omitempty"`
	CgroupParent              string   `json:"cgroupParent,omitempty"`
	RemoveMountStubsRecursive bool     `json:"removeMountStubsRecursive,omitempty"`
	ValidExitCodes            []int    `json:"validExitCodes,omitempty"`
}

type host struct {
	Host string `json:"Host,omitempty"`
}

type ulimit struct {
	Name string `json:"Name,omitempty"`
	Soft int64  `json:"Soft,omitempty"`
	Hard int64  `json:"Hard,omitempty"`
}

type secretEnv struct {
	ID       string `json:"ID,omitempty"`
	Name     string `json:"name,omitempty"`
	Optional bool   `json:"optional,omitempty"`
}

type execMount struct {
	Input     int        `json:"input,omitempty"`
	Dest      string     `json:"dest,omitempty"`
	Output    int        `json:"output,omitempty"`
	Readonly  bool       `json:"readonly,omitempty"`
	MountType int        `json:"mountType,omitempty"`
	TmpfsOpt  *tmpfsOpt  `json:"TmpfsOpt,omitempty"`
	CacheOpt  *cacheOpt  `json:"cacheOpt,omitempty"`
	SecretOpt *secretOpt `json:"secretOpt,omitempty"`
	SSHOpt    *secretOpt `json:"SSHOpt,omitempty"`

	source   plan.Input
	made     *Key
	selector string
}

type tmpfsOpt struct {
	Size int64 `json:"size,omitempty"`
}

type cacheOpt struct {
	ID      string `json:"ID,omitempty"`
	Sharing int    `json:"sharing,omitempty"`
}

type secretOpt struct {
	ID       string `json:"ID,omitempty"`
	UID      int    `json:"uid,omitempty"`
	GID      int    `json:"gid,omitempty"`
	Mode     uint32 `json:"mode,omitempty"`
	Optional bool   `json:"optional,omitempty"`
}

// Kinds of mounts.
const (
	mountSecret = 1 + iota
	mountSSH
	mountCache
	mountTmpfs
)

// skipOutput is the output of a mount that is no result, and empty the input of
// one that starts from nothing.
const (
	skipOutput = -1
	empty      = -1
)

func (g *Graph) exec(ctx context.Context, s *plan.Step, op *plan.Exec) *Key {
	mounts, ok := execMounts(s, op)
	if !ok || len(s.Inputs) == 0 {
		return nil
	}
	// Inputs are numbered in the order of the mounts.
	in := inputs{g: g, ctx: ctx}
	paths := map[int][]string{}
	for i := range mounts {
		m := &mounts[i]
		switch {
		case m.made != nil:
			m.Input = in.addMade(m.made)
		default:
			m.Input = in.add(m.source)
		}
		if m.Input < 0 {
			continue
		}
		one := &in.list[m.Input]
		paths[m.Input] = append(paths[m.Input], path.Join("/", m.selector))
		// Contents count where the step can't write to them, but never those
		// of the root.
		one.whole = m.Dest != "/" && (m.Output == skipOutput || m.Readonly)
	}
	root := slices.IndexFunc(mounts, func(m execMount) bool { return m.Dest == "/" })
	if root < 0 || mounts[root].Input < 0 || in.list[mounts[root].Input].key == nil {
		return nil
	}
	base := in.list[mounts[root].Input].key
	for i, list := range paths {
		one := &in.list[i]
		one.selector = digest.FromString(strings.Join(list, "\x00"))
		if !one.whole {
			continue
		}
		for _, p := range outermost(list) {
			if p == "/" {
				one.selectors = nil
				break
			}
			one.selectors = append(one.selectors, selector{path: p, follow: true})
		}
	}
	x := execOp{Meta: meta(op), Mounts: append(mounts, secretMounts(op)...)}
	if len(x.Mounts) == 1 && !x.Mounts[0].Readonly {
		x.Mounts = nil // as early versions of BuildKit did
	}
	switch op.Network {
	case plan.NetworkHost:
		x.Network = 1
	case plan.NetworkNone:
		x.Network = 2
	}
	if op.Insecure {
		x.Security = 1
	}
	for _, m := range op.Mounts {
		if m.Type == plan.MountSecret && m.Env != "" {
			x.SecretEnv = append(x.SecretEnv, secretEnv{m.ID, m.Env, !m.Required})
		}
	}
	p := platforms.Normalize(s.Platform)
	k := &Key{bottom: base.bottom, count: base.count + 1, deps: in.deps()}
	k.digest = opDigest(struct {
		Type       string
		Exec       execOp
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
	}{"buildkit.exec.v0", x, p.OS, p.Architecture, p.Variant, p.OSVersion, p.OSFeatures})
	if !known(k.deps) {
		return nil
	}
	return k
}

func meta(op *plan.Exec) *execMeta {
	m := &execMeta{
		Args: op.Args, Env: op.Env, Cwd: op.Dir, User: op.User, Hostname: op.Hostname, CgroupParent: op.Resources.CgroupParent,
		RemoveMountStubsRecursive: true, ValidExitCodes: op.ExitCodes,
	}
	for _, h := range op.Hosts {
		m.ExtraHosts = append(m.ExtraHosts, host{h.Name}) // their addresses do not count
	}
	for _, u := range op.Ulimits {
		m.Ulimit = append(m.Ulimit, ulimit{u.Name, u.Soft, u.Hard})
	}
	return m
}

// execMounts are the root and the mounts that have inputs, and tmpfs, sorted by
// where they are.
func execMounts(s *plan.Step, op *plan.Exec) ([]execMount, bool) {
	if op.ReadonlyRoot || len(op.Devices) > 0 || len(s.Inputs) == 0 {
		return nil, false
	}
	mounts := []execMount{{Dest: "/", source: s.Inputs[0]}}
	for _, m := range op.Mounts {
		if m.Output != 0 {
			return nil, false
		}
		x := execMount{Dest: cmp.Or(m.Given, m.Target), Output: skipOutput, Readonly: m.Readonly, selector: m.Source}
		if m.Input >= 0 && m.Input < len(s.Inputs) {
			x.source = s.Inputs[m.Input]
		}
		switch m.Type {
		case plan.MountBind:
		case plan.MountCache:
			x.MountType, x.CacheOpt = mountCache, cacheOptions(m, x.Dest)
			if m.Mode != 0 && path.Join("/", m.Source) == "/" {
				if x.source.Step != nil {
					return nil, false // a directory made on top of another step
				}
				x.made, x.selector = ownedCache(m), "/cache"
			}
		case plan.MountTmpfs:
			x.MountType, x.TmpfsOpt, x.selector = mountTmpfs, &tmpfsOpt{m.Size}, ""
			x.source = plan.Input{}
		default:
			continue
		}
		mounts = append(mounts, x)
	}
	if op.ShmSize > 0 {
		mounts = append(mounts, execMount{Dest: "/dev/shm", Output: skipOutput, MountType: mountTmpfs, TmpfsOpt: &tmpfsOpt{op.ShmSize}})
	}
	slices.SortStableFunc(mounts, func(a, b execMount) int { return strings.Compare(a.Dest, b.Dest) })
	return mounts, true
}

// cacheOptions are left out but for those that a Dockerfile has without saying.
func cacheOptions(m plan.Mount, dest string) *cacheOpt {
	if m.Sharing == plan.SharingShared || m.Sharing == "" {
		id := m.ID
		if id == m.Target {
			id = "/" + id // BuildKit's frontend puts an empty namespace before it
		}
		if _, target, ok := strings.Cut(id, "/"); ok && target == dest {
			return &cacheOpt{ID: id}
		}
	}
	return &cacheOpt{}
}

// ownedCache is the step that makes a directory for a cache mount with an owner
// or mode.
func ownedCache(m plan.Mount) *Key {
	id := func(n int) *userOpt { return &userOpt{userID{ByID: uint32(n)}} }
	k := &Key{count: 1, digest: fileDigest([]action{{
		input: empty, second: empty,
		body: mkdirAction{Path: "/cache", Mode: m.Mode & 0o777, Owner: &chownOpt{id(m.UID), id(m.GID)}, Timestamp: noTime},
	}})}
	k.identity.find = k.identify
	return k
}

// secretMounts are the files of secrets, then the sockets of agents.
func secretMounts(op *plan.Exec) (mounts []execMount) {
	for _, kind := range []plan.MountType{plan.MountSecret, plan.MountSSH} {
		for _, m := range op.Mounts {
			if m.Type != kind || m.Target == "" {
				continue
			}
			x := execMount{Input: empty, Dest: m.Target}
			o := &secretOpt{m.ID, m.UID, m.GID, m.Mode, !m.Required}
			if kind == plan.MountSecret {
				x.MountType, x.SecretOpt = mountSecret, o
			} else {
				if o.ID == "default" {
					o.ID = "" // as a Dockerfile has it that names none
				}
				x.MountType, x.SSHOpt = mountSSH, o
			}
			mounts = append(mounts, x)
		}
	}
	return mounts
}
