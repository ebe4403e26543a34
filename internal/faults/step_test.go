package faults

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

// building is the command that builds a file, with files from the context.
func (b *bed) building(dockerfile string, flags ...string) []string {
	b.Helper()
	c := filepath.Join(b.dir, "context")
	b.must(os.MkdirAll(c, 0o755))
	b.must(os.WriteFile(filepath.Join(c, "Dockerfile"), []byte(dockerfile), 0o644))
	return append(append([]string{"build", "--progress", "plain"}, flags...), c)
}

// fails runs a command that must fail with these words.
func (b *bed) fails(want string, args ...string) result {
	b.Helper()
	r := b.strake(args...)
	b.failed(r)
	if !regexp.MustCompile(want).MatchString(r.stderr) {
		b.Errorf("it does not say %q: %v", want, r)
	}
	return r
}

// marker is a number of seconds that tells a point's sleep from others.
func marker() string { return strconv.Itoa(100_000 + rand.IntN(900_000)) }

// marked are the processes, of any namespace, that have a word among their
// arguments.
func marked(word string) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if data, err := os.ReadFile(d + "/cmdline"); err == nil && bytes.Contains(data, []byte("\x00"+word+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

// above are the ancestors of a process below another one.
func above(pid, top int) (pids []int) {
	for pid > 1 {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
		if len(fields) < 2 {
			return pids
		}
		if pid, _ = strconv.Atoi(string(fields[1])); pid == top {
			return pids
		}
		pids = append(pids, pid)
	}
	return nil
}

// noneMarked waits until no process is marked any more.
func (b *bed) noneMarked(word string) {
	b.Helper()
	testbed.Eventually(b.T, "the end of the step's processes", func() bool { return len(marked(word)) == 0 })
}

// peak is the most memory that a process which runs has taken, in MiB.
func peak(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(data)
	if m == nil {
		return 0
	}
	kib, _ := strconv.Atoi(string(m[1]))
	return kib >> 10
}

// step builds a file with one more instruction. want is what the error says of it;
// empty: there is none.
func (b *bed) step(want, run string, flags ...string) {
	b.Helper()
	args := b.building("FROM "+b.lab.base+"\n"+run+"\n", flags...)
	begin := time.Now()
	if want == "" {
		b.ok(args...)
	} else {
		b.fails(want, args...)
	}
	if took := time.Since(begin); took > 30*time.Second {
		b.Errorf("it took %v", took)
	}
}

// leaves is a privileged step that leaves something behind when it succeeds, and
// when it fails; more steps follow.
func leaves(name, command, more string) (list []point) {
	for _, end := range []string{"true", "false"} {
		list = append(list, point{name + ", then " + end, func(b *bed) {
			args := b.building("FROM "+b.lab.base+"\nRUN --security=insecure "+command+"; "+end+"\n"+more, "--allow", "security.insecure")
			if end == "true" {
				b.ok(args...)
			} else {
				b.fails("exit code: 1", args...)
			}
			b.ok("prune", "--all", "--force", "--images")
		}})
	}
	return list
}

// stepFaults are of steps that misbehave, or are made to.
func stepFaults() []fault {
	const failed, gone = "the step fails, in words", "the build goes on, and nothing of it is left"
	named := func(list map[string]func(b *bed)) func(*lab) []point {
		return func(*lab) (points []point) {
			for name, run := range inOrder(list) {
				points = append(points, point{name, run})
			}
			return points
		}
	}
	step := func(want, run string, flags ...string) func(b *bed) {
		return func(b *bed) { b.step(want, run, flags...) }
	}
	return []fault{
		{name: "step/killed", outcome: failed, points: func(*lab) (list []point) {
			for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGTERM} {
				list = append(list, point{"itself by " + sig.String(), step(fmt.Sprint("exit code: ", 128+int(sig)), fmt.Sprintf("RUN echo x > /x; sh -c 'kill -%d $$'; exit $?", sig))})
			}
			list = append(list, point{"all that it may", step("exit code: 7", "RUN sleep 1000 & kill -9 -1; kill -9 $$; exit 7")})
			for level, who := range []string{"its process", "the shell", "the process above", "the one above that"} {
				for _, after := range []time.Duration{0, 20 * time.Millisecond, 200 * time.Millisecond} {
					list = append(list, point{fmt.Sprintf("%s after %v", who, after), func(b *bed) {
						word := marker()
						r := b.start(b.s.Command(b.building("FROM " + b.lab.base + "\nRUN (setsid sleep " + word + " &) ; sleep " + word + "; echo got here\n")...))
						testbed.Eventually(b.T, "the step", func() bool { return len(marked(word)) > 0 })
						time.Sleep(after)
						chain := append([]int{marked(word)[0]}, above(marked(word)[0], r.cmd.Process.Pid)...)
						victim := chain[min(level, len(chain)-1)]
						b.must(syscall.Kill(victim, syscall.SIGKILL))
						if level == 0 {
							for _, pid := range marked(word) {
								_ = syscall.Kill(pid, syscall.SIGKILL)
							}
						}
						res := r.wait()
						if !strings.Contains(res.stderr, "got here") {
							b.failed(res)
						}
						b.noneMarked(word)
					}})
				}
			}
			return list
		}},
		{name: "step/out of memory", outcome: failed, points: named(map[string]func(b *bed){
			"cgroup":         step("exit code: 137|ut of memory", "RUN tail -c 200000000 /dev/zero > /x", "--memory", "32m"),
			"cgroup, tmpfs":  step("exit code|ut of memory|annot allocate", "RUN dd if=/dev/zero of=/dev/shm/x bs=1M count=100", "--memory", "32m", "--shm-size", "200m"),
			"a child of it":  step("killed it|exit code: 1", "RUN tail -c 200000000 /dev/zero > /x || { echo killed it; false; }", "--memory", "32m"),
			"data":           step("exit code", "RUN tail -c 200000000 /dev/zero > /x", "--ulimit", "data=67108864"),
			"file size":      step("exit code", "RUN head -c 20000000 /dev/zero > /x", "--ulimit", "fsize=1000000"),
			"processor time": step("exit code", "RUN while :; do :; done", "--ulimit", "cpu=1"),
			"descriptors":    step("exit code", "RUN ulimit -n; i=3; while [ $i -lt 100 ]; do eval \"exec $i< /etc/passwd\" || exit 1; i=$((i+1)); done", "--ulimit", "nofile=20"),
		})},
		{name: "step/fork bomb", outcome: "bounded, and all of it ends with the step", points: named(map[string]func(b *bed){
			"limit of processes": func(b *bed) {
				word := marker()
				b.step("exit code", "RUN i=0; while [ $i -lt 2000 ]; do sleep "+word+" & i=$((i+1)); done", "--pids-limit", "50")
				b.noneMarked(word)
			},
			"a user's limit": func(b *bed) {
				word := marker()
				b.step("exit code", "USER user\nRUN i=0; while [ $i -lt 2000 ]; do sleep "+word+" & i=$((i+1)); done", "--ulimit", "nproc=50")
				b.noneMarked(word)
			},
			"a real one": func(b *bed) {
				b.step("", "RUN printf '#!/bin/sh\\n/b & /b\\n' > /b; chmod 755 /b; /b & sleep 1; true", "--pids-limit", "100")
			},
			"no limit": func(b *bed) {
				word := marker()
				b.step("", "RUN i=0; while [ $i -lt 1000 ]; do sleep "+word+" & i=$((i+1)); done")
				b.noneMarked(word)
			},
		})},
		{name: "step/output without end", outcome: "memory and disk are bounded", points: func(*lab) (list []point) {
			const lines, line, empty = "yes 'a line of output, and more of it'", "tr '\\0' x < /dev/zero", "yes ''"
			for _, c := range []struct {
				name, command string
				mib           int64
			}{{"lines", lines, 300}, {"one line", line, 10 << 10}, {"lines", lines, 10}, {"one line", line, 20}, {"empty lines", empty, 5}} {
				list = append(list, point{fmt.Sprintf("%d MiB of %s", c.mib, c.name), func(b *bed) { b.floods(c.command, c.mib<<20) }})
			}
			return list
		}},
		{name: "step/children that outlive it", outcome: gone, points: func(*lab) (list []point) {
			for name, command := range inOrder(map[string]string{
				"in the background":         "sleep M &",
				"daemons":                   "(setsid sh -c 'sleep M & sleep M' &);",
				"deaf to signals":           "(trap '' HUP INT TERM QUIT; sleep M &);",
				"holding its output":        "(setsid sh -c 'exec 3>&1; sleep M' &);",
				"writing on":                "(while :; do echo M; done &);",
				"stopped":                   "sleep M & kill -STOP $!;",
				"a hundred":                 "i=0; while [ $i -lt 100 ]; do (setsid sleep M &); i=$((i+1)); done;",
				"with files held open":      "(exec 5>/held; rm /held; setsid sleep M &);",
				"in a directory of its own": "mkdir /d && (cd /d && setsid sleep M &); rm -r /d;",
			}) {
				list = append(list, point{name, func(b *bed) {
					word := marker()
					b.step("", "RUN { "+strings.ReplaceAll(command, "M", word)+" }; echo done")
					b.noneMarked(word)
				}}, point{name + ", of one that fails", func(b *bed) {
					word := marker()
					b.step("exit code: 3", "RUN { "+strings.ReplaceAll(command, "M", word)+" }; exit 3")
					b.noneMarked(word)
				}})
			}
			return list
		}},
		{name: "step/files that can't be removed", outcome: gone, points: func(*lab) (list []point) {
			for name, command := range inOrder(map[string]string{
				"immutable file":      "touch /i && chattr +i /i",
				"immutable directory": "mkdir -p /i/d && touch /i/d/f && chattr +i /i/d /i",
				"append only":         "mkdir /i && touch /i/f && chattr +a /i /i/f",
				"many":                "mkdir /i; for i in 1 2 3 4 5 6 7 8 9; do mkdir -p /i/$i/x; touch /i/$i/x/f; chattr +i /i/$i/x/f /i/$i/x; done",
			}) {
				list = append(list, leaves(name, command, "RUN ls -lR /i\n")...)
			}
			return list
		}},
		{name: "step/mounts that are left", outcome: gone, points: func(*lab) (list []point) {
			for name, command := range inOrder(map[string]string{
				"tmpfs":              "mkdir /m && mount -t tmpfs x /m && touch /m/f",
				"proc":               "mkdir /m && mount -t proc x /m",
				"bind":               "mkdir /m && mount --bind /etc /m",
				"recursive bind":     "mkdir /m && mount --rbind / /m",
				"over the root":      "mount --bind /etc /",
				"over dev":           "mount -t tmpfs x /dev",
				"shared":             "mkdir /m && mount -t tmpfs x /m && mount --make-rshared / && mount --bind /m /mnt 2>/dev/null; mkdir -p /n && mount --bind /m /n",
				"overlay":            "mkdir /m /m/l /m/t && mount -t tmpfs x /m/t && mkdir /m/t/u /m/t/w && mount -t overlay -o lowerdir=/m/l,upperdir=/m/t/u,workdir=/m/t/w x /m/l",
				"in other namespace": "mkdir /m && (unshare -m sh -c 'mount -t tmpfs x /m; sleep 1000' &) ; sleep 0.1",
				"deep":               "i=0; p=/m; while [ $i -lt 50 ]; do mkdir -p $p && mount -t tmpfs x $p; p=$p/m; i=$((i+1)); done",
			}) {
				list = append(list, leaves(name, command, "")...)
			}
			return list
		}},
		{name: "step/strange files", outcome: gone, points: func(*lab) (list []point) {
			for name, command := range inOrder(map[string]string{
				"pipes and devices":      "mkfifo /p; mknod /c c 1 3; mknod /b b 7 0",
				"a socket":               "(nc -l -p 0 -s 127.0.0.1 2>/dev/null || true) & true",
				"unreadable directories": "mkdir -p /u/v/w && touch /u/v/w/f && chmod 0 /u/v/w /u/v /u",
				"a deep tree":            "i=0; while [ $i -lt 230 ]; do mkdir dddddddddddddddd && cd dddddddddddddddd; i=$((i+1)); done",
				"names of all bytes":     "mkdir /n; i=1; while [ $i -lt 256 ]; do [ $i = 47 ] || touch \"/n/$(printf x\\\\$(printf %o $i)x)\"; i=$((i+1)); done",
				"holes":                  "truncate -s 1T /holes 2>/dev/null || dd if=/dev/null of=/holes bs=1 seek=1000000000; rm /holes",
			}) {
				list = append(list, point{name, func(b *bed) {
					b.ok(b.building("FROM "+b.lab.base+"\nRUN "+command+"\nRUN true\n", "-o", "type=oci,dest="+b.out("image.tar"))...)
					b.ok("prune", "--all", "--force", "--images")
				}})
			}
			return list
		}},
		{name: "step/strake is killed, rootless", outcome: "the step's processes end with it", points: func(*lab) (list []point) {
			for _, subuid := range []bool{true, false} {
				for _, after := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond} {
					list = append(list, point{fmt.Sprintf("ranges of ids %v, after %v", subuid, after), func(b *bed) { b.orphans(subuid, after) }})
				}
			}
			return list
		}},
	}
}

