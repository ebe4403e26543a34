package provenance

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/strake-build/strake/plan"
)

// The steps of a plan in the JSON form of BuildKit's low-level build definition,
// which is what tools that read provenance know.

type buildStep struct {
	ID     string   `json:"id,omitempty"`
	Op     llbOp    `json:"op"`
	Inputs []string `json:"inputs,omitempty"`
}

type llbOp struct {
	Op       map[string]any `json:"Op"`
	Platform *llbPlatform   `json:"platform,omitempty"`
}

type llbPlatform struct {
	Architecture string `json:"Architecture,omitempty"`
	OS           string `json:"OS,omitempty"`
	Variant      string `json:"Variant,omitempty"`
	OSVersion    string `json:"OSVersion,omitempty"`
}

type object = map[string]any

// definition is a graph of steps, numbered inputs first.
type definition struct {
	steps   []buildStep
	index   map[*plan.Step]int
	mapping map[string]string
}

// define translates what result needs. The last step stands for the result
// itself.
func (b Build) define(result plan.Input) *definition {
	d := &definition{index: map[*plan.Step]int{}, mapping: map[string]string{}}
	digests := map[*plan.Step]string{}
	each(result.Step, func(s *plan.Step) {
		id := len(d.steps)
		d.index[s] = id
		step := buildStep{ID: stepID(id)}
		slots := make([]int, len(s.Inputs)) // of the plan's inputs among those that are not scratch
		h := sha256.New()
		h.Write(plan.Canonical(s.Op))
		fmt.Fprintf(h, "%q", s.Name)
		for i, in := range s.Inputs {
			if in.Step == nil {
				slots[i] = -1
				continue
			}
			slots[i] = len(step.Inputs)
			step.Inputs = append(step.Inputs, fmt.Sprintf("%s:%d", stepID(d.index[in.Step]), in.Output))
			fmt.Fprintf(h, "%s:%d", digests[in.Step], in.Output)
		}
		what := s
		if r := b.replacement(s); r != nil {
			what = r
		}
		step.Op = llbOp{Op: operation(what, slots, len(step.Inputs), b.localName), Platform: platform(s)}
		digests[s] = "sha256:" + hex.EncodeToString(h.Sum(nil))
		d.mapping[digests[s]] = step.ID
		d.steps = append(d.steps, step)
	})
	if result.Step == nil {
		return d
	}
	last := buildStep{ID: stepID(len(d.steps)), Op: llbOp{Op: object{}}, Inputs: []string{fmt.Sprintf("%s:%d", stepID(d.index[result.Step]), result.Output)}}
	sum := sha256.Sum256([]byte("result " + digests[result.Step] + strconv.Itoa(result.Output)))
	d.mapping["sha256:"+hex.EncodeToString(sum[:])] = last.ID
	d.steps = append(d.steps, last)
	return d
}

func stepID(n int) string { return "step" + strconv.Itoa(n) }

// each calls fn for s and each step that it needs, inputs first.
func each(s *plan.Step, fn func(*plan.Step)) {
	seen := map[*plan.Step]bool{}
	var walk func(*plan.Step)
	walk = func(s *plan.Step) {
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		for _, in := range s.Inputs {
			walk(in.Step)
		}
		fn(s)
	}
	walk(s)
}

func platform(s *plan.Step) *llbPlatform {
	p := s.Platform
	if op, ok := s.Op.(*plan.Image); ok {
		p = op.Platform
	}
	if p.OS == "" {
		return nil
	}
	p = platforms.Normalize(p)
	return &llbPlatform{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, OSVersion: p.OSVersion}
}

