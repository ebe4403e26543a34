package lock

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/plan"
)

const (
	sum    = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	commit = "0123456789012345678901234567890123456789"
)

func TestBytesAndBack(t *testing.T) {
	t.Parallel()
	f := New()
	for id, pin := range map[string]string{"docker-image://docker.io/library/alpine:3": sum, "git://example.com/r.git#main": commit, "https://example.com/x": sum} {
		if err := f.Add(id, pin); err != nil {
			t.Fatal(err)
		}
	}
	back, err := Parse(f.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := f.Diff(back); diff != nil {
		t.Error(diff)
	}
	if err := f.Add("https://example.com/x", "sha256:"+strings.Repeat("0", 64)); err == nil {
		t.Error("two digests for one source are no error")
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                     "not a lock file",
		"# strake lock file 2. x\n":            "version",
		header + "\ndocker-image://a latest\n": "line 2",
		header + "\ngit://a " + sum + "\n":     "is not a commit",
		header + "\na b c\n":                   "not of the form",
		header + "\nhttps://a " + sum + "\nhttps://a sha256:" + strings.Repeat("0", 64): "is both",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

func TestIdentifierKeepsSecretsOut(t *testing.T) {
	t.Parallel()
	got := []string{
		Identifier(&plan.HTTP{URL: "https://me:hunter2@example.com/x"}),
		Identifier(&plan.Git{Remote: "https://token@example.com/r.git", Ref: "main", Subdir: "sub"}),
		Identifier(&plan.Git{Remote: "https://example.com/r.git", Ref: commit}),
		Identifier(&plan.HTTP{URL: "https://example.com/x", Checksum: sum}),
		Image("docker.io/library/alpine@" + sum),
	}
	want := []string{"https://example.com/x", "git://example.com/r.git#main", "", "", ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(header + "\nhttps://a " + sum + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(l.Bytes())
		if err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
		if diff := cmp.Diff(string(l.Bytes()), string(again.Bytes())); diff != "" {
			t.Errorf("written twice:\n%s", diff)
		}
	})
}
