package faults

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-build/strake/internal/testbed"
	"github.com/strake-build/strake/state"
)

// contextFaults change files while a build reads them.
func contextFaults() []fault {
	const size = 24 << 20
	changes := map[string]func(p string) error{
		"grows": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.Write(make([]byte, 1000))
			return errors.Join(err, f.Close())
		},
		"shrinks":  func(p string) error { return os.Truncate(p, size/3) },
		"vanishes": os.Remove,
		"is written to": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("changed"), size-100)
			return errors.Join(err, f.Close())
		},
		"is written to, with its time kept": func(p string) error {
			fi, err := os.Stat(p)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("changed"), size-100)
			return errors.Join(err, f.Close(), os.Chtimes(p, fi.ModTime(), fi.ModTime()))
		},
		"is replaced": func(p string) error {
			return errors.Join(os.WriteFile(p+".new", noise(size), 0o644), os.Rename(p+".new", p))
		},
		"is replaced by a link": func(p string) error { return replaced(p, func(p string) error { return os.Symlink("/etc/passwd", p) }) },
		"is replaced by a pipe": func(p string) error { return replaced(p, func(p string) error { return unix.Mkfifo(p, 0o644) }) },
		"is replaced by a device": func(p string) error {
			return replaced(p, func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) })
		},
		"is replaced by a directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
		"can't be read any more":     func(p string) error { return os.Chmod(p, 0) },
	}
	parents := map[string]func(dir string) error{
		"vanishes":              os.RemoveAll,
		"is moved":              func(dir string) error { return os.Rename(dir, dir+"-moved") },
		"is replaced by a link": func(dir string) error { return errors.Join(os.Rename(dir, dir+"-moved"), os.Symlink("/etc", dir)) },
		"is replaced by a file": func(dir string) error {
			return errors.Join(os.Rename(dir, dir+"-moved"), os.WriteFile(dir, nil, 0o644))
		},
		"fills": func(dir string) error {
			for i := range 500 {
				if err := os.WriteFile(fmt.Sprint(dir, "/new", i), []byte("new"), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
	return []fault{
		{name: "context/a file changes", outcome: "the build fails in words, or has one of both; never something between", points: func(*lab) (list []point) {
			for name, change := range inOrder(changes) {
				for _, after := range []int{5, 15, 25, 40, 60, 90} {
					list = append(list, point{fmt.Sprintf("it %s after %d ms", name, after), func(b *bed) {
						b.changes(size, time.Duration(after)*time.Millisecond, func(c string) error { return change(filepath.Join(c, "dir/file")) })
					}})
				}
			}
			return list
		}},
		{name: "context/a directory changes", outcome: "the build fails in words, or has one of both; never something between", points: func(*lab) (list []point) {
			for name, change := range inOrder(parents) {
				for _, after := range []int{5, 15, 25, 40, 60} {
					list = append(list, point{fmt.Sprintf("it %s after %d ms", name, after), func(b *bed) {
						b.changes(size, time.Duration(after)*time.Millisecond, func(c string) error { return change(filepath.Join(c, "dir")) })
					}})
				}
			}
			return list
		}},
		{name: "context/all of it changes all the time", outcome: "the build fails in words, or not at all", points: func(*lab) (list []point) {
			for i := range 6 {
				list = append(list, point{fmt.Sprint("try ", i), func(b *bed) { b.churns() }})
			}
			return list
		}},
	}
}

// replaced makes something else in the place of a file, in one step.
func replaced(p string, put func(string) error) error {
	return errors.Join(put(p+".new"), os.Rename(p+".new", p))
}

// changes builds a context with a large file, dir/file, and changes it meanwhile.
func (b *bed) changes(size int, after time.Duration, change func(context string) error) {
	b.Helper()
	args := b.building("FROM "+b.lab.base+"\nCOPY dir /dir\nRUN ls -lR /dir; test -z \"$(find /dir -type f -exec grep -l root: {} +)\"\n", "-o", "type=oci,dest="+b.out("image.tar"))
	c := args[len(args)-1]
	b.must(os.Mkdir(filepath.Join(c, "dir"), 0o755))
	b.must(os.WriteFile(filepath.Join(c, "dir/file"), noise(size), 0o644))
	for i := range 50 {
		b.must(os.WriteFile(fmt.Sprint(c, "/dir/small", i), []byte(strings.Repeat("small\n", i)), 0o644))
	}
	run := b.start(b.s.Command(args...))
	time.Sleep(after)
	b.must(change(c))
	if r := run.wait(); r.code != 0 {
		b.failed(r)
	}
	// What the store remembers of the files is what they are now.
	b.must(os.RemoveAll(filepath.Join(c, "dir")))
	b.must(os.Mkdir(filepath.Join(c, "dir"), 0o755))
	b.must(os.WriteFile(filepath.Join(c, "dir/file"), noise(size/2), 0o644))
	b.sameAsFresh(args)
	b.ok("prune", "--all", "--force", "--images")
	b.allow(int64(size))
}

// sameAsFresh builds with the store, and with one that is new: the images are the
// same.
func (b *bed) sameAsFresh(args []string) {
	b.Helper()
	var ids []string
	for _, bed := range []*bed{b, newBed(b.T, b.lab)} {
		id := bed.out("id")
		bed.ok(append([]string{args[0], "--iidfile", id}, args[1:]...)...)
		data, err := os.ReadFile(id)
		b.must(err)
		ids = append(ids, string(data))
	}
	if ids[0] != ids[1] {
		b.Errorf("the image is %s, with a new store %s", ids[0], ids[1])
	}
}

// churns builds while files of the context come, change and go.
func (b *bed) churns() {
	b.Helper()
	args := b.building("FROM "+b.lab.base+"\nCOPY dir /dir\nCOPY dir/d1 /d1\nRUN ls /dir /d1 > /list\n", "-o", "type=oci,dest="+b.out("image.tar"))
	c := args[len(args)-1]
	file := func(i int) string { return filepath.Join(c, "dir", fmt.Sprint("d", i%4), fmt.Sprint("f", i)) }
	for i := range 400 {
		b.must(os.MkdirAll(filepath.Dir(file(i)), 0o755))
		b.must(os.WriteFile(file(i), []byte(strings.Repeat("x", i*10)), 0o644))
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			p := file(i * 7 % 400)
			switch i % 5 {
			case 0:
				_ = os.WriteFile(p, []byte(fmt.Sprint("changed ", i)), 0o644)
			case 1:
				_ = os.Remove(p)
			case 2:
				_ = errors.Join(os.Remove(p), os.Symlink("../d2/f2", p))
			case 3:
				_ = errors.Join(os.Remove(p), os.WriteFile(p, nil, 0o600))
			case 4:
				_ = os.Rename(filepath.Dir(p), filepath.Dir(p)+"x")
				_ = os.Rename(filepath.Dir(p)+"x", filepath.Dir(p))
			}
		}
	}()
	for range 5 {
		if r := b.strake(args...); r.code != 0 {
			b.failed(r)
		}
	}
	close(stop)
	<-stopped
	b.sameAsFresh(args)
	b.ok("prune", "--all", "--force", "--images")
}

// clockFaults are of clocks that jump: of files' times, and of what the store has
// written down.
func clockFaults() []fault {
	is := func(t time.Time) func() time.Time { return func() time.Time { return t } }
	times := map[string]func() time.Time{
		"1970": is(time.Unix(0, 0)), "before 1970": is(time.Unix(-100000, 0)),
		"in a minute": func() time.Time { return time.Now().Add(time.Minute) }, // of the point's start
		"2107":        is(time.Date(2107, 1, 1, 0, 0, 0, 0, time.UTC)), "2400": is(time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC)),
	}
	return []fault{
		{name: "clock/files of other times", outcome: "what they hold counts", points: func(*lab) (list []point) {
			for name, when := range inOrder(times) {
				list = append(list, point{name, func(b *bed) {
					at := when()
					args := b.building("FROM "+b.lab.base+"\nCOPY f /f\nRUN cat /f\n", "-o", "type=oci,dest="+b.out("image.tar"))
					f := filepath.Join(args[len(args)-1], "f")
					for _, text := range []string{"first!", "second", "third!", "fourth"} { // of one size
						b.must(os.WriteFile(f, []byte(text), 0o644))
						b.must(os.Chtimes(f, at, at))
						if r := b.ok(args...); !strings.Contains(r.stderr, " "+text) {
							b.Errorf("it did not see the change to %q: %v", text, r)
						}
					}
					b.sameAsFresh(args)
				}})
			}
			return list
		}},
		{name: "clock/files that change in the moment in which they are read", outcome: "what they hold counts", points: func(*lab) (list []point) {
			for i := range 5 {
				list = append(list, point{fmt.Sprint("try ", i), func(b *bed) {
					args := b.building("FROM " + b.lab.base + "\nCOPY f /f\nRUN cat /f\n")
					f := filepath.Join(args[len(args)-1], "f")
					for n := range 10 {
						text := fmt.Sprintf("text-%d-%d", i, n)
						b.must(os.WriteFile(f, []byte(text), 0o644)) // and at once
						if r := b.ok(args...); !strings.Contains(r.stderr, " "+text) {
							b.Errorf("it did not see the change to %q: %v", text, r)
						}
					}
				}})
			}
			return list
		}},
		{name: "clock/a store of another time", outcome: "it is used", points: func(l *lab) (list []point) {
			for name, when := range inOrder(times) {
				for _, command := range []string{"build", "prune", "prune what is old", "builds", "check", "repair"} {
					list = append(list, point{name + ", " + command, func(b *bed) { b.ages(when(), command) }})
				}
			}
			return list
		}},
	}
}

// date begins a time in JSON.
var date = regexp.MustCompile(`\b20\d\d-\d\d-\d\dT`)

// ages gives all files of a store another time, also in what is written in them,
// and runs a command.
func (b *bed) ages(at time.Time, command string) {
	b.Helper()
	b.store("aged", func(l *lab) [][]string { return [][]string{{"build", "-t", "app", l.context}} })
	b.must(filepath.WalkDir(b.s.Root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "fs" {
			return fs.SkipDir
		}
		if ext := filepath.Ext(p); d.Type().IsRegular() && (ext == ".json" || ext == ".jsonl" || filepath.Base(filepath.Dir(p)) == "names") {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			body, _ := state.Unseal(data)
			if changed := date.ReplaceAll(body, []byte(at.UTC().Format("2006-01-02T"))); string(changed) != string(body) {
				if len(body) < len(data) {
					changed = state.Seal(changed)
				}
				if err := os.WriteFile(p, changed, 0o600); err != nil {
					return err
				}
			}
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		return os.Chtimes(p, at, at)
	}))
	switch command {
	case "build":
		r := b.ok("build", "--progress", "plain", "-t", "app", b.lab.context)
		if ran, cached := testbed.RanSteps(r.stderr, "RUN "); ran != 0 || cached == 0 {
			b.Errorf("%d steps ran, %d were cached: %v", ran, cached, r)
		}
	case "prune":
		b.ok("prune", "--force", "--all")
	case "prune what is old":
		b.ok("prune", "--force", "--filter", "until=24h")
	case "builds":
		b.ok("history", "ls")
		b.ok("images")
		b.ok("du")
	default:
		b.ok(command)
	}
}
