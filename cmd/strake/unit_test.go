package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/plan"
)

func environ(vars ...string) *env {
	return &env{lookup: func(name string) (string, bool) {
		for _, v := range vars {
			if k, val, _ := strings.Cut(v, "="); k == name {
				return val, true
			}
		}
		return "", false
	}}
}

func TestStoreDir(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		env  []string
		uid  int
		flag string
		want string
	}{
		{nil, 0, "", "/var/lib/strake"},
		{[]string{"HOME=/root"}, 0, "", "/var/lib/strake"},
		{[]string{"HOME=/home/u"}, 1000, "", "/home/u/.local/share/strake"},
		{[]string{"HOME=/home/u", "XDG_DATA_HOME=/data"}, 1000, "", "/data/strake"},
		{[]string{"HOME=/home/u", "XDG_DATA_HOME=relative"}, 1000, "", "/home/u/.local/share/strake"},
		{[]string{"STRAKE_ROOT=/s"}, 0, "", "/s"},
		{[]string{"STRAKE_ROOT=/s"}, 1000, "/flag", "/flag"},
		{nil, 1000, "", ""},
	} {
		e := environ(c.env...)
		e.root = c.flag
		got, err := e.storeDir(c.uid)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q as %d: %q, %v; want %q", c.env, c.uid, got, err, c.want)
		}
	}
}

// reported returns what is printed of an error, and the exit code.
func reported(t *testing.T, err error, change func(*env)) (string, int) {
	t.Helper()
	f, ferr := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if ferr != nil {
		t.Fatal(ferr)
	}
	defer f.Close()
	e := environ()
	e.stderr = f
	if change != nil {
		change(e)
	}
	code := e.report("strake build", err)
	b, ferr := os.ReadFile(f.Name())
	if ferr != nil {
		t.Fatal(ferr)
	}
	return string(b), code
}

func TestReport(t *testing.T) {
	t.Parallel()
	source := &plan.Source{File: &plan.SourceFile{Name: "Dockerfile", Data: []byte("FROM x\nRUN false\n")}, Ranges: []plan.Range{{StartLine: 2, EndLine: 2}}}
	step := &builder.StepError{Step: &plan.Step{Name: "[2/2] RUN false", Source: source}, Exit: 1, Log: []byte("one\ntwo\x1b[31m\n"), Err: errors.New("exit code: 1")}
	for name, c := range map[string]struct {
		err    error
		text   []string
		not    string
		code   int
		change func(*env)
	}{
		"nothing":            {err: nil, code: 0},
		"any error":          {err: errors.New("no luck"), text: []string{"ERROR: no luck\n"}, code: 1},
		"usage":              {err: fmt.Errorf("x: %w", usagef("bad flag")), text: []string{"ERROR: x: bad flag\n", "See 'strake build --help'."}, code: 125},
		"exit code":          {err: exitError{code: 42}, not: "ERROR", code: 42},
		"code with a reason": {err: exitError{127, errors.New("no program")}, text: []string{"ERROR: no program\n"}, code: 127},
		"signal":             {err: fmt.Errorf("step: %w", signalError{syscall.SIGTERM}), text: []string{"canceled\n"}, not: "step", code: 143},
		"canceled":           {err: context.Canceled, text: []string{"canceled\n"}, code: 1},
		"closed stdout":      {err: &os.PathError{Op: "write", Err: syscall.EPIPE}, not: "w", code: 1},
		"hostile text":       {err: errors.New("a\x1b]0;owned\x07b"), text: []string{"ERROR: ab\n"}, code: 1},
		"full disk":          {err: &os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, text: []string{"strake prune"}, code: 1},
		"place": {err: &plan.Error{Source: source, Err: errors.New("unknown"), Hint: "try this"},
			text: []string{"Dockerfile:2\n", "   2 | >>> RUN false\n", "ERROR: Dockerfile:2: unknown (try this)\n"}, code: 1},
		"step": {err: step, text: []string{"------\n > [2/2] RUN false:\none\ntwo\n------\nDockerfile:2\n", ">>> RUN false", "ERROR: [2/2] RUN false: exit code: 1\n"}, not: "All output", code: 1},
		"step with a log": {err: step, text: []string{"\nAll output of the step is in /logs/3.log\n"}, code: 1,
			change: func(e *env) { e.logFile = func(string) string { return "/logs/3.log" } }},
		"debug": {err: fmt.Errorf("outer: %w", io.EOF), text: []string{"*fmt.wrapError: outer: EOF\n", "    *errors.errorString: EOF\n"}, code: 1,
			change: func(e *env) { e.debug = true }},
	} {
		got, code := reported(t, c.err, c.change)
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d", name, code, c.code)
		}
		for _, want := range c.text {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, got)
			}
		}
		if c.not != "" && strings.Contains(got, c.not) {
			t.Errorf("%s: %q is in\n%s", name, c.not, got)
		}
	}
}

func TestReportShortensWhatWasShown(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	for i := range 100 {
		fmt.Fprintf(&log, "line %d.\n", i)
	}
	step := &builder.StepError{Step: &plan.Step{Name: "RUN x"}, Log: log.Bytes(), Err: errors.New("no")}
	got, _ := reported(t, step, nil)
	if n := strings.Count(got, "line "); n != 100 {
		t.Errorf("%d lines are shown, want all", n)
	}
	got, _ = reported(t, step, func(e *env) { e.printed = true })
	if n := strings.Count(got, "line "); n != shownLines || !strings.Contains(got, "line 99.") {
		t.Errorf("%d lines are shown, want the last %d:\n%s", n, shownLines, got)
	}
}

func TestParseSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("in file"), 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, maxSecret+1), 0o600); err != nil {
		t.Fatal(err)
	}
	e := environ("VAR=in env", "id2=by id")
	for flag, want := range map[string]string{
		"id=x,src=" + file:           "in file",
		"id=x,source=" + file:        "in file",
		"id=x,type=file,src=" + file: "in file",
		"id=x,env=VAR":               "in env",
		"id=x,type=env,env=VAR":      "in env",
		"id=x,type=env,src=VAR":      "in env",
		`"id=x","src=` + file + `"`:  "in file",
		"id=x,src=" + large:          "ERROR larger than 500 KiB",
		"src=" + file:                "ERROR id= is missing",
		"id=x,color=red":             "ERROR color is not one of",
		"id=x,type=magic,src=y":      "ERROR type is file or env",
		"id=x,env=VAR,src=" + file:   "ERROR both given",
		"id=x,src=" + dir + "/nope":  "ERROR no such file",
		"id":                         "ERROR key=value",
	} {
		var got string
		secret, _, err := parseSecrets([]string{flag}, e)
		if err == nil {
			var b []byte
			b, err = secret(t.Context(), "x")
			got = string(b)
		}
		if wantErr, ok := strings.CutPrefix(want, "ERROR "); ok {
			if err == nil || !strings.Contains(err.Error(), wantErr) {
				t.Errorf("%s: error is %v, want %q", flag, err, wantErr)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", flag, got, err, want)
		}
	}
	secret, _, err := parseSecrets([]string{"id=id2"}, e)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := secret(t.Context(), "id2"); err != nil || string(b) != "by id" {
		t.Errorf("id2: %q, %v", b, err)
	}
	if _, err := secret(t.Context(), "other"); err == nil || !strings.Contains(err.Error(), "--secret id=other") {
		t.Errorf("a secret that was not given: %v", err)
	}
}

func TestMatchesRef(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, ref string
		want         bool
	}{
		{"app", "docker.io/library/app:1", true},
		{"app:1", "docker.io/library/app:1", true},
		{"app:2", "docker.io/library/app:1", false},
		{"a*", "docker.io/library/app:1", true},
		{"docker.io/library/app", "docker.io/library/app:1", true},
		{"app", "reg.example/app:1", false},
		{"reg.example/app", "reg.example/app:1", true},
		{"reg.example/*:1", "reg.example/app:1", true},
		{"[", "docker.io/library/app:1", false},
		{"app", "", false},
	} {
		if got := matchesRef(c.pattern, c.ref); got != c.want {
			t.Errorf("%q for %q: %v", c.pattern, c.ref, got)
		}
	}
}

func TestPrintTable(t *testing.T) {
	t.Parallel()
	type row struct{ Name, Size string }
	rows := []any{row{"short", "1B"}, row{"a much longer name", "20MB"}}
	columns := []column{{"Name", "NAME"}, {"Size", "SIZE"}}
	for format, want := range map[string]string{
		"":                            "NAME                 SIZE\nshort                1B\na much longer name   20MB\n",
		"table {{.Size}}\\t{{.Name}}": "SIZE      NAME\n1B        short\n20MB      a much longer name\n",
		"{{.Name}}":                   "short\na much longer name\n",
		"json":                        `{"Name":"short","Size":"1B"}` + "\n" + `{"Name":"a much longer name","Size":"20MB"}` + "\n",
		"{{upper .Name}} {{join (split .Size \"\") \"-\"}}": "SHORT 1-B\nA MUCH LONGER NAME 2-0-M-B\n",
	} {
		var b bytes.Buffer
		if err := printTable(&b, format, columns, nil, rows); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", format, diff)
		}
	}
	for _, format := range []string{"{{", "{{.Nope}}", "{{nope}}"} {
		var usage usageError
		if err := printTable(io.Discard, format, columns, nil, rows); !errors.As(err, &usage) {
			t.Errorf("%s: error is %v", format, err)
		}
	}
}

func TestSince(t *testing.T) {
	t.Parallel()
	if got := since(time.Date(1980, 1, 1, 0, 0, 1, 0, time.UTC)); got != "N/A" {
		t.Errorf("the constant time is %q", got)
	}
	if got := since(time.Now().Add(-3 * time.Hour)); got != "3 hours ago" {
		t.Errorf("three hours ago is %q", got)
	}
}

func TestParsePlatforms(t *testing.T) {
	t.Parallel()
	got, err := parsePlatforms([]string{"linux/amd64,linux/arm64/v8", "linux/arm/v7", "linux/amd64"})
	if err != nil || len(got) != 3 || got[1].Architecture != "arm64" || got[1].Variant != "" || got[2].Variant != "v7" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parsePlatforms([]string{"linux/"}); err == nil {
		t.Error("linux/ is no platform")
	}
}

func TestUntarStaysInside(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][]entry{
		"dots":              {{name: "../../escape", data: "x"}},
		"through a symlink": {{name: "l", link: ".."}, {name: "l/escape", data: "x"}},
		"absolute symlink":  {{name: "l", link: "/tmp"}, {name: "l/escape", data: "x"}},
		"hard link outside": {{name: "h", hard: "../../../etc/passwd"}},
		"over a symlink":    {{name: "l", link: "../escape"}, {name: "l", data: "x"}},
		"device":            {{name: "dev", char: true}},
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := untar(t.Context(), dir, tarOf(t, entries))
		left, rerr := os.ReadDir(parent)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if len(left) != 1 {
			t.Errorf("%s: there is %v beside the directory (error %v)", name, left, err)
		}
		if fi, serr := os.Lstat(filepath.Join(dir, "h")); serr == nil && fi.Size() > 0 {
			t.Errorf("%s: the file outside was linked", name)
		}
	}
}
