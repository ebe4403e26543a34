package hostile

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Main(m)) }

// attack is one case.
type attack struct {
	name string
	// after names the advisories of other programs that the case is made after.
	after string
	// outcome says what must come of it.
	outcome string
	// memory is the bound in MiB for each process, 160 if not given.
	memory int64
	// time is the bound for each command, a minute if not given.
	time time.Duration
	run  func(b *bed)
}

// attacks is all there is.
func attacks() []attack {
	return slices.Concat(layerAttacks(), imageAttacks(), archiveAttacks(), stepAttacks(), mountAttacks(), languageAttacks(),
		contextAttacks(), gitAttacks(), networkAttacks(), secretAttacks(), outputAttacks(), cacheAttacks(), apiAttacks(), audits())
}

// TestHostile runs all attacks.
func TestHostile(t *testing.T) {
	testbed.NeedRoot(t)
	registry := testbed.NewRegistry(t)
	base := testbed.Busybox(t, registry)
	all := attacks()
	names, cited := map[string]bool{}, map[string]bool{}
	for _, a := range all {
		if names[a.name] || a.outcome == "" {
			t.Fatalf("%s: is there already, or says no outcome", a.name)
		}
		names[a.name] = true
		for c := range strings.FieldsSeq(a.after) {
			cited[c] = true
		}
	}
	t.Logf("%d hostile cases, after %d advisories", len(all), len(cited))
	t.Run("cases", func(t *testing.T) {
		for _, a := range all {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				b := newBed(t, a, registry, base)
				a.run(b)
				b.verify()
			})
		}
	})
}

// bed is what a case works with.
type bed struct {
	*testing.T
	attack
	s *testbed.Store
	// registry has the image base, with busybox.
	registry, base string
	// host stands for the host's file system: nothing of it may be read or changed.
	// It has the files "secret" and "ptmx", and the directory "dir".
	host string
	// secret is what the host's files and the caller's environment have.
	secret string
	// token is a name that no file outside of the store may have.
	token string
	// dir is for files of the case; the store is in it, too.
	dir    string
	before string
	// repository is for the images that the case pushes; it has pushed some.
	repository string
	pushed     []string
}

func newBed(t *testing.T, a attack, registry, base string) *bed {
	b := &bed{T: t, attack: a, repository: "image" + strings.ToLower(rand.Text())[:8], registry: registry, base: base, token: "token" + strings.ToLower(rand.Text())[:16]}
	b.secret = "secret" + strings.ToLower(rand.Text())
	if b.memory == 0 {
		b.memory = 160
	}
	if b.time == 0 {
		b.time = time.Minute
	}
	b.dir, b.host = b.temp(), b.temp()
	b.s = &testbed.Store{T: t, Root: filepath.Join(b.dir, "root")}
	t.Cleanup(func() { b.s.NoLeaks() })
	b.write(b.host, "secret", b.secret)
	b.write(b.host, "ptmx", "")
	b.write(b.host, "dir/empty", "")
	b.s.Env = append(b.s.Env, "DOCKER_CONFIG="+filepath.Join(b.dir, "docker"), "STRAKE_HOST_SECRET="+b.secret)
	b.before = b.listing(b.host)
	return b
}

