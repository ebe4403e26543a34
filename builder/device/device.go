// Package device finds the devices of this machine that steps ask for, as files
// in the form of CDI (Container Device Interface) describe them: a device is a
// set of changes to the configuration of a sandbox.
//
// What a file says of a device is part of the key of a step that uses it: a
// result that was made with another device, or another description of it, is
// another result.
package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/strake-build/strake/plan"
)

// Annotations of devices, as BuildKit has them.
const (
	annotationClass     = "org.mobyproject.buildkit.device.class"
	annotationAutoAllow = "org.mobyproject.buildkit.device.autoallow"
)

// Entitlement is what a user allows by it: "device" all devices, and
// "device=NAME" one, or those of one kind.
const Entitlement = "device"

// Registry is the devices that directories describe. nil has none.
type Registry struct{ dirs []string }

// Open returns the devices that files in dirs describe; none: /etc/cdi and
// /var/run/cdi. They are read whenever a device is asked for.
func Open(dirs ...string) *Registry {
	if len(dirs) == 0 {
		dirs = cdi.DefaultSpecDirs
	}
	return &Registry{dirs}
}

// Set is the devices that a step gets.
type Set struct {
	cache *cdi.Cache
	names []string
}

// Find returns the devices that are asked for. Names are those of CDI,
// "vendor.com/kind=name"; "vendor.com/kind" is the first of a kind,
// "vendor.com/kind=*" all of them, and a word those of a class. One that is not
// there is an error, unless it is optional.
func (r *Registry) Find(devices []plan.Device) (Set, error) {
	if len(devices) == 0 {
		return Set{}, nil
	}
	var dirs []string
	if r != nil {
		dirs = r.dirs
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return Set{}, fmt.Errorf("read descriptions of devices: %w", err)
	}
	s := Set{cache: cache}
	for _, d := range devices {
		found := s.find(d.Name)
		if len(found) == 0 && !d.Optional {
			return s, fmt.Errorf("required device %q is not registered: no file in %s describes it", d.Name, strings.Join(dirs, ", "))
		}
		for _, name := range found {
			if !slices.Contains(s.names, name) {
				s.names = append(s.names, name)
			}
		}
	}
	return s, nil
}

func (s Set) find(asked string) (found []string) {
	kind, name, _ := strings.Cut(asked, "=")
	var class []string
	for _, n := range s.cache.ListDevices() { // sorted
		switch {
		case n == asked || name == "*" && strings.HasPrefix(n, kind+"="):
			found = append(found, n)
		case name == "" && strings.HasPrefix(n, kind+"=") && len(found) == 0:
			found = append(found, n)
		case s.annotation(n, annotationClass) == asked:
			class = append(class, n)
		}
	}
	if len(found) == 0 {
		return class
	}
	return found
}

// annotation is that of a device, or else of the file that it is from.
func (s Set) annotation(name, key string) string {
	d := s.cache.GetDevice(name)
	if d == nil {
		return ""
	}
	if v, ok := d.Annotations[key]; ok {
		return v
	}
	return d.GetSpec().Annotations[key]
}

// Check refuses devices that are not allowed: neither by a user's entitlements,
// nor by whoever described them.
func (s Set) Check(entitlements []string) error {
	for _, n := range s.names {
		kind, _, _ := strings.Cut(n, "=")
		auto, err := strconv.ParseBool(s.annotation(n, annotationAutoAllow))
		if err == nil && auto {
			continue
		}
		if !slices.ContainsFunc(entitlements, func(e string) bool {
			return e == Entitlement || e == Entitlement+"="+n || e == Entitlement+"="+kind
		}) {
			return fmt.Errorf("device %s is not allowed: allow it by %s=%s", n, Entitlement, n)
		}
	}
	return nil
}

// Digest stands for what the devices change.
func (s Set) Digest() (digest.Digest, error) {
	var edits []any
	for _, n := range s.names {
		d := s.cache.GetDevice(n)
		edits = append(edits, n, d.ContainerEdits, d.GetSpec().ContainerEdits)
	}
	data, err := json.Marshal(edits)
	return digest.FromBytes(data), err
}

// Apply gives the devices to a sandbox.
func (s Set) Apply(spec *specs.Spec) error {
	if len(s.names) == 0 {
		return nil
	}
	if missing, err := s.cache.InjectDevices(spec, s.names...); err != nil {
		return fmt.Errorf("devices %s: %w", strings.Join(append(missing, s.names...), ", "), err)
	}
	if spec.Hooks != nil || len(spec.Linux.NetDevices) > 0 || spec.Linux.IntelRdt != nil {
		return errors.New("devices with hooks, network interfaces or cache allocation are not supported")
	}
	return nil
}
