package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

// sharingFaults have processes in each other's way.
func sharingFaults() []fault {
	// among runs other commands again and again while builds run.
	among := func(others ...[]string) func(b *bed) {
		return func(b *bed) {
			done := make(chan struct{})
			var wg sync.WaitGroup
			for _, args := range others {
				wg.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
							if r := b.strake(args...); r.code != 0 {
								b.Errorf("%v", r)
							}
						}
					}
				})
			}
			var builds sync.WaitGroup
			for i := range 3 {
				builds.Go(func() {
					for j, name := range []string{"run", "copy", "run"} {
						if r := b.strake("build", "-f", file(b.lab, name), "-t", fmt.Sprint(name, i), "--build-arg", fmt.Sprint("A=", j), b.lab.context); r.code != 0 {
							b.Errorf("%v", r)
						}
					}
					if r := b.strake("build", "-t", b.image, "--push", b.lab.context); r.code != 0 {
						b.Errorf("%v", r)
					}
				})
			}
			builds.Wait()
			close(done)
			wg.Wait()
		}
	}
	return []fault{
		{name: "stale locks and leases", outcome: "they are taken over and swept up", points: func(*lab) []point {
			built := func(l *lab) [][]string { return [][]string{{"build", "-t", "app", l.context}} }
			junk := func(name string, make func(b *bed) error) point {
				return point{name, func(b *bed) {
					b.store("pack", built)
					b.must(make(b))
					b.ok("images")
					b.noFiles()
				}}
			}
			id := strings.Repeat("0123456789abcdef", 4)
			write := func(path, text string) func(b *bed) error {
				return func(b *bed) error {
					path := filepath.Join(b.s.Root, path)
					if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
						return err
					}
					return os.WriteFile(path, []byte(text), 0o600)
				}
			}
			return []point{
				junk("lease", write("leases/"+id[:32], "layer "+id+"\n")),
				junk("lease of garbage", write("leases/"+id[:32], "\x00\xff\n\n what is this")),
				junk("lease with temporary files", func(b *bed) error {
					if err := write("leases/"+id[:32], "")(b); err != nil {
						return err
					}
					return write("tmp/"+id[:32]+"/layer-1/fs/a", "a")(b)
				}),
				junk("temporary files without a lease", write("tmp/"+id[:32]+"/layer-1/fs/a", "a")),
				junk("temporary files that may not be entered", func(b *bed) error {
					dir := filepath.Join(b.s.Root, "tmp", id[:32], "active", "a")
					return os.MkdirAll(dir, 0)
				}),
				{"lock of a step", func(b *bed) {
					b.store("pack", built)
					b.must(write("cache/locks/"+id[:32], "")(b))
					b.ok("build", b.lab.context)
					b.ok("prune", "--force")
				}},
				{"lock of a layer", func(b *bed) {
					b.store("pack", built)
					b.must(write("locks/gc", "what is this")(b))
					b.ok("prune", "--force")
				}},
			}
		}},
		{name: "builder that stands still", outcome: "others wait for it, and go on when it dies", points: func(l *lab) []point {
			return atCalls("lock", 2, func(b *bed, p phase, n int) {
				stopped := make(chan struct{})
				started := make(chan int, 1)
				run, hits := b.watched(injection{class: "lock", n: n, act: func() {
					_ = syscall.Kill(<-started, syscall.SIGSTOP)
					close(stopped)
				}}, p.args(b)...)
				started <- run.cmd.Process.Pid
				ended := make(chan result, 1)
				go func() { ended <- run.wait() }()
				var first *result
				select {
				case <-stopped:
				case r := <-ended:
					first = &r
				}
				other := b.start(b.s.Command(p.args(b)...))
				time.Sleep(200 * time.Millisecond)
				_ = run.cmd.Process.Kill()
				if r := other.wait(); r.code != 0 {
					b.Errorf("%v", r)
				}
				if first == nil {
					<-ended
				}
				<-hits
			})(l)
		}},
		{name: "prune among builds", outcome: "builds succeed, and what they use stays", points: func(*lab) []point {
			var points []point
			for i := range 3 {
				points = append(points,
					point{fmt.Sprint("all/", i), among([]string{"prune", "--all", "--force"})},
					point{fmt.Sprint("limited/", i), among([]string{"prune", "--force", "--max-used-space", "1MB"})},
					point{fmt.Sprint("images/", i), among([]string{"prune", "--all", "--force", "--images"}, []string{"du"}, []string{"images"})})
			}
			return points
		}},
		{name: "check and repair among builds", outcome: "they find nothing, and builds succeed", points: func(*lab) []point {
			return []point{{"check", among([]string{"check", "--read-data"})}, {"repair", among([]string{"repair"})}}
		}},
		{name: "builders that are killed among others", outcome: "the others succeed", points: func(*lab) []point {
			return []point{{"build", func(b *bed) {
				done := make(chan struct{})
				var killers sync.WaitGroup
				killers.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-done:
							return
						default:
						}
						run := b.start(b.s.Command("build", "-t", b.image, "--push", "--no-cache", b.lab.context))
						time.Sleep(time.Duration(i%10*25) * time.Millisecond)
						_ = run.cmd.Process.Kill()
						run.wait()
					}
				})
				among()(b)
				close(done)
				killers.Wait()
			}}}
		}},
		{name: "16 processes on one store", outcome: "all make the same image", points: func(*lab) []point {
			return []point{
				{"empty store", func(b *bed) { b.sixteen() }},
				{"furnished store", func(b *bed) { b.copyStore(b.lab.furnished()); b.sixteen() }},
			}
		}},
	}
}

// sixteen runs as many builds at once.
func (b *bed) sixteen() {
	b.Helper()
	testbed.InParallel(16, func(i int) {
		ref := strings.Replace(b.image, ":latest", fmt.Sprint(":", i), 1)
		if r := b.strake("build", "-t", ref, "--push", b.lab.context); r.code != 0 {
			b.Errorf("%v", r)
			return
		}
		if got := testbed.DigestOf(b.T, ref); got != b.lab.want {
			b.Errorf("build %d made %s, want %s", i, got, b.lab.want)
		}
	})
}
