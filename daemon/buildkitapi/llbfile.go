package buildkitapi

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-build/strake/plan"
)

// fileOp translates changes to files. In BuildKit an op is a graph of actions:
// each starts from an input of the op or from the result of another action, and
// copies from one. A chain of them becomes one step, since nobody sees what is
// between them.
func (t *translation) fileOp(n *node, step *plan.Step, actions []*pb.FileAction, inputs []plan.Input) error {
	if len(actions) == 0 {
		return errors.New("file op without actions")
	}
	f := &fileActions{actions: actions, inputs: inputs, model: step, done: map[int]plan.Input{}, uses: make([]int, len(actions))}
	for i, a := range actions {
		if a == nil || a.Action == nil {
			return fmt.Errorf("file op with an empty action %d", i)
		}
		for _, in := range []int64{a.Input, a.SecondaryInput} {
			if in < -1 || in >= int64(len(inputs)+i) {
				return fmt.Errorf("action %d starts from %d, which there is not", i, in)
			}
			if k := in - int64(len(inputs)); k >= 0 {
				f.uses[k]++
			}
		}
	}
	for i, a := range actions {
		if a.Output < 0 {
			continue
		}
		if _, ok := n.outputs[a.Output]; ok {
			return fmt.Errorf("two actions are output %d", a.Output)
		}
		in, err := f.result(i)
		if err != nil {
			return err
		}
		n.outputs[a.Output] = in
	}
	for _, in := range f.done {
		if in.Step != step && in.Step.Name == "" {
			in.Step.Name = fileName(actions)
		}
	}
	return nil
}

type fileActions struct {
	actions []*pb.FileAction
	inputs  []plan.Input
	model   *plan.Step
	done    map[int]plan.Input
	uses    []int
}

// tree is an input of the op, or the result of one of its actions.
func (f *fileActions) tree(i int64) (plan.Input, error) {
	switch {
	case i < 0:
		return plan.Input{}, nil
	case i < int64(len(f.inputs)):
		return f.inputs[i], nil
	}
	return f.result(int(i) - len(f.inputs))
}

// result is the result of action i.
func (f *fileActions) result(i int) (plan.Input, error) {
	if in, ok := f.done[i]; ok {
		return in, nil
	}
	// The chain of actions that end in this one.
	chain := []int{i}
	base := f.actions[i].Input
	for {
		k := int(base) - len(f.inputs)
		if k < 0 || f.uses[k] != 1 || f.actions[k].Output >= 0 {
			break
		}
		chain = append(chain, k)
		base = f.actions[k].Input
	}
	step := *f.model
	from, err := f.tree(base)
	if err != nil {
		return plan.Input{}, err
	}
	step.Inputs = []plan.Input{from}
	op := &plan.File{}
	for c := len(chain) - 1; c >= 0; c-- {
		a, err := f.action(&step, f.actions[chain[c]])
		if err != nil {
			return plan.Input{}, err
		}
		op.Actions = append(op.Actions, a)
	}
	step.Op = op
	f.done[i] = plan.Input{Step: &step}
	return f.done[i], nil
}

func (f *fileActions) action(step *plan.Step, a *pb.FileAction) (plan.Action, error) {
	switch x := a.Action.(type) {
	case *pb.FileAction_Copy:
		return f.copy(step, a, x.Copy)
	case *pb.FileAction_Mkdir:
		owner, err := ownerOf(x.Mkdir.GetOwner())
		return &plan.Mkdir{Path: abs(x.Mkdir.GetPath()), Mode: mode(x.Mkdir.GetMode()), Parents: x.Mkdir.GetMakeParents(), Owner: owner}, err
	case *pb.FileAction_Mkfile:
		owner, err := ownerOf(x.Mkfile.GetOwner())
		return &plan.Mkfile{Path: abs(x.Mkfile.GetPath()), Mode: mode(x.Mkfile.GetMode()), Data: x.Mkfile.GetData(), Owner: owner}, err
	case *pb.FileAction_Symlink:
		owner, err := ownerOf(x.Symlink.GetOwner())
		return &plan.Symlink{Path: abs(x.Symlink.GetNewpath()), Target: x.Symlink.GetOldpath(), Owner: owner}, err
	case *pb.FileAction_Rm:
		return &plan.Remove{Path: abs(x.Rm.GetPath()), Wildcard: x.Rm.GetAllowWildcard(), AllowMissing: x.Rm.GetAllowNotFound()}, nil
	}
	return nil, errors.New("a file action of a kind that is not known")
}

