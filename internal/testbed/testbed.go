package testbed

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// strake is the program under test. Main sets it.
var strake string

// Main builds strake, runs the tests of m and returns their exit code. A package
// that uses stores calls it in its TestMain.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "strake-test-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// Other users run it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		log.Fatal(err)
	}
	strake = filepath.Join(dir, "strake")
	cmd := exec.Command("go", "build", "-o", strake, "github.com/strake-build/strake/cmd/strake")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		log.Fatalf("go build: %v\n%s", err, out)
	}
	return m.Run()
}

// NeedRoot skips a test that needs root.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
}

// NeedTool skips a test without a program; package is Debian's.
func NeedTool(t *testing.T, program, debian string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("SKIPPED: needs %s (Debian: %s)", program, debian)
	}
	return path
}

// Store is a store root, and how to run strake on it.
type Store struct {
	T    *testing.T
	Root string
	Env  []string             // added to the environment of the test
	Attr *syscall.SysProcAttr // who runs strake
}

// NewStore is a store in a directory of its own. The test fails if mounts or
// processes that have to do with it are left at its end.
func NewStore(t *testing.T) *Store {
	t.Helper()
	s := &Store{T: t, Root: filepath.Join(t.TempDir(), "root")}
	t.Cleanup(func() { s.NoLeaks() })
	return s
}

// Command returns a strake command on the store.
func (s *Store) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(strake, append([]string{"--root", s.Root}, args...)...)
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.SysProcAttr = s.Attr
	return cmd
}

