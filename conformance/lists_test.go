package main

import (
	"strings"
	"testing"
)

const log = `=== RUN   TestIntegration
=== RUN   TestIntegration/slice=1-2/TestA/worker=oci/frontend=builtin
=== NAME  TestIntegration/slice=1-2/TestB/worker=oci/frontend=builtin/sub
    b_test.go:1:
        	Error:      	Not equal
--- FAIL: TestIntegration (0.1s)
    --- PASS: TestIntegration/slice=1-2/TestA/worker=oci/frontend=builtin (0.1s)
    --- FAIL: TestIntegration/slice=1-2/TestB/worker=oci/frontend=builtin (0.1s)
        --- FAIL: TestIntegration/slice=1-2/TestB/worker=oci/frontend=builtin/sub (0.1s)
    --- SKIP: TestIntegration/TestC/worker=oci/frontend=builtin/network.host=denied (0.1s)
`

func TestJudge(t *testing.T) {
	t.Parallel()
	found, err := readLog(strings.NewReader(log))
	if err != nil || len(found) != 3 {
		t.Fatal(found, err)
	}
	reference := parseList("PASS TestA/worker=oci/frontend=builtin\nPASS TestB/worker=oci/frontend=builtin\nSKIP TestC/worker=oci/frontend=builtin/network.host=denied\nFAIL TestD/worker=oci\n")
	for name, c := range map[string]struct {
		notYet string
		want   []string // of what is printed
		fails  bool
	}{
		"new failure":     {"", []string{"2 of 3", "WRONG TestB", "Not equal"}, true},
		"listed failure":  {"# why\nTestB/worker=oci/frontend=builtin  it is hard\n", []string{"2 of 3", "not yet: TestB/worker=oci/frontend=builtin: it is hard"}, false},
		"listed and done": {"TestA/worker=oci/frontend=builtin x\nTestB/worker=oci/frontend=builtin x\n", []string{"TAKE IT OFF the list conformance/not-yet.txt: TestA"}, true},
		"unknown":         {"TestB/worker=oci/frontend=builtin x\nTestZ x\n", []string{"TestZ (there is no such case)"}, true},
	} {
		var b strings.Builder
		err := judge(&b, found, reference, parseList(c.notYet), true)
		if (err != nil) != c.fails {
			t.Errorf("%s: error %v", name, err)
		}
		for _, w := range c.want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s: no %q in\n%s", name, w, b.String())
			}
		}
	}
}

// What is on the list is a case, and has a reason.
func TestLists(t *testing.T) {
	t.Parallel()
	reference := parseList(referenceText)
	for name, reason := range parseList(notYetText) {
		if v := reference[name]; v == "" || v == "FAIL" {
			t.Errorf("%s: BuildKit's result is %q", name, v)
		}
		if reason == "" {
			t.Errorf("%s: no reason", name)
		}
	}
}
