package policy

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/plan"
)

func TestEvaluate(t *testing.T) {
	t.Parallel()
	const id = "docker-image://docker.io/library/golang:1.19"
	for name, c := range map[string]struct{ rules, want string }{
		"nothing said":          {``, id},
		"wildcard denies":       {`{"action":"DENY","selector":{"identifier":"docker-image://*"}}`, ""},
		"numbers are actions":   {`{"action":1,"selector":{"identifier":"docker-image://*"}}`, ""},
		"the last one wins":     {`{"action":"DENY","selector":{"identifier":"*"}},{"action":"ALLOW","selector":{"identifier":"*golang*"}}`, id},
		"the last one wins, no": {`{"action":"ALLOW","selector":{"identifier":"*golang*"}},{"action":"DENY","selector":{"identifier":"*"}}`, ""},
		"exact is not wild":     {`{"action":"DENY","selector":{"identifier":"docker-image://*","match_type":"EXACT"}}`, id},
		"a regular expression":  {`{"action":"DENY","selector":{"identifier":"golang:1\\.1[0-9]$","matchType":"REGEX"}}`, ""},
		"a dot is a dot":        {`{"action":"DENY","selector":{"identifier":"docker-image://docker.io/library/golang:1?19"}}`, id},
		"convert": {`{"action":"CONVERT","selector":{"identifier":"docker-image://docker.io/library/golang:*"},"updates":{"identifier":"docker-image://mirror/golang:${1}-alpine"}}`,
			"docker-image://mirror/golang:1.19-alpine"},
		"converted, and denied": {`{"action":"CONVERT","selector":{"identifier":"docker-image://docker.io/*"},"updates":{"identifier":"docker-image://evil/${1}"}},
			{"action":"DENY","selector":{"identifier":"docker-image://evil/*"}}`, ""},
		"a constraint that holds not": {`{"action":"DENY","selector":{"identifier":"*","constraints":[{"key":"a","value":"b"}]}}`, id},
		"a constraint that holds":     {`{"action":"DENY","selector":{"identifier":"*","constraints":[{"key":"a","value":"b","condition":"NOTEQUAL"}]}}`, ""},
		"for ever":                    {`{"action":"CONVERT","selector":{"identifier":"docker-image://*"},"updates":{"identifier":"docker-image://${1}x"}}`, "error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := Parse([]byte(`{"rules":[` + c.rules + `]}`))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Evaluate([]*Policy{p}, Source{Identifier: id})
			var denied *DeniedError
			switch {
			case errors.As(err, &denied):
				got.Identifier = ""
			case err != nil:
				got.Identifier = "error"
			}
			if got.Identifier != c.want {
				t.Errorf("got %q, want %q (%v)", got.Identifier, c.want, err)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for rules, want := range map[string]string{
		`{"rules":[{"action":"DENY","selector":{"identifer":"x"}}]}`:       "unknown field",
		`{"rules":[{"action":"DENY","selector":{}}]}`:                      "selector.identifier is missing",
		`{"rules":[{"action":"CONVERT","selector":{"identifier":"x"}}]}`:   "missing destination",
		`{"rules":[{"selector":{"identifier":"(","match_type":"REGEX"}}]}`: "rule 1",
		`{"rules":[{"selector":{"identifier":"a**b"}}]}`:                   "** is no wildcard",
		`{"version":2}`: "version 2 is not supported",
		`{} {}`:         "something after",
		`{"rules":[{"selector":{"identifier":"x","constraints":[{"condition":"MATCH"}]}}]}`:       "is none of EQUAL",
		`{"rules":[{"selector":{"identifier":"x","constraints":[{"condition":2,"value":"("}]}}]}`: "rule 1",
	} {
		if _, err := Parse([]byte(rules)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", rules, err, want)
		}
	}
}

// What a source says comes back as the op it came from.
func TestSourceAndBack(t *testing.T) {
	t.Parallel()
	for _, op := range []plan.Op{
		&plan.HTTP{URL: "https://example.com/a.tgz", Filename: "a.tgz", Mode: 0o755, Checksum: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		&plan.Git{Remote: "https://github.com/a/b.git", Ref: "main", Subdir: "sub", KeepGitDir: true, Checksum: "abc"},
		&plan.Git{Remote: "ssh://git@github.com/a/b.git"},
		&plan.Local{Name: "context"},
		&plan.Local{Name: "context:other"},
	} {
		src, ok := SourceOf(op, func(n string) string { return strings.TrimPrefix(n, "context:") })
		if !ok {
			t.Fatalf("%T has no source", op)
		}
		back, err := src.Op()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(op, back); diff != "" {
			t.Errorf("%s: %s", src.Identifier, diff)
		}
	}
}

// FuzzPolicy: a policy is one JSON document, and one that denies everything at
// its end lets nothing through.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"rules":[{"action":"CONVERT","selector":{"identifier":"a*"},"updates":{"identifier":"b${1}"}}]}`), "abc")
	f.Add([]byte(`{"rules":[{"action":"ALLOW","selector":{"identifier":".","match_type":"REGEX"}}]}`), "https://a/\n")
	f.Add([]byte(`{"version":1,"rules":[{"selector":{"identifier":"*","constraints":[{"key":"k","value":"v","condition":"MATCHES"}]}}]}}`), "")
	f.Fuzz(func(t *testing.T, data []byte, identifier string) {
		p, err := Parse(data)
		if err != nil {
			return
		}
		if !json.Valid(data) {
			t.Fatal("what isn't JSON was read")
		}
		src := Source{Identifier: identifier, Attrs: map[string]string{"k": "v"}}
		_, _ = Evaluate([]*Policy{p}, src)
		all, err := Parse([]byte(`{"rules":[{"action":"DENY","selector":{"identifier":"*"}}]}`))
		if err != nil {
			t.Fatal(err)
		}
		p.Rules = append(p.Rules, all.Rules...)
		if got, err := Evaluate([]*Policy{p}, src); err == nil {
			t.Errorf("%q passed as %+v a policy that denies everything", identifier, got)
		}
	})
}