// temp makes a directory. Its name has none of the characters of the case's,
// which mean something in flags.
func (b *bed) temp() string {
	b.Helper()
	dir, err := os.MkdirTemp("", "hostile-")
	b.must(err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// write makes a file, and its directory.
func (b *bed) write(dir, name, text string) string {
	b.Helper()
	p := filepath.Join(dir, name)
	b.must(os.MkdirAll(filepath.Dir(p), 0o755))
	b.must(os.WriteFile(p, []byte(text), 0o644))
	return p
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// context makes a build context with a build file.
func (b *bed) context(dockerfile string, files ...string) string {
	b.Helper()
	dir, err := os.MkdirTemp(b.dir, "context-")
	b.must(err)
	b.write(dir, "Dockerfile", dockerfile)
	for i := 0; i < len(files); i += 2 {
		b.write(dir, files[i], files[i+1])
	}
	return dir
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// strake runs strake and holds it to the bounds.
func (b *bed) strake(args ...string) result { b.Helper(); return b.run2(b.s.Command(args...)) }

func (b *bed) run2(cmd *exec.Cmd) result {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), b.time)
	defer cancel()
	failed := b.Failed()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	b.must(cmd.Start())
	peak := make(chan int64)
	go watch(cmd.Process.Pid, peak)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	err := cmd.Wait()
	stop()
	if ctx.Err() != nil {
		b.Errorf("%v: took longer than %v", cmd.Args[1:], b.time)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.Fatal(err)
	}
	if rss := <-peak; rss > b.memory {
		b.Errorf("%v: took %d MiB of memory, not more than %d are allowed", cmd.Args[1:], rss, b.memory)
	}
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	b.innocent("stdout", r.stdout)
	b.innocent("stderr", r.stderr)
	if b.Failed() && !failed {
		b.Logf("%v: exit code %d\n%.3000s\n%.6000s", cmd.Args[1:], r.code, r.stdout, r.stderr)
	}
	return r
}

// watch sends the most memory that a process took, in MiB, when it has ended.
// What wait(2) says of it includes the process that started it.
func watch(pid int, peak chan<- int64) {
	var most int64
	for {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		m := highWater.FindSubmatch(data)
		if m == nil {
			peak <- most
			return
		}
		kib, _ := strconv.ParseInt(string(m[1]), 10, 64)
		most = max(most, kib>>10)
		time.Sleep(10 * time.Millisecond)
	}
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// control are characters that a terminal acts on.
var control = regexp.MustCompile("[\x00-\x08\x0b-\x1f\x7f\u0080-\u009f\u202a-\u202e\u2066-\u2069]")

// innocent looks for what no output may have.
func (b *bed) innocent(what, text string) {
	b.Helper()
	if strings.Contains(text, b.secret) {
		b.Errorf("%s has the host's secret", what)
	}
	if c := control.FindString(text); c != "" {
		b.Errorf("%s has the control character %q", what, c)
	}
	for _, s := range []string{"goroutine ", "panic:", "runtime error"} {
		if strings.Contains(text, s) {
			b.Errorf("%s has a stack trace", what)
			return
		}
	}
}

// ok runs what must work, and refused what must be refused in these words.
func (b *bed) ok(args ...string) result {
	b.Helper()
	r := b.strake(args...)
	if r.code != 0 {
		b.Fatalf("strake %.300q: exit code %d\n%.4000s", args, r.code, r.stderr)
	}
	return r
}

func (b *bed) refused(want string, args ...string) result {
	b.Helper()
	r := b.strake(args...)
	if r.code == 0 {
		b.Errorf("strake %.300q: was done", args)
	} else if !regexp.MustCompile(want).MatchString(r.stderr) {
		b.Errorf("strake %.300q: does not say %q:\n%.4000s", args, want, r.stderr)
	}
	return r
}

// build builds a context with this build file; output is what its steps print.
func (b *bed) build(dockerfile string, flags ...string) result {
	b.Helper()
	return b.ok(slices.Concat([]string{"build", "--progress", "plain"}, flags, []string{b.context(dockerfile)})...)
}

func (b *bed) buildRefused(want, dockerfile string, flags ...string) result {
	b.Helper()
	return b.refused(want, slices.Concat([]string{"build", "--progress", "plain"}, flags, []string{b.context(dockerfile)})...)
}

// contained builds an image whose build may fail or not: nothing may come of it
// outside.
func (b *bed) contained(dockerfile string, flags ...string) result {
	b.Helper()
	return b.strake(slices.Concat([]string{"build", "--progress", "plain"}, flags, []string{b.context(dockerfile)})...)
}

// has fails unless the text is in the output; hasNot if it is.
func (b *bed) has(r result, text string) {
	b.Helper()
	if !strings.Contains(r.stdout+r.stderr, text) {
		b.Errorf("%q is not in the output:\n%.4000s%.4000s", text, r.stdout, r.stderr)
	}
}

func (b *bed) hasNot(r result, text string) {
	b.Helper()
	if strings.Contains(r.stdout+r.stderr, text) {
		b.Errorf("%q is in the output:\n%.4000s%.4000s", text, r.stdout, r.stderr)
	}
}

// listing describes a directory and all below it.
func (b *bed) listing(dir string) string {
	b.Helper()
	var out strings.Builder
	b.must(filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&out, "%s %v %d:%d %d %d\n", strings.TrimPrefix(p, dir), fi.Mode(), st.Uid, st.Gid, st.Nlink, fi.Size())
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			fmt.Fprintf(&out, "\t%q\n", data)
			return err
		}
		return nil
	}))
	return out.String()
}

// verify holds the case to the rules for all.
func (b *bed) verify() {
	b.Helper()
	if after := b.listing(b.host); after != b.before {
		b.Errorf("the host's files have changed. Before:\n%sAfter:\n%s", b.before, after)
	}
	for _, d := range []string{"/", "/etc", "/tmp", "/var/lib", os.Getenv("HOME"), b.dir, filepath.Dir(b.dir)} {
		if _, err := os.Lstat(filepath.Join(d, b.token)); err == nil {
			b.Errorf("a file was made outside: %s/%s", d, b.token)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(b.s.Root, "tmp")); err == nil && len(entries) > 0 {
		b.Errorf("temporary files left: %v", entries)
	}
	if _, err := os.Stat(b.s.Root); err == nil {
		b.ok("check", "--read-data")
	}
}

// inStore tells which files of the store contain the text.
func (b *bed) inStore(text string) (found []string) {
	b.Helper()
	b.must(filepath.WalkDir(b.s.Root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if bytes.Contains(data, []byte(text)) {
			found = append(found, p)
		}
		return err
	}))
	return found
}

// listen is a loopback address where nobody listens yet.
func listen(b *bed) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	return l
}