// Run runs strake and returns what it printed; it must succeed.
func (s *Store) Run(args ...string) (stdout, stderr string) {
	s.T.Helper()
	stdout, stderr, err := s.Try(args...)
	if err != nil {
		s.T.Fatalf("strake %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return stdout, stderr
}

// Try runs strake.
func (s *Store) Try(args ...string) (stdout, stderr string, err error) {
	cmd := s.Command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// NoLeaks fails the test if mounts or processes that have to do with the store
// are left.
func (s *Store) NoLeaks() {
	s.T.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.T.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.Root) {
			s.T.Errorf("mount left: %s", line)
		}
	}
	if p := s.Processes(); len(p) > 0 {
		s.T.Errorf("processes left: %v", p)
	}
}

// Processes returns the commands of running processes that name the store.
func (s *Store) Processes() []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, d := range dirs {
		data, err := os.ReadFile(d)
		if err == nil && bytes.Contains(data, []byte(s.Root)) {
			found = append(found, d+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

// Write makes files below a new directory; names ending in "*" are executable.
func Write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// BuildFiles is a build with steps of every kind.
func BuildFiles(base string) map[string]string {
	return map[string]string{
		"Dockerfile": "FROM " + base + ` AS build
ARG VERSION=1
ENV NAME=value
WORKDIR /src
COPY . .
RUN mkdir -p /out/sub && cp a.txt /out/ && ln -s a.txt /out/link && ln /out/a.txt /out/hard && chmod 4755 /out/a.txt && date > /tmp/now && rm /tmp/now
RUN rm /etc/group && mkdir /gone && rmdir /gone && touch /src/dir/b.txt
FROM ` + base + `
RUN rm -r /var && mkdir /var && echo new > /var/file
COPY --from=build --chown=1000:1000 /out /opt/out
COPY --chmod=0600 dir /data/dir/
USER user
CMD ["sh", "-c", "cat /opt/out/a.txt"]
`,
		"a.txt":         "a\n",
		"dir/b.txt":     "b\n",
		"dir/c/d.txt":   "d\n",
		".dockerignore": "ignored\n",
		"ignored":       "not there\n",
	}
}

// NewRegistry serves a registry on loopback and returns its address.
func NewRegistry(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// Busybox pushes a small base image and returns its name.
func Busybox(t *testing.T, host string) string {
	t.Helper()
	path := NeedTool(t, "busybox", "busybox-static")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return PushImage(t, host+"/busybox:latest", func(tw *tar.Writer) error {
		for _, d := range []string{"bin", "etc", "root", "tmp", "usr", "var"} {
			if err := tw.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return err
			}
		}
		out, err := exec.Command(path, "--list").Output()
		if err != nil {
			return err
		}
		for applet := range strings.FieldsSeq(string(out)) {
			if applet == "busybox" {
				continue
			}
			if err := tw.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
				return err
			}
		}
		return errors.Join(
			TarFile(tw, "bin/busybox", 0o755, data),
			TarFile(tw, "etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")),
			TarFile(tw, "etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\n")))
	})
}

// TarFile writes a regular file.
func TarFile(tw *tar.Writer, name string, mode int64, data []byte) error {
	if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}

// PushImage pushes an image of one layer, the archive that write writes, and
// returns its name.
func PushImage(t *testing.T, ref string, write func(*tar.Writer) error) string {
	t.Helper()
	return PushLayer(t, ref, empty.Image, write)
}

// PushLayer pushes an image with one layer more, likewise.
func PushLayer(t *testing.T, ref string, below v1.Image, write func(*tar.Writer) error) string {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := errors.Join(write(tw), tw.Close()); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(below, layer)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config = v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

// Pulled returns a pushed image, validated.
func Pulled(t *testing.T, ref string) v1.Image {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("%s: %v", ref, err)
	}
	return img
}

// DigestOf is the digest of a pushed image.
func DigestOf(t *testing.T, ref string) string {
	t.Helper()
	d, err := Pulled(t, ref).Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// RootlessStore makes a store for an ordinary user: with a range of
// subordinate ids, or with a single one.
func RootlessStore(t *testing.T, subuid bool) *Store {
	t.Helper()
	NeedRoot(t)
	uid := 65534
	if subuid {
		NeedTool(t, "newuidmap", "uidmap")
		uid = userWithSubuid(t)
	}
	home, err := os.MkdirTemp("", "strake-home-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if err := os.Chown(home, uid, uid); err != nil {
		t.Fatal(err)
	}
	s := &Store{T: t, Root: filepath.Join(home, "root"), Env: []string{"HOME=" + home, "XDG_RUNTIME_DIR=" + home}}
	s.Attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	t.Cleanup(func() { s.NoLeaks() })
	return s
}

// userWithSubuid makes a user with ranges in /etc/subuid and /etc/subgid.
func userWithSubuid(t *testing.T) int {
	t.Helper()
	const uid, login = 47123, "straketest"
	if out, err := exec.Command("id", "-u", login).CombinedOutput(); err != nil {
		if out, err := exec.Command("useradd", "-u", fmt.Sprint(uid), "-M", login).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: no user can be made: %s", out)
		}
		t.Cleanup(func() { _ = exec.Command("userdel", login).Run() })
	} else if strings.TrimSpace(string(out)) != fmt.Sprint(uid) {
		t.Skipf("SKIPPED: user %s is somebody else's", login)
	}
	for _, f := range []string{"/etc/subuid", "/etc/subgid"} {
		data, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if !strings.Contains(string(data), login+":") {
			data = append(data, fmt.Sprintf("%s:400000:65536\n", login)...)
			if err := os.WriteFile(f, data, 0o644); err != nil {
				t.Skipf("SKIPPED: %v", err)
			}
		}
	}
	return uid
}

// RanSteps counts the steps that ran, by the lines of plain progress.
func RanSteps(stderr, step string) (ran, cached int) {
	number := ""
	for line := range strings.Lines(stderr) {
		n, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case strings.Contains(rest, step) && strings.HasPrefix(rest, "["):
			number = n
			ran++
		case n == number && rest == "CACHED":
			number = ""
			ran--
			cached++
		}
	}
	return ran, cached
}

// Eventually waits for a condition.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come about", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// InParallel runs f n times at once.
func InParallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// SyncBuffer is a buffer for a process's output that is read while it runs.
type SyncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends.
func (b *SyncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String is what was written so far.
func (b *SyncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
