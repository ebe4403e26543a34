package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

// limit is how long a command may take, disturbed or not.
const limit = 90 * time.Second

// bed is what a point works with.
type bed struct {
	*testing.T
	lab *lab
	s   *testbed.Store
	// dir has the store, "root"; "out" for what commands deliver; and "tmp", the
	// directory for temporary files.
	dir string
	// image is a name for images that the point pushes.
	image string
	// again is the command that was disturbed: it must work afterwards.
	again []string
	// found: damage may be left that only `strake check` finds; after `strake
	// repair` there must be none.
	found bool
	// before is what the store took before the fault.
	before int64
	// mountPoint is where the store's file system is mounted if it has its own.
	mountPoint string

	mu   sync.Mutex
	pids []int // of the commands
}

func newBed(t *testing.T, l *lab) *bed {
	t.Helper()
	dir, err := os.MkdirTemp("", "strake-faults-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	b := &bed{T: t, lab: l, dir: dir, image: l.host + "/image" + strings.ToLower(rand.Text()[:10]) + ":latest"}
	for _, d := range []string{"out", "tmp"} {
		b.must(os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	b.s = &testbed.Store{T: t, Root: filepath.Join(dir, "root"), Env: []string{"TMPDIR=" + filepath.Join(dir, "tmp"), "HOME=" + dir, "DOCKER_CONFIG=" + filepath.Join(dir, "docker")}}
	return b
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) out(name string) string { return filepath.Join(b.dir, "out", name) }

// result is how a command ended: code is -1 if a signal ended it.
type result struct {
	args           []string
	stdout, stderr string
	code           int
	signal         syscall.Signal
	// hits is how many of the calls that an injection waits for were made.
	hits int
}

func (r result) String() string {
	return fmt.Sprintf("strake %s: exit code %d, signal %d\n%.3000s%.6000s", strings.Join(r.args, " "), r.code, r.signal, r.stdout, r.stderr)
}

// strake runs a command to its end.
func (b *bed) strake(args ...string) result {
	b.Helper()
	return b.start(b.s.Command(args...)).wait()
}

// ok runs a command that must succeed.
func (b *bed) ok(args ...string) result {
	b.Helper()
	r := b.strake(args...)
	if r.code != 0 {
		b.Fatalf("%v", r)
	}
	return r
}

// running is a command that runs.
type running struct {
	b              *bed
	cmd            *exec.Cmd
	stdout, stderr testbed.SyncBuffer
	ctx            context.Context
	cancel         func()
}

// start starts a command, which may have been given another stdout or stderr.
func (b *bed) start(cmd *exec.Cmd) *running {
	b.Helper()
	r := &running{b: b, cmd: cmd}
	if cmd.Stdout == nil {
		cmd.Stdout = &r.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &r.stderr
	}
	// A process that is left and has the pipe is found by itself.
	cmd.WaitDelay = 5 * time.Second
	b.must(cmd.Start())
	b.mu.Lock()
	b.pids = append(b.pids, cmd.Process.Pid)
	b.mu.Unlock()
	r.ctx, r.cancel = context.WithTimeout(context.Background(), limit)
	context.AfterFunc(r.ctx, func() {
		if errors.Is(r.ctx.Err(), context.DeadlineExceeded) {
			_ = cmd.Process.Signal(syscall.SIGQUIT)
		}
	})
	return r
}

// wait waits for the end and looks at what no command may do, however disturbed.
func (r *running) wait() result {
	b := r.b
	b.Helper()
	err := r.cmd.Wait()
	timeout := r.ctx.Err() != nil
	r.cancel()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		b.Errorf("%v: %v", r.cmd.Args[1:], err)
	}
	res := result{args: r.cmd.Args[1:], stdout: r.stdout.String(), stderr: r.stderr.String(), code: r.cmd.ProcessState.ExitCode()}
	if ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		res.signal = ws.Signal()
	}
	if timeout {
		b.Errorf("it took longer than %v: %v", limit, res)
	}
	if stackTrace.MatchString(res.stderr) {
		b.Errorf("it crashed: %v", res)
	}
	return res
}

var stackTrace = regexp.MustCompile(`(?m)^goroutine \d+|^panic:|^fatal error:|runtime error`)

// failed fails the test unless the command failed as commands fail: with an
// error that says something, and an exit code that is documented.
func (b *bed) failed(r result) {
	b.Helper()
	if r.code != 1 && r.code != 125 || !strings.Contains(r.stderr, "ERROR: ") {
		b.Errorf("it did not fail with an error: %v", r)
	}
}

// verify holds the store to what must be true after every fault.
func (b *bed) verify() {
	b.Helper()
	b.noProcesses()
	if b.again != nil {
		b.ok(b.again...)
	}
	b.ok("build", "-t", b.image, "--push", b.lab.context)
	if got := testbed.DigestOf(b.T, b.image); got != b.lab.want && b.lab.want != "" {
		b.Errorf("the next build made %s, an undisturbed one makes %s", got, b.lab.want)
	}
	r := b.strake("check", "--read-data")
	if r.code != 0 && b.found {
		b.ok("repair")
		b.ok("build", "-t", b.image, "--push", b.lab.context)
		r = b.strake("check", "--read-data")
	}
	if r.code != 0 {
		b.Errorf("check finds damage: %v", r)
	}
	b.noFiles()
	b.noCgroups()
	b.bounded()
	b.noProcesses()
}

// bounded looks at what the store takes: there may be results that no record
// tells of, which are gone after the next prune.
func (b *bed) bounded() {
	b.Helper()
	if b.lab.size == 0 {
		return
	}
	const slack = 2 << 20
	want := b.before + b.lab.size + b.lab.size/4 + slack
	if size := diskUsage(b.s.Root); size > 2*want {
		b.Errorf("the store takes %d bytes, without the fault it would take %d", size, want)
	}
	b.ok("prune", "--force", "--reserved-space", "1TB")
	if size := diskUsage(b.s.Root); size > want {
		out, _ := exec.Command("du", "--max-depth=1", b.s.Root).Output()
		b.Errorf("after a prune of garbage the store takes %d bytes, without the fault it would take %d:\n%s", size, want, out)
	}
}

// noFiles looks for temporary files and locks that nobody holds.
func (b *bed) noFiles() {
	b.Helper()
	for _, dir := range []string{"tmp", "leases", "cache/locks", "segments/tmp", "../tmp"} {
		entries, err := os.ReadDir(filepath.Join(b.s.Root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Error(err)
		}
		for _, e := range entries {
			b.Errorf("left: %s/%s", dir, e.Name())
		}
	}
	err := filepath.WalkDir(b.s.Root, func(p string, d fs.DirEntry, err error) error {
		name := relative(b.s.Root, p)
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "fs" || d.Name() == "lost+found"):
			return fs.SkipDir
		case filepath.Dir(name) == "locks" && d.Name() != "gc",
			name != "." && strings.HasPrefix(d.Name(), "."),
			strings.HasPrefix(d.Name(), "tmp-"), strings.HasSuffix(d.Name(), ".new"):
			b.Errorf("left: %s", name)
		}
		return nil
	})
	if err != nil {
		b.Error(err)
	}
	_ = filepath.WalkDir(filepath.Join(b.dir, "out"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".strake-tmp") {
			b.Errorf("left: %s", relative(b.dir, p))
		}
		return nil
	})
}

