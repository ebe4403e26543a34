package buildkit

import (
	"context"
	"encoding/json"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/plan"
)

// The JSON of BuildKit's file actions, in the order of their fields.

type copyAction struct {
	Src                              string    `json:"src,omitempty"`
	Dest                             string    `json:"dest,omitempty"`
	Owner                            *chownOpt `json:"owner,omitempty"`
	Mode                             int       `json:"mode,omitempty"`
	FollowSymlink                    bool      `json:"followSymlink,omitempty"`
	DirCopyContents                  bool      `json:"dirCopyContents,omitempty"`
	AttemptUnpackDockerCompatibility bool      `json:"attemptUnpackDockerCompatibility,omitempty"`
	CreateDestPath                   bool      `json:"createDestPath,omitempty"`
	AllowWildcard                    bool      `json:"allowWildcard,omitempty"`
	AllowEmptyWildcard               bool      `json:"allowEmptyWildcard,omitempty"`
	Timestamp                        int64     `json:"timestamp,omitempty"`
	IncludePatterns                  []string  `json:"include_patterns,omitempty"`
	ExcludePatterns                  []string  `json:"exclude_patterns,omitempty"`
	ModeStr                          string    `json:"modeStr,omitempty"`
	RequiredPaths                    []string  `json:"required_paths,omitempty"`
}

type mkfileAction struct {
	Path      string    `json:"path,omitempty"`
	Mode      uint32    `json:"mode,omitempty"`
	Data      []byte    `json:"data,omitempty"`
	Owner     *chownOpt `json:"owner,omitempty"`
	Timestamp int64     `json:"timestamp,omitempty"`
}

type mkdirAction struct {
	Path        string    `json:"path,omitempty"`
	Mode        uint32    `json:"mode,omitempty"`
	MakeParents bool      `json:"makeParents,omitempty"`
	Owner       *chownOpt `json:"owner,omitempty"`
	Timestamp   int64     `json:"timestamp,omitempty"`
}

type chownOpt struct {
	User  *userOpt `json:"user,omitempty"`
	Group *userOpt `json:"group,omitempty"`
}

type userOpt struct{ User userID }

type userID struct {
	ByName *namedUser `json:"byName,omitempty"`
	ByID   uint32     `json:"byId,omitempty"`
}

type namedUser struct {
	Name  string `json:"name,omitempty"`
	Input int    `json:"input,omitempty"`
}

// noTime is the timestamp of what has none.
const noTime = -1

// action is one action of an operation. Inputs beyond those of the operation
// are the results of earlier actions.
type action struct {
	body                  any
	input, second, output int
}

// fileDigest is the digest of an operation on files.
func fileDigest(actions []action) digest.Digest {
	var op struct {
		Type    string
		Actions [][]byte
		Indexes [][]int `json:"indexes,omitempty"`
	}
	op.Type = "buildkit.file.v0"
	usual := true
	for i, a := range actions {
		data, err := json.Marshal(a.body)
		if err != nil {
			panic(err) // structs of texts and numbers
		}
		op.Actions = append(op.Actions, data)
		op.Indexes = append(op.Indexes, []int{a.input, a.second, a.output})
		last := i == len(actions)-1
		usual = usual && (i > 0 || a.input == 0) && (i == 0 || a.input == len(actions)+i-1) && (a.second == empty || a.second == 1) &&
			a.output == map[bool]int{true: 0, false: skipOutput}[last]
	}
	if usual {
		op.Indexes = nil // as early versions of BuildKit did
	}
	return opDigest(op)
}

