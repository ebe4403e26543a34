// Package policy decides about what a build fetches: images, git repositories,
// files, directories.
//
// A policy is a list of rules in the JSON form of BuildKit's source policies. A
// rule selects sources by their identifier ("docker-image://docker.io/library/alpine:*",
// "git://github.com/…", "https://…", "local://…") and allows them, denies them,
// or has another one used in their place. The last rule that allows or denies a
// source decides; a source that was converted is looked at anew.
//
//	p, err := policy.Parse(data)
//	src, err := policy.Evaluate([]*policy.Policy{p}, src)
package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"strings"
)

// Policy is a list of rules. It is read-only once it was parsed.
type Policy struct {
	Version int    `json:"version"`
	Rules   []rule `json:"rules"`
}

type rule struct {
	Action   action   `json:"action"`
	Selector selector `json:"selector"`
	Updates  *update  `json:"updates"`
}

type update struct {
	Identifier string            `json:"identifier"`
	Attrs      map[string]string `json:"attrs"`
}

type selector struct {
	Identifier  string       `json:"identifier"`
	MatchType   matchType    `json:"match_type"`
	MatchTypeJS *matchType   `json:"matchType"` // the same, as protobuf's JSON has it
	Constraints []constraint `json:"constraints"`

	pattern *regexp.Regexp // nil: the identifier itself
}

type constraint struct {
	Key       string    `json:"key"`
	Value     string    `json:"value"`
	Condition condition `json:"condition"`

	pattern *regexp.Regexp
}

type (
	action    string
	matchType string
	condition string
)

const (
	allow   action = "ALLOW"
	deny    action = "DENY"
	convert action = "CONVERT"

	wildcard matchType = "WILDCARD"
	exact    matchType = "EXACT"
	regex    matchType = "REGEX"

	equal    condition = "EQUAL"
	notEqual condition = "NOTEQUAL"
	matches  condition = "MATCHES"
)

