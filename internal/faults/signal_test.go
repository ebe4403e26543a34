package faults

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// signalFaults interrupt strake.
func signalFaults() []fault {
	var list []fault
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		list = append(list, fault{name: "interrupted by " + unix.SignalName(sig), outcome: "exit code 128 + n, and nothing is left", points: func(l *lab) []point {
			var points []point
			for _, class := range []string{"create", "write"} {
				points = append(points, atCalls(class, 2, func(b *bed, p phase, n int) {
					r := b.signalled(class, n, p, sig)
					if r.hits >= n && r.code != 128+int(sig) && r.code != 0 {
						b.Errorf("exit code %d: %v", r.code, r)
					}
					b.noProcesses()
					b.noFiles()
				})(l)...)
			}
			return points
		}})
	}
	return append(list,
		fault{name: "interrupted twice", outcome: "it ends at once, and the next command sweeps up", points: atCalls("create", 2, func(b *bed, p phase, n int) {
			b.signalled("create", n, p, syscall.SIGINT, syscall.SIGINT)
		})},
		fault{name: "nobody reads stdout", outcome: "exit code 1, and nothing is left", points: func(*lab) []point {
			var points []point
			built := func(l *lab) [][]string { return [][]string{{"build", "-t", "app", l.context}} }
			for _, args := range [][]string{
				{"build", "-o", "-"}, {"build", "-o", "type=oci,dest=-"}, {"save", "app"}, {"save", "--format", "oci", "app"},
				{"images"}, {"inspect", "app"}, {"history", "app"}, {"du"}, {"check"}, {"why"}, {"build", "-q"}, {"run", "--rm", "app", "yes"},
			} {
				points = append(points, point{fmt.Sprint(args), func(b *bed) {
					b.store("pack", built)
					if args[0] == "build" {
						args = append(slices.Clone(args), b.lab.context)
					}
					r, w, err := os.Pipe()
					b.must(err)
					r.Close()
					cmd := b.s.Command(args...)
					cmd.Stdout = w
					run := b.start(cmd)
					w.Close()
					if res := run.wait(); res.code == 0 || res.code < 0 && res.signal != syscall.SIGPIPE {
						b.Errorf("%v", res)
					}
					b.noProcesses()
					b.noFiles()
				}})
			}
			return points
		}},
		fault{name: "nobody reads stderr", outcome: "it ends or goes on, and nothing is left", points: func(*lab) []point {
			var points []point
			for _, p := range phases() {
				points = append(points, point{p.name, func(b *bed) {
					p.begin(b)
					r, w, err := os.Pipe()
					b.must(err)
					cmd := b.s.Command(p.args(b)...)
					cmd.Stderr = w
					run := b.start(cmd)
					w.Close()
					r.Close()
					run.wait()
					b.noProcesses()
					b.noFiles()
				}})
			}
			return points
		}})
}

// signalled runs the command of a phase and sends signals at its n-th call.
func (b *bed) signalled(class string, n int, p phase, sigs ...syscall.Signal) result {
	b.Helper()
	started := make(chan int, 1)
	run, hits := b.watched(injection{class: class, n: n, act: func() {
		pid := <-started
		for _, sig := range sigs {
			_ = unix.Kill(pid, sig)
		}
	}}, p.args(b)...)
	started <- run.cmd.Process.Pid
	r := run.wait()
	r.hits = <-hits
	return r
}