func operation(s *plan.Step, slots []int, inputs int, local func(string) string) object {
	switch op := s.Op.(type) {
	case *plan.Image:
		scheme := "docker-image://"
		if op.Layout != "" {
			scheme = "oci-layout://"
		}
		return source(scheme+atDigest(op.Ref, op.Digest.String()), nil)
	case *plan.Local:
		attrs := map[string]string{}
		if len(op.Exclude) > 0 {
			data, _ := json.Marshal(op.Exclude) // strings
			attrs["local.excludepatterns"] = string(data)
		}
		return source("local://"+local(op.Name), attrs)
	case *plan.Git:
		attrs := map[string]string{"git.fullurl": redact(op.Remote)}
		set(attrs, "git.keepgitdir", op.KeepGitDir)
		set(attrs, "git.skipsubmodules", op.SkipSubmodules)
		if op.Checksum != "" {
			attrs["git.checksum"] = op.Checksum
		}
		if op.AuthToken != "" {
			attrs["git.authtokensecret"] = op.AuthToken
		}
		return source("git://"+strings.TrimPrefix(strings.TrimPrefix(gitURI(op, true), "https://"), "http://"), attrs)
	case *plan.HTTP:
		attrs := map[string]string{}
		if op.Checksum != "" {
			attrs["http.checksum"] = op.Checksum.String()
		}
		if op.Filename != "" {
			attrs["http.filename"] = op.Filename
		}
		if op.Mode != 0 {
			attrs["http.perm"] = "0" + strconv.FormatUint(uint64(op.Mode), 8)
		}
		return source(redact(op.URL), attrs)
	case *plan.Exec:
		return object{"exec": execution(op, slots)}
	case *plan.File:
		return object{"file": object{"actions": actions(op, slots, inputs)}}
	case *plan.Merge:
		var list []object
		for _, slot := range slots {
			if slot >= 0 {
				list = append(list, inputOf(slot))
			}
		}
		return object{"merge": object{"inputs": list}}
	case *plan.Diff:
		return object{"diff": object{"lower": inputOf(slots[0]), "upper": inputOf(slots[1])}}
	}
	return object{}
}

func inputOf(slot int) object {
	if slot == 0 {
		return object{} // as protobuf does
	}
	return object{"input": slot}
}

func source(identifier string, attrs map[string]string) object {
	src := object{"identifier": identifier}
	if len(attrs) > 0 {
		src["attrs"] = attrs
	}
	return object{"source": src}
}

func set(attrs map[string]string, key string, on bool) {
	if on {
		attrs[key] = "true"
	}
}

// atDigest adds a digest to a reference that has none.
func atDigest(ref, digest string) string {
	if digest == "" || strings.Contains(ref, "@") {
		return ref
	}
	return ref + "@" + digest
}

// Numbers of kinds of mounts.
var mountTypes = map[plan.MountType]int{plan.MountSecret: 1, plan.MountSSH: 2, plan.MountCache: 3, plan.MountTmpfs: 4}

func execution(op *plan.Exec, slots []int) object {
	meta := object{"args": op.Args, "cwd": op.Dir, "removeMountStubsRecursive": true}
	if len(op.Env) > 0 {
		meta["env"] = op.Env
	}
	if op.User != "" {
		meta["user"] = op.User
	}
	if op.Hostname != "" {
		meta["hostname"] = op.Hostname
	}
	var hosts []object
	for _, h := range op.Hosts {
		hosts = append(hosts, object{"Host": h.Name, "IP": h.IP})
	}
	if hosts != nil {
		meta["extraHosts"] = hosts
	}
	var limits []object
	for _, u := range op.Ulimits {
		limits = append(limits, object{"Name": u.Name, "Soft": u.Soft, "Hard": u.Hard})
	}
	if limits != nil {
		meta["ulimit"] = limits
	}
	if len(op.ExitCodes) > 0 {
		meta["validExitCodes"] = op.ExitCodes
	}
	root := object{"dest": "/"}
	if len(slots) > 0 && slots[0] != 0 {
		root["input"] = slots[0]
	}
	if op.ReadonlyRoot {
		root["readonly"] = true
	}
	mounts := []object{root}
	var secretEnv []object
	for _, m := range op.Mounts {
		if m.Type == plan.MountSecret && m.Env != "" {
			secretEnv = append(secretEnv, object{"ID": m.ID, "name": m.Env, "optional": !m.Required})
			if m.Target == "" {
				continue
			}
		}
		mounts = append(mounts, mount(m, slots))
	}
	x := object{"meta": meta, "mounts": mounts}
	var devices []object
	for _, d := range op.Devices {
		devices = append(devices, object{"name": d.Name, "optional": d.Optional})
	}
	if devices != nil {
		x["cdiDevices"] = devices
	}
	switch op.Network {
	case plan.NetworkHost:
		x["network"] = 1
	case plan.NetworkNone:
		x["network"] = 2
	}
	if op.Insecure {
		x["security"] = 1
	}
	if secretEnv != nil {
		x["secretenv"] = secretEnv
	}
	return x
}

