package linux

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func specMount(options string) specs.Mount {
	m := specs.Mount{Destination: "/x", Type: "tmpfs"}
	if options != "" {
		m.Options = strings.Split(options, ",")
	}
	return m
}

func TestSettings(t *testing.T) {
	t.Parallel()
	ptr := func(n int64) *int64 { return &n }
	u := func(n uint64) *uint64 { return &n }
	for _, tt := range []struct {
		name   string
		r      specs.LinuxResources
		v1, v2 string // file=value, or !error
	}{
		{"memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(1 << 20)}},
			"memory.limit_in_bytes=1048576", "memory.max=1048576"},
		{"memory and swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(100), Swap: ptr(150)}},
			"memory.limit_in_bytes=100 memory.memsw.limit_in_bytes=150", "memory.max=100 memory.swap.max=50"},
		{"unlimited swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(100), Swap: ptr(-1)}},
			"memory.limit_in_bytes=100 memory.memsw.limit_in_bytes=-1", "memory.max=100 memory.swap.max=max"},
		{"swap below memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(100), Swap: ptr(50)}},
			"memory.limit_in_bytes=100 memory.memsw.limit_in_bytes=50", "!the limit of memory and swap is below that of memory"},
		{"quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(50000), Period: u(100000)}},
			"cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000", "cpu.max=50000 100000"},
		{"quota only", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(5000)}},
			"cpu.cfs_quota_us=5000", "cpu.max=5000 100000"},
		{"shares", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u(1024)}},
			"cpu.shares=1024", "cpu.weight=39"},
		{"most shares", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u(262144)}},
			"cpu.shares=262144", "cpu.weight=10000"},
		{"cpuset", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}},
			"cpuset.cpus=0-1 cpuset.mems=0", "cpuset.cpus=0-1 cpuset.mems=0"},
		{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(10)}}, "pids.max=10", "pids.max=10"},
		{"any pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(-1)}}, "pids.max=max", "pids.max=max"},
		{"unified", specs.LinuxResources{Unified: map[string]string{"memory.high": "5"}},
			"!this machine has no cgroup v2", "memory.high=5"},
		{"escape", specs.LinuxResources{Unified: map[string]string{"../memory.high": "5"}},
			"!this machine has no cgroup v2", `!bad cgroup file "../memory.high"`},
		{"block devices", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{}},
			"!limits other than of memory, cpu and pids: unsupported operation", "!limits other than of memory, cpu and pids: unsupported operation"},
	} {
		for v2, want := range map[bool]string{false: tt.v1, true: tt.v2} {
			list, err := settings(&tt.r, v2)
			var files []string
			for _, s := range list {
				files = append(files, s.file+"="+s.value)
			}
			got := strings.Join(files, " ")
			if err != nil {
				got = "!" + err.Error()
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, v2 %v: (-want +got)\n%s", tt.name, v2, diff)
			}
		}
	}
}

// What a killed process leaves is removed by the next; what is in use, or
// somebody's, is not.
func TestSweepCgroups(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dead := "strake-4194305-1" // above the highest pid
	alive := "strake-1-1"
	for _, name := range []string{"strake/" + dead, "memory/strake/" + dead, "strake/" + alive, "strake/other", "strake/strake-x-1"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sweepCgroups(root)
	for name, want := range map[string]bool{"strake/" + dead: false, "memory/strake/" + dead: false, "strake/" + alive: true, "strake/other": true, "strake/strake-x-1": true} {
		if _, err := os.Stat(filepath.Join(root, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
}