func (f *fileActions) copy(step *plan.Step, a *pb.FileAction, c *pb.FileActionCopy) (plan.Action, error) {
	owner, err := ownerOf(c.GetOwner())
	if err != nil {
		return nil, err
	}
	src, err := f.tree(a.SecondaryInput)
	if err != nil {
		return nil, err
	}
	in := 0
	for i := 1; i < len(step.Inputs); i++ {
		if step.Inputs[i] == src {
			in = i
		}
	}
	if in == 0 {
		in = len(step.Inputs)
		step.Inputs = append(step.Inputs, src)
	}
	out := &plan.Copy{
		Input: in, Source: abs(c.GetSrc()), Dest: absDest(c.GetDest()), Wildcard: c.GetAllowWildcard(), AllowNoMatch: c.GetAllowEmptyWildcard(),
		ContentsOnly: c.GetDirCopyContents(), FollowLinks: c.GetFollowSymlink(), CreateParents: c.GetCreateDestPath(),
		Unpack: c.GetAttemptUnpackDockerCompatibility(), Include: c.GetIncludePatterns(), Exclude: c.GetExcludePatterns(),
		Required: c.GetRequiredPaths(), Owner: owner, Mode: c.GetModeStr(),
	}
	if out.Mode == "" && c.GetMode() >= 0 {
		out.Mode = "0" + strconv.FormatInt(int64(mode(c.GetMode())), 8)
	}
	return out, nil
}

func abs(p string) string { return path.Join("/", p) }

// absDest keeps what tells that a destination is a directory.
func absDest(p string) string {
	out := abs(p)
	if out != "/" && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.")) {
		out += "/"
	}
	return out
}

func mode(m int32) uint32 { return uint32(m) & 0o7777 }

// ownerOf reads an owner; nil if there is none. Names are looked up in the tree
// that the op starts from.
func ownerOf(o *pb.ChownOpt) (*plan.Owner, error) {
	if o == nil || o.User == nil && o.Group == nil {
		return nil, nil
	}
	one := func(u *pb.UserOpt) (string, error) {
		switch x := u.GetUser().(type) {
		case nil:
			return "", nil
		case *pb.UserOpt_ByID:
			return strconv.FormatUint(uint64(x.ByID), 10), nil
		case *pb.UserOpt_ByName:
			return x.ByName.GetName(), nil
		}
		return "", errors.New("an owner of a kind that is not known")
	}
	user, err := one(o.User)
	if err != nil {
		return nil, err
	}
	group, err := one(o.Group)
	return &plan.Owner{User: user, Group: group}, err
}

// fileName is the name of a file op that has none.
func fileName(actions []*pb.FileAction) string {
	var names []string
	for _, a := range actions {
		switch x := a.GetAction().(type) {
		case *pb.FileAction_Mkdir:
			names = append(names, "mkdir "+x.Mkdir.GetPath())
		case *pb.FileAction_Mkfile:
			names = append(names, "mkfile "+x.Mkfile.GetPath())
		case *pb.FileAction_Symlink:
			names = append(names, "symlink "+x.Symlink.GetNewpath()+" -> "+x.Symlink.GetOldpath())
		case *pb.FileAction_Rm:
			names = append(names, "rm "+x.Rm.GetPath())
		case *pb.FileAction_Copy:
			names = append(names, "copy "+x.Copy.GetSrc()+" "+x.Copy.GetDest())
		}
	}
	return strings.Join(names, ", ")
}
