package plan

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// notInKey are the fields that Canonical promises to leave out.
var notInKey = map[string]bool{
	"Image.Ref": true, "Image.Platform": true, "Image.Layout": true,
	"Local.Name": true, "Local.Exclude": true, "Local.IgnoreFile": true,
	"Git.AuthToken": true,
	"Git.Advice":    true,
	"Git.Pin":       true,
	"HTTP.Pin":      true,
	"Mount.Given":   true,
	"Exec.Proxy":    true, "Exec.Resources": true, "Exec.BuildArgs": true,
}

// Every field of every op, action and part changes the bytes, but for those
// that must not. A field added later fails here until it is decided on.
func TestCanonicalFields(t *testing.T) {
	t.Parallel()
	wrap := func(a Action) Op { return &File{Actions: []Action{a}} }
	cases := map[string]struct {
		zero any
		op   func(v any) Op
	}{
		"Image":   {Image{}, func(v any) Op { x := v.(Image); return &x }},
		"Local":   {Local{}, func(v any) Op { x := v.(Local); return &x }},
		"Git":     {Git{}, func(v any) Op { x := v.(Git); return &x }},
		"HTTP":    {HTTP{}, func(v any) Op { x := v.(HTTP); return &x }},
		"Exec":    {Exec{}, func(v any) Op { x := v.(Exec); return &x }},
		"File":    {File{}, func(v any) Op { x := v.(File); return &x }},
		"Copy":    {Copy{}, func(v any) Op { x := v.(Copy); return wrap(&x) }},
		"Mkdir":   {Mkdir{}, func(v any) Op { x := v.(Mkdir); return wrap(&x) }},
		"Mkfile":  {Mkfile{}, func(v any) Op { x := v.(Mkfile); return wrap(&x) }},
		"Symlink": {Symlink{}, func(v any) Op { x := v.(Symlink); return wrap(&x) }},
		"Remove":  {Remove{}, func(v any) Op { x := v.(Remove); return wrap(&x) }},
		"Owner":   {Owner{}, func(v any) Op { x := v.(Owner); return wrap(&Mkdir{Owner: &x}) }},
		"Mount":   {Mount{}, func(v any) Op { return &Exec{Mounts: []Mount{v.(Mount)}} }},
		"Host":    {Host{}, func(v any) Op { return &Exec{Hosts: []Host{v.(Host)}} }},
		"Device":  {Device{}, func(v any) Op { return &Exec{Devices: []Device{v.(Device)}} }},
		"Ulimit":  {Ulimit{}, func(v any) Op { return &Exec{Ulimits: []Ulimit{v.(Ulimit)}} }},
	}
	for name, c := range cases {
		base := Canonical(c.op(c.zero))
		typ := reflect.TypeOf(c.zero)
		for i := range typ.NumField() {
			v := reflect.New(typ).Elem()
			fill(t, v.Field(i))
			field := name + "." + typ.Field(i).Name
			same := bytes.Equal(base, Canonical(c.op(v.Interface())))
			if same != notInKey[field] {
				t.Errorf("%s: bytes same = %v, want %v", field, same, notInKey[field])
			}
		}
	}
}

// fill sets a field to something that is not zero.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Uint8:
		v.SetUint(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0))
	case reflect.Struct:
		fill(t, v.Field(0))
	case reflect.Interface:
		v.Set(reflect.ValueOf(&Remove{}))
	default:
		t.Fatalf("field of kind %s", v.Kind())
	}
}

func TestCanonicalIsUnambiguous(t *testing.T) {
	t.Parallel()
	ops := []Op{
		&Exec{Args: []string{"a", "b"}}, &Exec{Args: []string{"ab"}}, &Exec{Args: []string{"a"}, Env: []string{"b"}},
		&Exec{Env: []string{"a", "b"}}, &Exec{Args: []string{"a", "b"}, Dir: "/"}, &Exec{Dir: "/"}, &Exec{User: "/"},
		&File{Actions: []Action{&Mkdir{Path: "/a"}}}, &File{Actions: []Action{&Remove{Path: "/a"}}},
		&File{Actions: []Action{&Mkdir{Path: "/a"}, &Mkdir{Path: "/b"}}}, &File{},
		&File{Actions: []Action{&Copy{Source: "/a", Dest: "/b"}}}, &File{Actions: []Action{&Copy{Source: "/a/", Dest: "b"}}},
		&File{Actions: []Action{&Copy{Include: []string{"a"}}}}, &File{Actions: []Action{&Copy{Exclude: []string{"a"}}}},
		&File{Actions: []Action{&Mkdir{Owner: &Owner{}}}}, &File{Actions: []Action{&Mkdir{}}},
		&Merge{}, &Diff{}, &Local{}, &Image{}, &Git{}, &HTTP{},
	}
	seen := map[string]int{}
	for i, op := range ops {
		key := string(Canonical(op))
		if j, ok := seen[key]; ok {
			t.Errorf("%T %+v and %T %+v share bytes", op, op, ops[j], ops[j])
		}
		seen[key] = i
	}
}

// A change of these bytes makes every stored result unreachable: raise
// CanonicalVersion with it.
func TestCanonicalGolden(t *testing.T) {
	t.Parallel()
	ops := []Op{
		&Image{Ref: "docker.io/library/alpine:3", Digest: digest.FromString("a")},
		&Local{Name: "context"},
		&Git{Remote: "https://example.com/a.git", Ref: "main", KeepGitDir: true},
		&HTTP{URL: "https://example.com/f", Filename: "f", Mode: 0o600, UID: -1},
		&Exec{
			Args: []string{"/bin/sh", "-c", "make"}, Env: []string{"A=1"}, Dir: "/src", User: "me",
			Mounts: []Mount{{Type: MountCache, Target: "/c", Input: -1, ID: "/c", Sharing: SharingShared, Mode: 0o755}},
		},
		&File{Actions: []Action{&Copy{Input: 1, Source: "/a", Dest: "/b/", Owner: &Owner{User: "1"}, Mode: "0644"}}},
		&Merge{}, &Diff{},
	}
	got := ""
	for _, op := range ops {
		got += fmt.Sprintf("%T %s\n", op, hex.EncodeToString(Canonical(op)))
	}
	const golden = "testdata/canonical.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("bytes changed (-want +got):\n%s", d)
	}
}
