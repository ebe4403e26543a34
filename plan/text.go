package plan

import (
	"fmt"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Text describes the build for people and golden files: its targets, then each
// step once, inputs first, with every field that is set, then the warnings. It
// leaves the image configurations out. Equal builds have equal texts.
func (b *Build) Text() string {
	t := text{ids: map[*Step]int{}}
	for _, target := range b.Targets {
		t.visit(target.Step)
	}
	for _, target := range b.Targets {
		fmt.Fprintf(&t.b, "target %s stage %q: %s\n", platformText(target.Platform), target.Stage, t.ref(Input{Step: target.Step}))
	}
	for i, s := range t.order {
		t.step(i+1, s)
	}
	for _, w := range b.Warnings {
		fmt.Fprintf(&t.b, "warning %s %s: %s\n", w.Source, w.Rule, w.Text)
	}
	return t.b.String()
}

// text is a text in the making.
type text struct {
	b     strings.Builder
	ids   map[*Step]int // numbers from 1, in the order of first visit
	order []*Step
}

// visit numbers a step after its inputs. It keeps its own stack, for chains may
// be longer than a goroutine's should be.
func (t *text) visit(root *Step) {
	type frame struct {
		step *Step
		next int // input to look at
	}
	stack := []frame{{step: root}}
	for len(stack) > 0 {
		f := &stack[len(stack)-1]
		if f.step == nil || t.ids[f.step] != 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		if f.next < len(f.step.Inputs) {
			f.next++
			stack = append(stack, frame{step: f.step.Inputs[f.next-1].Step})
			continue
		}
		t.order = append(t.order, f.step)
		t.ids[f.step] = len(t.order)
	}
}

func (t *text) ref(in Input) string {
	if in.Step == nil {
		return "scratch"
	}
	s := "#" + strconv.Itoa(t.ids[in.Step])
	if in.Output != 0 {
		s += "." + strconv.Itoa(in.Output)
	}
	return s
}

func (t *text) step(id int, s *Step) {
	fmt.Fprintf(&t.b, "\n#%d %s\n", id, s.Name)
	var flags []string
	if s.Internal {
		flags = append(flags, "internal")
	}
	if s.NoCache {
		flags = append(flags, "no-cache")
	}
	if s.Platform.OS != "" {
		flags = append(flags, platformText(s.Platform))
	}
	if s.Source != nil {
		flags = append(flags, s.Source.String())
	}
	if len(flags) > 0 {
		t.line("  "+strings.Join(flags, " "), nil)
	}
	if len(s.Inputs) > 0 {
		refs := make([]string, len(s.Inputs))
		for i, in := range s.Inputs {
			refs[i] = t.ref(in)
		}
		t.line("  inputs "+strings.Join(refs, " "), nil)
	}
	switch op := s.Op.(type) {
	case *Image:
		t.line("  image", fields{{"ref", op.Ref}, {"digest", string(op.Digest)}, {"platform", platformText(op.Platform)}, {"layout", op.Layout}})
	case *Local:
		t.line("  local", fields{{"name", op.Name}, {"exclude", op.Exclude}, {"ignore-file", op.IgnoreFile}})
	case *Git:
		t.line("  git", fields{
			{"remote", op.Remote}, {"ref", op.Ref}, {"checksum", op.Checksum}, {"subdir", op.Subdir},
			{"keep-git-dir", op.KeepGitDir}, {"skip-submodules", op.SkipSubmodules}, {"auth-token", op.AuthToken},
		})
	case *HTTP:
		t.line("  http", fields{
			{"url", op.URL}, {"checksum", string(op.Checksum)}, {"filename", op.Filename},
			{"mode", modeText(op.Mode)}, {"uid", op.UID}, {"gid", op.GID},
		})
	case *Exec:
		t.exec(op)
	case *File:
		for _, a := range op.Actions {
			t.action(a)
		}
	case *Merge:
		t.line("  merge", nil)
	case *Diff:
		t.line("  diff", nil)
	}
}

func (t *text) exec(op *Exec) {
	t.line("  exec", fields{
		{"args", op.Args}, {"dir", op.Dir}, {"user", op.User}, {"network", string(op.Network)}, {"insecure", op.Insecure},
		{"hostname", op.Hostname}, {"shm-size", op.ShmSize}, {"readonly-root", op.ReadonlyRoot},
	})
	for _, e := range op.Env {
		t.line("  env "+strconv.Quote(e), nil)
	}
	for _, h := range op.Hosts {
		t.line("  host", fields{{"name", h.Name}, {"ip", h.IP}})
	}
	for _, u := range op.Ulimits {
		fmt.Fprintf(&t.b, "  ulimit %s=%d:%d\n", u.Name, u.Soft, u.Hard)
	}
	for _, d := range op.Devices {
		t.line("  device "+strconv.Quote(d.Name), fields{{"optional", d.Optional}})
	}
	for _, m := range op.Mounts {
		input := ""
		if m.Input >= 0 {
			input = strconv.Itoa(m.Input)
		}
		t.line("  mount "+string(m.Type), fields{
			{"target", m.Target}, {"input", input}, {"source", m.Source}, {"readonly", m.Readonly}, {"output", m.Output},
			{"id", m.ID}, {"sharing", string(m.Sharing)}, {"env", m.Env}, {"required", m.Required},
			{"mode", modeText(m.Mode)}, {"uid", m.UID}, {"gid", m.GID}, {"size", m.Size},
		})
	}
	if len(op.ExitCodes) > 0 {
		fmt.Fprintf(&t.b, "  exit-codes %v\n", op.ExitCodes)
	}
	if op.Resources != (Resources{}) {
		fmt.Fprintf(&t.b, "  resources %+v\n", op.Resources)
	}
	if len(op.Proxy) > 0 {
		t.line("  proxy", fields{{"env", op.Proxy}})
	}
	if len(op.BuildArgs) > 0 {
		t.line("  build-args", fields{{"", op.BuildArgs}})
	}
}

func (t *text) action(a Action) {
	switch a := a.(type) {
	case *Copy:
		t.line("  copy", fields{
			{"input", strconv.Itoa(a.Input)}, {"source", a.Source}, {"dest", a.Dest}, {"wildcard", a.Wildcard},
			{"allow-no-match", a.AllowNoMatch}, {"contents-only", a.ContentsOnly}, {"follow-links", a.FollowLinks},
			{"create-parents", a.CreateParents}, {"unpack", a.Unpack}, {"include", a.Include}, {"exclude", a.Exclude},
			{"required", a.Required}, {"owner", a.Owner}, {"mode", a.Mode},
		})
	case *Mkdir:
		t.line("  mkdir", fields{{"path", a.Path}, {"mode", modeText(a.Mode)}, {"parents", a.Parents}, {"owner", a.Owner}})
	case *Mkfile:
		t.line("  mkfile", fields{{"path", a.Path}, {"mode", modeText(a.Mode)}, {"data", string(a.Data)}, {"owner", a.Owner}})
	case *Symlink:
		t.line("  symlink", fields{{"path", a.Path}, {"target", a.Target}, {"owner", a.Owner}})
	case *Remove:
		t.line("  remove", fields{{"path", a.Path}, {"wildcard", a.Wildcard}, {"allow-missing", a.AllowMissing}})
	}
}

// fields are the named values of a line; zero values are not printed.
type fields []struct {
	name  string
	value any
}

// line prints a line with fields. True is printed as the name alone.
func (t *text) line(head string, fs fields) {
	t.b.WriteString(head)
	for _, f := range fs {
		name := f.name
		if name != "" {
			name += "="
		}
		switch v := f.value.(type) {
		case string:
			if v != "" {
				t.b.WriteString(" " + name + quote(v))
			}
		case []string:
			if len(v) > 0 {
				fmt.Fprintf(&t.b, " %s%q", name, v)
			}
		case bool:
			if v {
				t.b.WriteString(" " + f.name)
			}
		case int:
			if v != 0 {
				fmt.Fprintf(&t.b, " %s%d", name, v)
			}
		case int64:
			if v != 0 {
				fmt.Fprintf(&t.b, " %s%d", name, v)
			}
		case *Owner:
			if v != nil {
				fmt.Fprintf(&t.b, " %s%s", name, quote(v.User+":"+v.Group))
			}
		}
	}
	t.b.WriteByte('\n')
}

// quote quotes what would not be read back as one word.
func quote(s string) string {
	if q := strconv.Quote(s); len(q) != len(s)+2 || strings.ContainsRune(s, ' ') {
		return q
	}
	return s
}

func modeText(mode uint32) string {
	if mode == 0 {
		return ""
	}
	return fmt.Sprintf("%04o", mode)
}

func platformText(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	if p.OSVersion != "" {
		s += " (" + p.OSVersion + ")"
	}
	return s
}