// oneOf reads the name of a value or its number.
func oneOf(data []byte, what string, names ...string) (string, error) {
	var n int
	if json.Unmarshal(data, &n) == nil {
		if n >= 0 && n < len(names) {
			return names[n], nil
		}
		return "", fmt.Errorf("%s %d is none of %s", what, n, strings.Join(names, ", "))
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	for _, name := range names {
		if s == name {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s %q is none of %s", what, s, strings.Join(names, ", "))
}

// UnmarshalJSON implements [json.Unmarshaler].
func (a *action) UnmarshalJSON(data []byte) error {
	s, err := oneOf(data, "action", string(allow), string(deny), string(convert))
	*a = action(s)
	return err
}

// UnmarshalJSON implements [json.Unmarshaler].
func (m *matchType) UnmarshalJSON(data []byte) error {
	s, err := oneOf(data, "match_type", string(wildcard), string(exact), string(regex))
	*m = matchType(s)
	return err
}

// UnmarshalJSON implements [json.Unmarshaler].
func (c *condition) UnmarshalJSON(data []byte) error {
	s, err := oneOf(data, "condition", string(equal), string(notEqual), string(matches))
	*c = condition(s)
	return err
}

// maxRules bounds a policy.
const maxRules = 10_000

// Parse reads a policy. Fields that are not known are an error: what was meant
// to be denied must not be let through by a slip of the pen.
func Parse(data []byte) (*Policy, error) {
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	p := &Policy{}
	if err := d.Decode(p); err != nil {
		return nil, fmt.Errorf("source policy: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("source policy: there is something after the policy")
	}
	if p.Version > 1 {
		return nil, fmt.Errorf("source policy: version %d is not supported; it is 1", p.Version)
	}
	if len(p.Rules) > maxRules {
		return nil, fmt.Errorf("source policy: more than %d rules", maxRules)
	}
	for i := range p.Rules {
		if err := p.Rules[i].compile(); err != nil {
			return nil, fmt.Errorf("source policy: rule %d: %w", i+1, err)
		}
	}
	return p, nil
}

func (r *rule) compile() (err error) {
	if r.Action == "" {
		r.Action = allow
	}
	s := &r.Selector
	if s.MatchTypeJS != nil {
		s.MatchType = *s.MatchTypeJS
	}
	if s.Identifier == "" {
		return errors.New("selector.identifier is missing")
	}
	if r.Action == convert && r.Updates == nil {
		return errors.New("missing destination for convert rule")
	}
	switch s.MatchType {
	case regex:
		s.pattern, err = regexp.Compile(s.Identifier)
	case "", wildcard:
		if strings.Contains(s.Identifier, "**") {
			return fmt.Errorf("%q: ** is no wildcard", s.Identifier)
		}
		s.pattern, err = regexp.Compile("(?s)^" + strings.ReplaceAll(regexp.QuoteMeta(s.Identifier), `\*`, "(.*)") + "$")
	}
	if err != nil {
		return err
	}
	for i := range s.Constraints {
		c := &s.Constraints[i]
		if c.Condition == matches {
			if c.pattern, err = regexp.Compile(c.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// Source is something that a build fetches.
type Source struct {
	// Identifier is a URL of its kind: docker-image://, oci-layout://, git://,
	// http://, https:// or local://.
	Identifier string
	// Attrs say what of it and how, by the names of BuildKit's source
	// attributes.
	Attrs map[string]string
}

// DeniedError tells that a policy does not allow a source.
type DeniedError struct{ Identifier string }

// Error names the source.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("source %q denied by policy", e.Identifier)
}

// maxConversions bounds how often a source is converted.
const maxConversions = 20

// Evaluate returns the source that is to be used for src, which may be src
// itself, or a *DeniedError.
func Evaluate(policies []*Policy, src Source) (Source, error) {
	for range maxConversions {
		next, changed, err := evaluate(policies, src)
		if err != nil || !changed {
			return src, err
		}
		src = next
	}
	return src, fmt.Errorf("source policy: %s: more than %d conversions", src.Identifier, maxConversions)
}

func evaluate(policies []*Policy, src Source) (Source, bool, error) {
	for _, p := range policies {
		denied := false
		for _, r := range p.Rules {
			if !r.Selector.matches(src) {
				continue
			}
			switch r.Action {
			case allow:
				denied = false
			case deny:
				denied = true
			case convert:
				if next, changed := r.convert(src); changed {
					return next, true, nil
				}
			}
		}
		if denied {
			return src, false, &DeniedError{src.Identifier}
		}
	}
	return src, false, nil
}

func (s *selector) matches(src Source) bool {
	for _, c := range s.Constraints {
		v := src.Attrs[c.Key]
		switch c.Condition {
		case notEqual:
			if v == c.Value {
				return false
			}
		case matches:
			if !c.pattern.MatchString(v) {
				return false
			}
		default:
			if v != c.Value {
				return false
			}
		}
	}
	return s.Identifier == src.Identifier || s.pattern != nil && s.pattern.MatchString(src.Identifier)
}

// convert is what the rule has used instead.
func (r *rule) convert(src Source) (Source, bool) {
	out := Source{Identifier: r.Updates.Identifier, Attrs: maps.Clone(src.Attrs)}
	if out.Identifier == "" {
		out.Identifier = src.Identifier
	} else if p := r.Selector.pattern; p != nil {
		if m := p.FindStringSubmatchIndex(src.Identifier); m != nil {
			// What the pattern leaves of the identifier stays.
			out.Identifier = src.Identifier[:m[0]] + string(p.ExpandString(nil, out.Identifier, src.Identifier, m)) + src.Identifier[m[1]:]
		}
	}
	changed := out.Identifier != src.Identifier
	for k, v := range r.Updates.Attrs {
		if out.Attrs[k] != v {
			if out.Attrs == nil {
				out.Attrs = map[string]string{}
			}
			out.Attrs[k] = v
			changed = true
		}
	}
	return out, changed
}
