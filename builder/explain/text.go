package explain

import (
	"fmt"
	"strings"
)

// Text says what differs, in a line without the step.
func (c Cause) Text() string {
	t := c.text()
	if c.Arg != "" {
		t += " (build arg " + c.Arg + ")"
	}
	if c.In != "" {
		t += " in " + short(c.In)
	}
	return t
}

func (c Cause) text() string {
	switch c.Kind {
	case File:
		return c.fileText()
	case Arg:
		return "build arg " + c.changeText()
	case Env:
		return "variable " + c.changeText()
	case Command:
		if c.Subject == "" {
			c.Subject = "command"
		}
		return c.changeText()
	case Base:
		switch {
		case strings.Contains(c.Old, "sha256:") && strings.HasPrefix(c.New, "sha256:"):
			return fmt.Sprintf("base image %s: %s → %s", c.Subject, shortDigest(c.Old), shortDigest(c.New))
		default:
			return fmt.Sprintf("base: %s → %s", short(c.Old), short(c.New))
		}
	case From:
		return fmt.Sprintf("it takes from %s, not from %s", short(c.New), short(c.Old))
	case Secret, SSH:
		if c.Subject == "id" && c.Change == Changed {
			return fmt.Sprintf("%s id: %s → %s", c.Kind, c.Old, c.New)
		}
		return fmt.Sprintf("%s %s", c.Kind, c.changeText())
	case Platform:
		if c.Change == Added {
			return fmt.Sprintf("platform %s was not built before (only %s was)", c.New, short(c.Old))
		}
		return fmt.Sprintf("platform: %s → %s", c.Old, c.New)
	case Source:
		return fmt.Sprintf("what %s stands for: %s → %s", short(c.Subject), shortDigest(c.Old), shortDigest(c.New))
	case New:
		if c.Change == Added {
			return "the step is new"
		}
		return "there is no earlier build to compare with"
	case NoCache:
		return "it was asked for, by --no-cache or --no-cache-filter"
	case Pruned:
		return "nothing changed, but its result is no longer in the cache"
	case Failed:
		if c.Change == "failed" {
			return "nothing changed, but it failed in that build"
		}
		return "nothing changed, but that build got no result of it"
	case Unknown:
		return "the records don't tell what changed"
	}
	return c.changeText()
}

func (c Cause) fileText() string {
	switch c.Change {
	case Renamed:
		return fmt.Sprintf("%s renamed from %s", c.Subject, c.Old)
	case Mode, Owner:
		return fmt.Sprintf("%s of %s: %s → %s", c.Change, c.Subject, c.Old, c.New)
	case Type:
		return fmt.Sprintf("%s is a %s, it was a %s", c.Subject, c.New, c.Old)
	}
	if c.Subject == "" {
		return "files changed"
	}
	return c.Subject + " " + c.Change
}

func (c Cause) changeText() string {
	switch c.Change {
	case Added:
		return fmt.Sprintf("%s added: %s", c.Subject, short(c.New))
	case Removed:
		return fmt.Sprintf("%s removed: it was %s", c.Subject, short(c.Old))
	}
	return fmt.Sprintf("%s: %s → %s", c.Subject, short(c.Old), short(c.New))
}

// short makes a value fit into a line.
func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 80
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// shortDigest cuts the hex digits of a digest.
func shortDigest(s string) string {
	algorithm, hex, ok := strings.Cut(s, ":")
	if ok && len(hex) == 64 {
		return algorithm + ":" + hex[:12]
	}
	return short(s)
}

// Text says why the step was run, in one line without the step.
func (f Finding) Text() string {
	if len(f.Causes) == 0 {
		return "it follows " + short(strings.Join(f.Follows, ", "))
	}
	t := f.Causes[0].Text()
	if n := len(f.Causes) + f.More - 1; n > 0 {
		t += fmt.Sprintf(" (and %d more)", n)
	}
	return t
}

// Line is a finding in one line: "[build 2/4] COPY . /src (Dockerfile:3): main.go changed".
func (f Finding) Line() string {
	t := short(f.Step)
	if f.Source != "" {
		t += " (" + f.Source + ")"
	}
	return t + ": " + f.Text()
}
