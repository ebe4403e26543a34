package faults

import (
	"fmt"
	"strings"
	"syscall"
)

// errorFaults make system calls fail.
func errorFaults() []fault {
	var list []fault
	for _, f := range []struct {
		name    string
		errno   syscall.Errno
		all     bool // not one call, but that and all that follow
		classes []string
	}{
		{"full disk", syscall.ENOSPC, true, []string{"write", "create", "mkdir", "link", "rename"}},
		{"full disk for a moment", syscall.ENOSPC, false, []string{"write", "create", "mkdir"}},
		{"quota exceeded", syscall.EDQUOT, true, []string{"write", "mkdir"}},
		{"disk that fails to write", syscall.EIO, false, []string{"write", "sync", "rename", "create"}},
		{"disk that fails to read", syscall.EIO, false, []string{"read"}},
		{"too many open files", syscall.EMFILE, true, []string{"open"}},
		{"too many open files for a moment", syscall.EMFILE, false, []string{"open"}},
		{"disk that becomes read-only", syscall.EROFS, true, []string{"create", "mkdir", "rename"}},
		{"no memory for a mount", syscall.ENOMEM, false, []string{"mount"}},
		{"no right to change attributes", syscall.EPERM, false, []string{"attribute"}},
		{"file that can't be removed", syscall.EBUSY, false, []string{"unlink"}},
	} {
		list = append(list, fault{name: f.name, outcome: "the command fails with an error that says it, or does without", points: func(l *lab) []point {
			var points []point
			for _, class := range f.classes {
				for _, p := range atCalls(class, 2, func(b *bed, p phase, n int) {
					r := b.disturbed(injection{class: class, n: n, errno: f.errno, all: f.all}, p.args(b)...)
					if r.code == 0 {
						return
					}
					b.failed(r)
					if r.hits >= n && !strings.Contains(strings.ToLower(r.stderr), f.errno.Error()) {
						b.Errorf("it does not say %q: %v", f.errno.Error(), r)
					}
				})(l) {
					points = append(points, point{fmt.Sprintf("%s/%s", class, p.name), p.run})
				}
			}
			return points
		}})
	}
	return append(list, fault{name: "short writes", outcome: "the rest is written", points: func(l *lab) []point {
		return atCalls("write", perPhase, func(b *bed, p phase, n int) {
			if r := b.disturbed(injection{class: "write", n: n, short: true}, p.args(b)...); r.code != 0 {
				b.Errorf("%v", r)
			}
		})(l)
	}})
}
