package explain

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/strake-build/strake/state/builds"
)

// kinds are the kinds of causes by those of parts.
var kinds = map[string]Kind{
	"arg": Arg, "env": Env, "command": Command, "shell": Command, "secret": Secret, "ssh": SSH, "platform": Platform,
	"bind mount": Mount, "cache mount": Mount, "tmpfs mount": Mount, "base": Base, "digest": Base,
}

// rank orders causes: what was written in another place comes before what it is
// used for.
var rank = map[Kind]int{Base: 0, Platform: 1, Arg: 2, Env: 3, Command: 4}

func partValue(s builds.Step, kind string) string {
	for _, p := range s.Parts {
		if p.Kind == kind {
			return p.Value
		}
	}
	return ""
}

// compareParts compares what two steps say.
func compareParts(s, old builds.Step) []Cause {
	type key struct{ kind, name string }
	before := map[key]string{}
	for _, p := range old.Parts {
		before[key{p.Kind, p.Name}] = p.Value
	}
	var causes []Cause
	add := func(p builds.Part, change, from, to string) {
		c := Cause{Kind: Option, Subject: p.Kind, Change: change, Old: from, New: to}
		if k, ok := kinds[p.Kind]; ok {
			c.Kind, c.Subject = k, p.Name
			if k == Mount {
				c.Subject = p.Kind + " " + p.Name
			}
			if k == Command && p.Kind == "shell" {
				c.Subject = "shell"
			}
			if k == Command && p.Kind == "command" {
				c.Subject = ""
			}
		}
		causes = append(causes, c)
	}
	for _, p := range s.Parts {
		k := key{p.Kind, p.Name}
		from, ok := before[k]
		delete(before, k)
		switch {
		case !ok:
			add(p, Added, "", p.Value)
		case from != p.Value:
			add(p, Changed, from, p.Value)
		}
	}
	for _, p := range old.Parts {
		if _, ok := before[key{p.Kind, p.Name}]; ok {
			add(p, Removed, p.Value, "")
		}
	}
	causes = joinMoved(causes)
	// The order of the variables says nothing new if one of them changed.
	if len(causes) > 1 {
		causes = slices.DeleteFunc(causes, func(c Cause) bool { return c.Subject == "order of variables" })
	}
	slices.SortStableFunc(causes, func(a, b Cause) int { return rankOf(a) - rankOf(b) })
	return causes
}

func rankOf(c Cause) int {
	if r, ok := rank[c.Kind]; ok {
		return r
	}
	return len(rank)
}

// joinMoved makes one cause of a secret, an agent or a mount that has another
// name, and of an argument that became a variable.
func joinMoved(causes []Cause) []Cause {
	for i := range causes {
		c := &causes[i]
		if c.Change != Added {
			continue
		}
		j := slices.IndexFunc(causes, func(d Cause) bool {
			if d.Change != Removed {
				return false
			}
			switch c.Kind {
			case Secret, SSH:
				return d.Kind == c.Kind
			case Mount:
				return d.Kind == Mount && mountType(d) == mountType(*c) && d.Subject != c.Subject
			case Env, Arg:
				return (d.Kind == Env || d.Kind == Arg) && d.Subject == c.Subject
			}
			return false
		})
		if j < 0 {
			continue
		}
		d := causes[j]
		switch c.Kind {
		case Secret, SSH:
			*c = Cause{Kind: c.Kind, Subject: "id", Change: Changed, Old: d.Subject, New: c.Subject}
		case Mount:
			*c = Cause{Kind: Mount, Subject: mountType(d), Change: Changed,
				Old: strings.TrimPrefix(d.Subject, mountType(d)+" "), New: strings.TrimPrefix(c.Subject, mountType(d)+" ")}
		default:
			c.Change, c.Old = Changed, d.Old
		}
		causes = slices.Delete(causes, j, j+1)
		return joinMoved(causes)
	}
	return causes
}

// mountType is "cache mount".
func mountType(c Cause) string {
	first, rest, _ := strings.Cut(c.Subject, " ")
	second, _, _ := strings.Cut(rest, " ")
	return first + " " + second
}