func (g *Graph) file(ctx context.Context, s *plan.Step, op *plan.File) *Key {
	if len(s.Inputs) == 0 || len(op.Actions) == 0 {
		return nil
	}
	in := inputs{g: g, ctx: ctx}
	base := in.add(s.Inputs[0])
	k := &Key{count: 1}
	if base >= 0 {
		below := in.list[base].key
		if below == nil {
			return nil
		}
		k.bottom, k.count = below.bottom, below.count+1
	}
	var actions []action
	selectors := map[int][]selector{}
	for i, a := range op.Actions {
		act := action{input: base, second: empty, output: skipOutput}
		if i == len(op.Actions)-1 {
			act.output = 0
		}
		switch a := a.(type) {
		case *plan.Copy:
			if a.Input < 1 || a.Input >= len(s.Inputs) {
				return nil
			}
			from := s.Inputs[a.Input]
			act.second = in.add(from)
			c := copyOf(a, from, base)
			if act.second >= 0 {
				selectors[act.second] = append(selectors[act.second], selector{
					path: c.Src, wildcard: c.AllowWildcard && plan.HasWildcards(c.Src), follow: c.FollowSymlink,
					include: c.IncludePatterns, exclude: c.ExcludePatterns, required: c.RequiredPaths,
				})
				c.Src = path.Base(c.Src)
			}
			act.body = c
		case *plan.Mkdir:
			dir := mkdirAction{Path: a.Path, Mode: a.Mode & 0o777, MakeParents: a.Parents, Owner: ownerOf(a.Owner, base), Timestamp: noTime}
			if !g.s.Epoch.IsZero() && a.Parents {
				dir.Timestamp = g.s.Epoch.UnixNano() // of WORKDIR
			}
			act.body = dir
		case *plan.Mkfile:
			act.body = mkfileAction{Path: a.Path, Mode: a.Mode & 0o777, Data: a.Data, Owner: ownerOf(a.Owner, base), Timestamp: noTime}
		default:
			return nil // no instruction makes it
		}
		actions = append(actions, act)
	}
	// The result of an action is numbered after the inputs of the operation.
	for i := range actions[1:] {
		actions[i+1].input = len(in.list) + i
	}
	k.digest = fileDigest(actions)
	for i, list := range selectors {
		if i == base {
			continue // it counts as a whole
		}
		paths := make([]string, len(list))
		for n, sel := range list {
			paths[n] = sel.path
		}
		slices.Sort(paths)
		slices.Reverse(paths)
		in.list[i].selector = digest.FromString(strings.Join(paths, "\x00"))
		in.list[i].selectors = dedupe(list)
	}
	k.deps = in.deps()
	if !known(k.deps) {
		return nil
	}
	return k
}

// dedupe leaves out what others select already.
func dedupe(list []selector) (out []selector) {
	for _, follow := range []bool{false, true} {
		var paths []string
		for _, sel := range list {
			if !sel.filtered() && sel.follow == follow {
				paths = append(paths, sel.path)
			}
		}
		for _, p := range outermost(paths) {
			out = append(out, selector{path: p, follow: follow})
		}
	}
	for _, sel := range list {
		if sel.filtered() {
			out = append(out, sel)
		}
	}
	slices.SortStableFunc(out, func(a, b selector) int { return strings.Compare(a.path, b.path) })
	return out
}

// copyOf is the action of a COPY or ADD.
func copyOf(a *plan.Copy, from plan.Input, base int) copyAction {
	c := copyAction{
		Src: path.Join("/", a.Source), Dest: a.Dest, Owner: ownerOf(a.Owner, base), Mode: -1,
		FollowSymlink: a.FollowLinks, DirCopyContents: a.ContentsOnly, AttemptUnpackDockerCompatibility: a.Unpack,
		CreateDestPath: a.CreateParents, AllowWildcard: a.Wildcard, AllowEmptyWildcard: a.AllowNoMatch, Timestamp: noTime,
		IncludePatterns: a.Include, ExcludePatterns: a.Exclude, RequiredPaths: a.Required,
	}
	if a.FollowLinks && a.ContentsOnly && !plan.HasWildcards(c.Src) {
		c.AllowWildcard, c.AllowEmptyWildcard = true, true // which means nothing without wildcards
	}
	if from.Step != nil && c.Src == "/" {
		if _, ok := from.Step.Op.(*plan.Git); ok {
			c.DirCopyContents = false // nor does this, for a root
		}
	}
	if a.Mode != "" {
		n, err := strconv.ParseUint(a.Mode, 8, 32)
		c.Mode = int(n)
		if err != nil {
			c.Mode, c.ModeStr = 0, a.Mode
		}
	}
	return c
}

// ownerOf translates an owner. Names are looked up in the input base.
func ownerOf(o *plan.Owner, base int) *chownOpt {
	if o == nil {
		return nil
	}
	one := func(name string) *userOpt {
		if name == "" {
			return &userOpt{}
		}
		if n, err := strconv.ParseInt(name, 10, 32); err == nil {
			return &userOpt{userID{ByID: uint32(n)}}
		}
		return &userOpt{userID{ByName: &namedUser{name, base}}}
	}
	c := &chownOpt{User: one(o.User)}
	if o.Group != "" {
		c.Group = one(o.Group)
	}
	return c
}