// floods runs a step with much output.
func (b *bed) floods(command string, size int64) {
	b.Helper()
	cmd := b.s.Command(b.building("FROM " + b.lab.base + fmt.Sprintf("\nRUN %s | head -c %d; echo; echo the end\n", command, size))...)
	r, w, err := os.Pipe()
	b.must(err)
	cmd.Stderr = w
	b.must(cmd.Start())
	w.Close()
	var read int64
	most := 0
	var tail []byte
	buf := make([]byte, 256<<10)
	for begin := time.Now(); err == nil; {
		var n int
		n, err = r.Read(buf)
		read += int64(n)
		tail = append(tail, buf[:n]...)
		tail = tail[max(0, len(tail)-4096):]
		if time.Since(begin) > 20*time.Millisecond {
			begin = time.Now()
			most = max(most, peak(cmd.Process.Pid))
		}
	}
	r.Close()
	if !bytes.Contains(tail, []byte(" the end\n")) {
		b.Errorf("the end was not shown, of %d bytes of output: %s", read, tail)
	}
	if err := cmd.Wait(); err != nil {
		b.Errorf("%v\n%s", err, tail)
	}
	b.Logf("%d MiB of output were shown, in %d MiB of memory; the store takes %d MiB", read>>20, most, diskUsage(b.s.Root)>>20)
	if most > 200 {
		b.Errorf("it took %d MiB of memory", most)
	}
	if size := diskUsage(filepath.Join(b.s.Root, "builds")); size > 130<<20 {
		b.Errorf("the record of the build takes %d MiB", size>>20)
	} else {
		b.allow(size)
	}
}

// orphans kills strake of an ordinary user while a step runs.
func (b *bed) orphans(subuid bool, after time.Duration) {
	b.Helper()
	s := testbed.RootlessStore(b.T, subuid)
	word := marker()
	c := testbed.Write(b.T, map[string]string{"Dockerfile": "FROM " + b.lab.base + "\nRUN echo one > /one\nRUN (setsid sleep " + word + " &) ; test -e /skip || sleep " + word + "\n"})
	b.must(os.Chmod(c, 0o755))
	b.must(os.Chmod(filepath.Dir(c), 0o755))
	cmd := s.Command("build", c)
	b.must(cmd.Start())
	testbed.Eventually(b.T, "the step", func() bool { return len(marked(word)) > 0 })
	time.Sleep(after)
	b.must(cmd.Process.Kill())
	_ = cmd.Wait()
	b.noneMarked(word)
	testbed.Eventually(b.T, "the end of all that strake started", func() bool { return len(s.Processes()) == 0 })
	s.Run("build", "-t", "x", "--add-host", "skip:1.2.3.4", testbed.Write(b.T, map[string]string{"Dockerfile": "FROM " + b.lab.base + "\nRUN echo one > /one\nRUN cat /one\n"}))
	s.Run("check", "--read-data")
}