func mount(m plan.Mount, slots []int) object {
	out := object{"dest": m.Target, "output": -1}
	if m.Output > 0 {
		out["output"] = m.Output
	}
	slot := -1
	if m.Input >= 0 && m.Input < len(slots) && (m.Type == plan.MountBind || m.Type == plan.MountCache) {
		slot = slots[m.Input]
	}
	if slot != 0 {
		out["input"] = slot
	}
	if m.Source != "" {
		out["selector"] = m.Source
	}
	if m.Readonly {
		out["readonly"] = true
	}
	if n := mountTypes[m.Type]; n != 0 {
		out["mountType"] = n
	}
	owned := object{"ID": m.ID, "mode": m.Mode, "optional": !m.Required}
	if m.UID != 0 {
		owned["uid"] = m.UID
	}
	if m.GID != 0 {
		owned["gid"] = m.GID
	}
	switch m.Type {
	case plan.MountCache:
		out["cacheOpt"] = object{"ID": m.ID, "sharing": map[plan.Sharing]int{plan.SharingPrivate: 1, plan.SharingLocked: 2}[m.Sharing]}
	case plan.MountTmpfs:
		out["TmpfsOpt"] = object{"size": m.Size}
	case plan.MountSecret:
		out["secretOpt"] = owned
	case plan.MountSSH:
		out["SSHOpt"] = owned
	}
	return out
}

// actions are those of a File. Each works on the result of the one before it,
// which is numbered after the inputs.
func actions(op *plan.File, slots []int, inputs int) []object {
	var list []object
	for i, a := range op.Actions {
		out := object{"input": inputs + i - 1, "secondaryInput": -1, "output": -1}
		if i == 0 {
			out["input"] = -1
			if len(slots) > 0 {
				out["input"] = slots[0]
			}
		}
		if i == len(op.Actions)-1 {
			out["output"] = 0
		}
		switch a := a.(type) {
		case *plan.Copy:
			if a.Input < len(slots) {
				out["secondaryInput"] = slots[a.Input]
			}
			out["Action"] = object{"copy": copyAction(a)}
		case *plan.Mkdir:
			out["Action"] = object{"mkdir": owned(object{"path": a.Path, "mode": a.Mode, "makeParents": a.Parents, "timestamp": -1}, a.Owner)}
		case *plan.Mkfile:
			out["Action"] = object{"mkfile": owned(object{"path": a.Path, "mode": a.Mode, "data": a.Data, "timestamp": -1}, a.Owner)}
		case *plan.Symlink:
			out["Action"] = object{"symlink": owned(object{"oldpath": a.Target, "newpath": a.Path, "timestamp": -1}, a.Owner)}
		case *plan.Remove:
			out["Action"] = object{"rm": object{"path": a.Path, "allowNotFound": a.AllowMissing, "allowWildcard": a.Wildcard}}
		}
		list = append(list, out)
	}
	return list
}

func copyAction(a *plan.Copy) object {
	c := owned(object{
		"src": a.Source, "dest": a.Dest, "mode": -1, "followSymlink": a.FollowLinks, "dirCopyContents": a.ContentsOnly,
		"attemptUnpackDockerCompatibility": a.Unpack, "createDestPath": a.CreateParents, "allowWildcard": a.Wildcard,
		"allowEmptyWildcard": a.AllowNoMatch, "timestamp": -1,
	}, a.Owner)
	if a.Mode != "" {
		c["modeStr"] = a.Mode
	}
	for key, list := range map[string][]string{"include_patterns": a.Include, "exclude_patterns": a.Exclude, "required_paths": a.Required} {
		if len(list) > 0 {
			c[key] = list
		}
	}
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == false })
	return c
}

func owned(o object, owner *plan.Owner) object {
	if owner == nil {
		return o
	}
	side := func(name string) object {
		if n, err := strconv.ParseUint(name, 10, 32); err == nil {
			return object{"User": object{"byId": n}}
		}
		return object{"User": object{"byName": object{"name": name}}}
	}
	who := object{}
	if owner.User != "" {
		who["user"] = side(owner.User)
	}
	if owner.Group != "" {
		who["group"] = side(owner.Group)
	}
	o["owner"] = who
	return o
}

// gitURI is the repository with its ref, and with the directory in it.
func gitURI(op *plan.Git, subdir bool) string {
	uri, fragment := redact(op.Remote), op.Ref
	if subdir && op.Subdir != "" && op.Subdir != "/" {
		fragment += ":" + strings.TrimPrefix(op.Subdir, "/")
	}
	if fragment != "" {
		uri += "#" + fragment
	}
	return uri
}

// redact hides the user and password of a URL.
func redact(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil || u.Host == "" {
		return s
	}
	if _, ok := u.User.Password(); ok {
		u.User = url.UserPassword("xxxxx", "xxxxx")
	} else {
		if u.Scheme == "ssh" || u.Scheme == "git" {
			return s // the user of the server, which is no secret
		}
		u.User = url.User("xxxxx")
	}
	return u.String()
}

func formatPlatform(p ocispec.Platform) string { return platforms.FormatAll(platforms.Normalize(p)) }