// compareSources compares two images, or what two URLs stand for.
func compareSources(s, old builds.Step) []Cause {
	if s.Kind != "image" {
		causes := compareParts(s, old)
		for i := range causes {
			causes[i].Kind = Source
			causes[i].Subject = partValue(s, "url")
		}
		return causes
	}
	if p, q := partValue(s, "platform"), partValue(old, "platform"); p != q {
		return []Cause{{Kind: Platform, Subject: p, Change: Changed, Old: q, New: p}}
	}
	if r, q := partValue(s, "base"), partValue(old, "base"); r != q {
		return []Cause{{Kind: Base, Subject: r, Change: Changed, Old: q, New: r}}
	}
	if d, q := partValue(s, "digest"), partValue(old, "digest"); d != q {
		return []Cause{{Kind: Base, Subject: partValue(s, "base"), Change: Changed, Old: q, New: d}}
	}
	return nil
}

// compareFiles compares two lists of files. Lists that can't be read tell
// nothing.
func compareFiles(now, old io.Reader) []Cause {
	files, others, err := builds.CompareFiles(now, old)
	if err != nil {
		return nil
	}
	before := map[string]builds.File{}
	for _, f := range others {
		before[f.Path] = f
	}
	var causes []Cause
	for _, f := range files {
		o, ok := before[f.Path]
		delete(before, f.Path)
		switch {
		case !ok:
			causes = append(causes, Cause{Kind: File, Subject: f.Path, Change: Added, New: f.Sum})
		case o.Type != f.Type:
			causes = append(causes, Cause{Kind: File, Subject: f.Path, Change: Type, Old: typeName(o.Type), New: typeName(f.Type)})
		case o.Sum != f.Sum:
			causes = append(causes, Cause{Kind: File, Subject: f.Path, Change: Changed})
		case o.Mode != f.Mode:
			causes = append(causes, Cause{Kind: File, Subject: f.Path, Change: Mode, Old: fmt.Sprintf("%04o", o.Mode), New: fmt.Sprintf("%04o", f.Mode)})
		case o.UID != f.UID || o.GID != f.GID:
			causes = append(causes, Cause{Kind: File, Subject: f.Path, Change: Owner, Old: fmt.Sprintf("%d:%d", o.UID, o.GID), New: fmt.Sprintf("%d:%d", f.UID, f.GID)})
		}
	}
	for _, f := range before {
		causes = append(causes, Cause{Kind: File, Subject: f.Path, Change: Removed, Old: f.Sum})
	}
	slices.SortFunc(causes, func(a, b Cause) int { return strings.Compare(a.Subject, b.Subject) })
	return joinRenamed(causes)
}

// joinRenamed makes one cause of a file that was removed and one with the same
// content that was added, where there is no other with it.
func joinRenamed(causes []Cause) []Cause {
	added, removed := map[string][]int{}, map[string][]int{}
	for i, c := range causes {
		switch {
		case c.Change == Added && c.New != "":
			added[c.New] = append(added[c.New], i)
		case c.Change == Removed && c.Old != "":
			removed[c.Old] = append(removed[c.Old], i)
		}
	}
	drop := map[int]bool{}
	for sum, a := range added {
		if r := removed[sum]; len(a) == 1 && len(r) == 1 {
			causes[a[0]].Change, causes[a[0]].Old = Renamed, causes[r[0]].Subject
			drop[r[0]] = true
		}
	}
	var out []Cause
	for i, c := range causes {
		if drop[i] {
			continue
		}
		c.New = keepIf(c.New, c.Change != Added && c.Change != Renamed)
		c.Old = keepIf(c.Old, c.Change != Removed)
		out = append(out, c)
	}
	return out
}

func keepIf(s string, ok bool) string {
	if ok {
		return s
	}
	return ""
}

var typeNames = map[string]string{"0": "file", "2": "symlink", "3": "device", "4": "device", "5": "directory", "6": "pipe"}

func typeName(t string) string {
	if n := typeNames[t]; n != "" {
		return n
	}
	return t
}
