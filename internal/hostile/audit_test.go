package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/strake-build/strake/internal/testbed"
)

func nobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// audit is a step that prints what it is and what it has.
const audit = `grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid)' /proc/self/status
echo === fds; for f in /proc/$$/fd/*; do [ -L $f ] && echo -n "${f##*/} -> " && readlink $f; done
echo === mounts; cat /proc/self/mountinfo
echo === pids; ls /proc | grep -E '^[0-9]+$' | tr '\n' ' '
echo === masked; for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats; do [ -e $f ] && head -c 1 $f 2>/dev/null | wc -c | sed "s,^,$f ,"; done
for d in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do [ -d $d ] && ls $d | wc -l | sed "s,^,$d ,"; done
echo === writable; for f in /proc/sys/kernel/hostname /proc/irq/default_smp_affinity /proc/bus/pci /proc/fs/x /proc/asound/x; do [ -e $f ] && (echo x >> $f) 2>/dev/null && echo $f; done
echo === devices; find /dev -type b -o -type c | sort | tr '\n' ' '
echo === end`

// audits look around in a step.
func audits() []attack {
	looks := func(rootless func(b *bed) *testbed.Store) func(b *bed) {
		return func(b *bed) {
			if rootless != nil {
				b.s = rootless(b)
				b.must(os.Chmod(b.dir, 0o755))
				b.must(os.Chmod(filepath.Dir(b.dir), 0o755))
			}
			c := b.context("FROM "+b.base+"\nCOPY look /look\nRUN sh /look\n", "look", audit)
			b.must(os.Chmod(c, 0o755))
			r := b.ok("build", "--progress", "plain", c)
			b.judge(r.stderr)
		}
	}
	return []attack{
		{name: "audit/as root", after: "CVE-2022-24769 CVE-2022-29162 CVE-2016-8867", outcome: "Docker's 14 capabilities, none inheritable or ambient; seccomp; no foreign descriptor, mount, process or device", run: looks(nil)},
		{name: "audit/rootless with a range of IDs", after: "CVE-2022-24769 CVE-2023-25809", outcome: "the same", run: looks(func(b *bed) *testbed.Store { return testbed.RootlessStore(b.T, true) })},
		{name: "audit/rootless with one ID", after: "CVE-2022-24769 CVE-2023-25809", outcome: "the same", run: looks(func(b *bed) *testbed.Store { return testbed.RootlessStore(b.T, false) })},
		{name: "audit/as an ordinary user of the image", after: "CVE-2016-8867 CVE-2021-44716", outcome: "no effective or permitted capability", run: func(b *bed) {
			r := b.build("FROM " + b.base + "\nUSER user\nRUN grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status | grep -v '0000000000000000$' && echo has capa''bilities; true\n")
			b.hasNot(r, "capabilities")
		}},
	}
}

var progressPrefix = regexp.MustCompile(`(?m)^#\d+ \d+\.\d+ `)

func (b *bed) judge(output string) {
	b.Helper()
	text := progressPrefix.ReplaceAllString(output, "")
	part := func(name string) string {
		_, rest, _ := strings.Cut(text, "=== "+name+"\n")
		p, _, _ := strings.Cut(rest, "=== ")
		return p
	}
	status, _, _ := strings.Cut(text, "=== fds\n")
	for _, want := range []string{
		`CapInh:\s+0{16}\n`, `CapPrm:\s+00000000a80425fb\n`, `CapEff:\s+00000000a80425fb\n`, `CapBnd:\s+00000000a80425fb\n`, `CapAmb:\s+0{16}\n`,
		`Seccomp:\s+2\n`,
	} {
		if !regexp.MustCompile(want).MatchString(status) {
			b.Errorf("/proc/self/status does not have %s:\n%s", want, status)
		}
	}
	for line := range strings.Lines(part("fds")) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "total") {
			continue
		}
		if !regexp.MustCompile(`^[012] -> |^\d+ -> /look$`).MatchString(line) {
			b.Errorf("descriptor %s", line)
		}
	}
	for line := range strings.Lines(part("mounts")) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		point, options := f[4], f[5]
		_, tail, _ := strings.Cut(line, " - ")
		kind := strings.Fields(tail)[0]
		switch {
		case strings.Contains(line, "shared:") || strings.Contains(line, "master:"):
			b.Errorf("mount %s takes part in propagation", line)
		case (kind == "proc" || kind == "sysfs" || strings.HasPrefix(kind, "cgroup")) && point != "/proc" && !strings.HasPrefix(options, "ro"):
			b.Errorf("writable mount %s", line)
		case point == "/":
		case strings.HasPrefix(point, "/proc") || strings.HasPrefix(point, "/sys") || strings.HasPrefix(point, "/dev"):
			if !strings.Contains(options, "nosuid") && point != "/dev/console" && !regexp.MustCompile(`^/dev/\w+$`).MatchString(point) {
				b.Errorf("mount without nosuid: %s", line)
			}
		case point == "/etc/resolv.conf" || point == "/etc/hosts" || point == "/etc/hostname":
		default:
			b.Errorf("mount that has no business there: %s", line)
		}
	}
	if n := len(strings.Fields(part("pids"))); n == 0 || n > 6 {
		b.Errorf("%d processes: %s", n, part("pids"))
	}
	for line := range strings.Lines(part("masked")) {
		if !strings.HasSuffix(strings.TrimSpace(line), " 0") {
			b.Errorf("not masked: %s", line)
		}
	}
	if w := strings.TrimSpace(part("writable")); w != "" {
		b.Errorf("writable: %s", w)
	}
	for d := range strings.FieldsSeq(part("devices")) {
		switch strings.TrimPrefix(d, "/dev/") {
		case "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts/ptmx", "pts/0", "core":
		default:
			b.Errorf("device %s", d)
		}
	}
	if b.Failed() {
		fmt.Fprintln(b.Output(), text)
	}
}
