package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/internal/testbed"
)

// disk is a small file system with the store of a bed.
type disk struct {
	b          *bed
	image, dir string
}

// disk moves the store to a file system of its own, of so many MiB and inodes,
// before there is one.
func (b *bed) disk(mib, inodes int) *disk {
	b.Helper()
	mkfs := testbed.NeedTool(b.T, "mkfs.ext4", "e2fsprogs")
	d := &disk{b: b, image: filepath.Join(b.dir, "disk.img"), dir: filepath.Join(b.dir, "disk")}
	b.must(os.WriteFile(d.image, nil, 0o600))
	b.must(os.Truncate(d.image, int64(mib)<<20))
	d.run(mkfs, "-q", "-F", "-m", "0", "-N", fmt.Sprint(inodes), d.image)
	b.must(os.Mkdir(d.dir, 0o755))
	d.mount()
	b.Cleanup(func() { _ = unix.Unmount(d.dir, unix.MNT_DETACH) })
	b.s.Root = filepath.Join(d.dir, "root")
	b.mountPoint = d.dir
	return d
}

func (d *disk) run(program string, args ...string) {
	d.b.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		d.b.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

func (d *disk) mount() { d.b.Helper(); d.run("mount", "-o", "loop", d.image, d.dir) }

func (d *disk) remount(how string) { d.b.Helper(); d.run("mount", "-o", "remount,"+how, d.dir) }

// unmount unmounts the file system when nobody uses it any more, and waits until
// it is gone: as long as the kernel clears up a step's mounts of it, it can only
// be mounted as it was.
func (d *disk) unmount() {
	d.b.Helper()
	var err error = unix.EBUSY
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err != nil {
			err = unix.Unmount(d.dir, 0)
		}
		if err == nil && len(d.b.loops()) == 0 {
			return
		}
	}
	d.b.Fatalf("unmount the disk: %v, loop devices: %v", err, d.b.loops())
}

// fill takes all blocks of the file system but so many KiB.
func (d *disk) fill(leave int) {
	d.b.Helper()
	var st unix.Statfs_t
	d.b.must(unix.Statfs(d.dir, &st))
	f, err := os.Create(filepath.Join(d.dir, "ballast"))
	d.b.must(err)
	d.b.must(unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-int64(leave+64)<<10))
	d.b.must(f.Close())
}

// fillInodes takes all inodes but so many.
func (d *disk) fillInodes(leave int) {
	d.b.Helper()
	dir := filepath.Join(d.dir, "ballast")
	d.b.must(os.Mkdir(dir, 0o755))
	var st unix.Statfs_t
	d.b.must(unix.Statfs(d.dir, &st))
	for i := range int(st.Ffree) - leave {
		d.b.must(os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
	}
}

func (d *disk) free() { d.b.Helper(); d.b.must(os.RemoveAll(filepath.Join(d.dir, "ballast"))) }

// shutDown makes the disk one that answers nothing any more. What was written
// is on it.
func (d *disk) shutDown() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const fsIocShutdown = 0x8004587d // FS_IOC_SHUTDOWN
	return unix.IoctlSetPointerInt(int(f.Fd()), fsIocShutdown, 0)
}

// diskFaults happen to file systems of their own.
func diskFaults() []fault {
	build := func(b *bed) []string { return []string{"build", "-t", b.image, "--push", b.lab.context} }
	full := func(b *bed, r result) {
		b.Helper()
		if r.code == 0 {
			return
		}
		b.failed(r)
		if !strings.Contains(r.stderr, unix.ENOSPC.Error()) && !strings.Contains(r.stderr, "No space left") {
			b.Errorf("it does not say that the disk is full: %v", r)
		}
	}
	// meanwhile are points at which act happens while the build runs.
	meanwhile := func(act func(b *bed, d *disk) error, after func(b *bed, d *disk)) func(l *lab) []point {
		return func(l *lab) []point {
			var points []point
			all := phases()
			whole := all[len(all)-1]
			for _, class := range []string{"create", "mount", "rename"} {
				for _, n := range spread(upTo(l.count(whole, class)), 4) {
					points = append(points, point{fmt.Sprintf("%s/%d", class, n), func(b *bed) {
						d := b.disk(64, 8000)
						r := b.disturbed(injection{class: class, n: n, act: func() {
							if err := act(b, d); err != nil {
								b.Error(err)
							}
						}}, build(b)...)
						if r.code != 0 {
							b.failed(r)
						}
						after(b, d)
					}})
				}
			}
			return points
		}
	}
	return []fault{
		{name: "real disk that is full", outcome: "an error says so; prune needs no space", points: func(l *lab) []point {
			var points []point
			for _, percent := range []int{0, 2, 10, 25, 40, 55, 70, 80, 90, 97} {
				points = append(points, point{fmt.Sprintf("%d percent of what it needs", percent), func(b *bed) {
					d := b.disk(64, 8000)
					d.fill(int(l.size) * percent / 100 >> 10)
					full(b, b.strake(build(b)...))
					b.ok("prune", "--all", "--force")
					d.free()
				}})
			}
			return points
		}},
		{name: "real disk that has no inodes", outcome: "an error says so", points: func(*lab) []point {
			var points []point
			for _, n := range []int{0, 3, 12, 25, 50, 100, 150, 200} {
				points = append(points, point{fmt.Sprint(n, " inodes"), func(b *bed) {
					d := b.disk(32, 1500)
					d.fillInodes(n)
					full(b, b.strake(build(b)...))
					d.free()
				}})
			}
			return points
		}},
		{name: "real disk that is read-only", outcome: "what is there can be listed", points: func(*lab) []point {
			var points []point
			for _, p := range phases() {
				points = append(points, point{p.name, func(b *bed) {
					d := b.disk(64, 8000)
					p.begin(b)
					if p.prepare == nil {
						b.ok("images")
					}
					d.remount("ro")
					b.ok("images")
					b.ok("du")
					if r := b.strake(p.args(b)...); r.code != 0 {
						b.failed(r)
					}
					d.remount("rw")
				}})
			}
			return points
		}},
		{name: "real disk that breaks", outcome: "an error, and all is well with the disk", points: meanwhile(
			func(b *bed, d *disk) error { return d.shutDown() },
			func(b *bed, d *disk) { d.unmount(); d.mount() })},
		{name: "disk that is unmounted", outcome: "an error, and all is well with the disk", points: meanwhile(
			func(b *bed, d *disk) error { return unix.Unmount(d.dir, unix.MNT_DETACH) },
			func(b *bed, d *disk) {
				b.noProcesses()
				b.must(os.RemoveAll(filepath.Join(d.dir, "root")))
				d.mount()
			})},
		{name: "store that is removed", outcome: "an error, or a new store", points: meanwhile(
			func(b *bed, d *disk) error { return os.Rename(b.s.Root, filepath.Join(d.dir, "gone")) },
			func(b *bed, d *disk) { b.must(os.RemoveAll(filepath.Join(d.dir, "gone"))) })},
		{name: "store that moves away and comes back", outcome: "an error, or a build on what there is", points: meanwhile(
			func(b *bed, d *disk) error { return os.Rename(b.s.Root, filepath.Join(d.dir, "gone")) },
			func(b *bed, d *disk) {
				b.must(os.RemoveAll(b.s.Root))
				b.must(os.Rename(filepath.Join(d.dir, "gone"), b.s.Root))
			})},
	}
}