// noCgroups looks for the cgroups of the processes that were started.
func (b *bed) noCgroups() {
	b.Helper()
	for _, pid := range b.pids {
		for _, pattern := range []string{"/sys/fs/cgroup/strake/strake-%d-*", "/sys/fs/cgroup/*/strake/strake-%d-*"} {
			if left, _ := filepath.Glob(fmt.Sprintf(pattern, pid)); len(left) > 0 {
				b.Errorf("cgroups left: %v", left)
			}
		}
	}
}

// noProcesses waits until nothing runs any more that has to do with the store, or
// has something of it mounted, and until no loop device has a file of the point's.
func (b *bed) noProcesses() {
	b.Helper()
	var left []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		left = append(b.s.Processes(), b.mounts()...)
		if b.mountPoint == "" { // else there is one, that of its store
			left = append(left, b.loops()...)
		}
		if len(left) == 0 {
			return
		}
	}
	b.Errorf("processes, mounts or loop devices left: %s", strings.Join(left, "\n"))
}

// mounts are the mounts, in any process, that have to do with the store. A
// step's root names the layers below it.
func (b *bed) mounts() (found []string) {
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, table := range tables {
		data, err := os.ReadFile(table)
		if err != nil || !bytes.Contains(data, []byte(b.dir)) {
			continue
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if strings.Contains(line, b.dir) && fields[4] != b.mountPoint {
				found = append(found, table+": "+line)
			}
		}
	}
	return found
}

// loops are the loop devices with files of the point's.
func (b *bed) loops() (found []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if data, _ := os.ReadFile(f); bytes.Contains(data, []byte(b.dir)) {
			found = append(found, f+": "+string(data))
		}
	}
	return found
}

// diskUsage is what the files below dir take on the disk, in bytes.
func diskUsage(dir string) int64 {
	var n int64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return nil
		}
		if st := fi.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			n += st.Blocks * 512
		}
		return nil
	})
	return n
}
