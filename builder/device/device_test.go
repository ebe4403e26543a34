package device

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/strake-build/strake/plan"
)

const described = `
cdiVersion: "0.6.0"
kind: "vendor1.com/device"
containerEdits:
  env: [ALL=yes]
devices:
- name: bar
  containerEdits:
    deviceNodes: [{path: /dev/bar, hostPath: /dev/null, type: c, major: 1, minor: 3}]
- name: foo
  containerEdits:
    env: [FOO=injected]
    mounts: [{hostPath: /etc/hostname, containerPath: /name, options: [ro, bind]}]
  annotations:
    org.mobyproject.buildkit.device.class: things
    org.mobyproject.buildkit.device.autoallow: true
- name: hooked
  containerEdits:
    hooks: [{hookName: createContainer, path: /bin/true}]
`

func registry(t *testing.T, text string) *Registry {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vendor.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Open(dir)
}

func TestFind(t *testing.T) {
	t.Parallel()
	r := registry(t, described)
	for asked, want := range map[string]string{
		"vendor1.com/device=foo": "vendor1.com/device=foo",
		"vendor1.com/device":     "vendor1.com/device=bar",
		"vendor1.com/device=*":   "vendor1.com/device=bar vendor1.com/device=foo vendor1.com/device=hooked",
		"things":                 "vendor1.com/device=foo",
	} {
		s, err := r.Find([]plan.Device{{Name: asked}})
		if got := strings.Join(s.names, " "); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", asked, got, err, want)
		}
	}
	if _, err := r.Find([]plan.Device{{Name: "vendor2.com/device=x"}}); err == nil || !strings.Contains(err.Error(), "not registered") {
		t.Errorf("a device that is not there: %v", err)
	}
	if s, err := r.Find([]plan.Device{{Name: "vendor2.com/device=x", Optional: true}}); err != nil || len(s.names) > 0 {
		t.Errorf("an optional one: %v, %v", s.names, err)
	}
	var none *Registry
	if _, err := none.Find([]plan.Device{{Name: "vendor1.com/device=foo"}}); err == nil {
		t.Error("there are devices where nothing describes any")
	}
}

func find(t *testing.T, r *Registry, name string) Set {
	t.Helper()
	s, err := r.Find([]plan.Device{{Name: name}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCheck(t *testing.T) {
	t.Parallel()
	r := registry(t, described)
	bar := find(t, r, "vendor1.com/device=bar")
	for _, e := range []string{"device", "device=vendor1.com/device", "device=vendor1.com/device=bar"} {
		if err := bar.Check([]string{"network.host", e}); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
	for _, e := range []string{"", "network.host", "device=vendor1.com/device=foo", "device=vendor1.com/dev"} {
		if err := bar.Check([]string{e}); err == nil {
			t.Errorf("%q allows it", e)
		}
	}
	if err := find(t, r, "things").Check(nil); err != nil {
		t.Errorf("one that is allowed by its description: %v", err)
	}
}

// Another description is another key.
func TestDigest(t *testing.T) {
	t.Parallel()
	digest := func(text, name string) string {
		d, err := find(t, registry(t, text), name).Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	foo := digest(described, "vendor1.com/device=foo")
	if digest(described, "things") != foo {
		t.Error("another name of a device is another device")
	}
	for what, other := range map[string]string{
		"device":   digest(described, "vendor1.com/device=bar"),
		"variable": digest(strings.Replace(described, "FOO=injected", "FOO=other", 1), "vendor1.com/device=foo"),
		"of all":   digest(strings.Replace(described, "ALL=yes", "ALL=no", 1), "vendor1.com/device=foo"),
	} {
		if other == foo {
			t.Errorf("another %s has the same digest", what)
		}
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	r := registry(t, described)
	spec := func() *specs.Spec {
		return &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}}, Linux: &specs.Linux{}}
	}
	s := spec()
	if err := find(t, r, "vendor1.com/device=foo").Apply(s); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Env, "FOO=injected") || !slices.Contains(s.Process.Env, "ALL=yes") || len(s.Mounts) != 1 || s.Mounts[0].Destination != "/name" {
		t.Errorf("got %v, %v", s.Process.Env, s.Mounts)
	}
	s = spec()
	if err := find(t, r, "vendor1.com/device=bar").Apply(s); err != nil {
		t.Fatal(err)
	}
	if d := s.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/bar" || d[0].Minor != 3 {
		t.Errorf("got %+v", d)
	}
	if err := find(t, r, "vendor1.com/device=hooked").Apply(spec()); err == nil {
		t.Error("hooks are passed over")
	}
}
