package faults

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// perPhase is at how many of the calls of a class each phase is killed.
const perPhase = 5

// killFaults kill strake with SIGKILL.
func killFaults() []fault {
	var list []fault
	for _, class := range []string{"rename", "sync", "link", "mount", "unlink", "mkdir", "create", "write", "lock", "attribute", "process"} {
		list = append(list, fault{name: "killed before a call/" + class, outcome: "the command works when it is given again",
			points: atCalls(class, perPhase, func(b *bed, p phase, n int) {
				r := b.disturbed(injection{class: class, n: n}, p.args(b)...)
				if r.hits >= n && r.signal != syscall.SIGKILL || r.hits < n && r.code != 0 {
					b.Errorf("call %d of %d: %v", n, r.hits, r)
				}
			})})
	}
	return append(list,
		fault{name: "killed at any time", outcome: "the command works when it is given again", points: func(*lab) []point {
			var points []point
			for _, p := range phases() {
				for i := range perPhase {
					points = append(points, point{fmt.Sprintf("%s/%d", p.name, i), func(b *bed) {
						p.begin(b)
						run := b.start(b.s.Command(p.args(b)...))
						time.Sleep(time.Duration(rand.IntN(20)+i*30) * time.Millisecond)
						_ = run.cmd.Process.Kill()
						run.wait()
					}})
				}
			}
			return points
		}},
		fault{name: "killed again and again", outcome: "what was finished is not done again, and what was not does not pile up", points: func(*lab) []point {
			return []point{{"build", func(b *bed) {
				for i := range 20 {
					run := b.start(b.s.Command("build", "-t", b.image, "--push", b.lab.context))
					time.Sleep(time.Duration(5+i*12) * time.Millisecond)
					_ = run.cmd.Process.Kill()
					run.wait()
				}
			}}}
		}})
}

// atCalls are points at calls of a class, in all phases that make some: so many in
// each.
func atCalls(class string, most int, run func(b *bed, p phase, n int)) func(l *lab) []point {
	return func(l *lab) []point {
		var points []point
		for _, p := range phases() {
			for _, n := range spread(upTo(l.count(p, class)), most) {
				points = append(points, point{fmt.Sprintf("%s/%d", p.name, n), func(b *bed) {
					p.begin(b)
					run(b, p, n)
				}})
			}
		}
		return points
	}
}

// upTo is 1, 2, … n.
func upTo(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i + 1
	}
	return list
}
