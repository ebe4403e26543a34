package e2e

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-build/strake/internal/testbed"
)

// whyFile is a build file in which there is something of everything.
const whyFile = `ARG TAG=1
FROM $REG/base:$TAG AS base

FROM base AS deps
WORKDIR /deps
COPY go.mod go.sum ./
RUN cat go.mod go.sum > list

FROM base AS build
ARG VERSION=1
ARG API_TOKEN=none
ENV LEVEL=low
ENV MODE=debug
WORKDIR /src
COPY --exclude=*.md src ./
COPY --chown=0:0 --chmod=644 conf /etc/app/
RUN --mount=type=cache,id=gocache,target=/cache --mount=type=tmpfs,target=/scratch \
    --mount=type=secret,id=token --mount=type=bind,source=scripts,target=/scripts \
    sh /scripts/build.sh > out
RUN --network=none echo test
COPY <<EOT /motd
hello
EOT

FROM base
USER user
COPY --from=$REG/tools:1 /opt/tool /tool
COPY --from=deps /deps/list /
COPY --from=build /src/out /
RUN cat /out > /tmp/last
`

// whyCase plants one cause. want is what the first finding's first cause must
// be: kind, subject and change; and the step that it names.
type whyCase struct {
	name string
	edit func(c *whyContext)
	want string
	step string
}

// whyContext is a context and command line that a case changes.
type whyContext struct {
	t    *testing.T
	dir  string
	file string // the build file
	args []string
}

func (c *whyContext) replace(old, with string) {
	c.t.Helper()
	if !strings.Contains(c.file, old) {
		c.t.Fatalf("the build file has no %q", old)
	}
	c.file = strings.Replace(c.file, old, with, 1)
}

func (c *whyContext) arg(args ...string) { c.args = append(c.args, args...) }

func (c *whyContext) path(name string) string { return filepath.Join(c.dir, name) }

func (c *whyContext) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *whyContext) write(name, text string) {
	c.t.Helper()
	c.check(os.WriteFile(c.path(name), []byte(text), 0o644))
}

func edit(old, with string) func(*whyContext) {
	return func(c *whyContext) { c.replace(old, with) }
}

func write(name, text string) func(*whyContext) {
	return func(c *whyContext) { c.write(name, text) }
}

func arg(args ...string) func(*whyContext) {
	return func(c *whyContext) { c.arg(args...) }
}

func whyCases(registry string) []whyCase {
	image := func(tag string) string { return registry + "/" + tag }
	return []whyCase{
		// Build arguments.
		{"arg", arg("--build-arg", "VERSION=2"), "arg VERSION changed", "--mount=type=cache"},
		{"arg_default", edit("ARG VERSION=1", "ARG VERSION=3"), "arg VERSION changed", "--mount=type=cache"},
		{"arg_added", edit("ENV LEVEL", "ARG MORE=1\nENV LEVEL"), "arg MORE added", "--mount=type=cache"},
		{"arg_removed", edit("ARG VERSION=1\n", ""), "arg VERSION removed", "--mount=type=cache"},
		{"arg_secret", arg("--build-arg", "API_TOKEN=very-secret"), "arg API_TOKEN changed", "--mount=type=cache"},
		// Files.
		{"file_changed", write("src/b.go", "other"), "file src/b.go changed", "COPY --exclude=*.md src"},
		{"file_added", write("src/sub/new.go", "new"), "file src/sub/new.go added", "COPY --exclude=*.md src"},
		{"file_removed", func(c *whyContext) { c.check(os.Remove(c.path("src/sub/c.go"))) }, "file src/sub/c.go removed", "COPY --exclude=*.md src"},
		{"file_renamed", func(c *whyContext) { c.check(os.Rename(c.path("src/a.go"), c.path("src/z.go"))) }, "file src/z.go renamed", "COPY --exclude=*.md src"},
		{"file_becomes_link", func(c *whyContext) {
			c.check(os.Remove(c.path("src/a.go")))
			c.check(os.Symlink("b.go", c.path("src/a.go")))
		}, "file src/a.go type", "COPY --exclude=*.md src"},
		{"link_target", func(c *whyContext) {
			c.check(os.Remove(c.path("src/link")))
			c.check(os.Symlink("b.go", c.path("src/link")))
		}, "file src/link changed", "COPY --exclude=*.md src"},
		{"file_of_list", write("go.sum", "other"), "file go.sum changed", "[deps"},
		{"file_of_bind_mount", write("scripts/build.sh", "echo other\n"), "file scripts/build.sh changed", "--mount=type=cache"},
		{"ignore_rule", write(".dockerignore", "secret.txt\nsrc/b.go\n"), "file src/b.go removed", "COPY --exclude=*.md src"},
		{"file_of_image", edit("tools:1", "tools:2"), "base " + image("tools:2") + " changed", "COPY --from="},
		// Modes.
		{"mode", func(c *whyContext) { c.check(os.Chmod(c.path("src/a.go"), 0o755)) }, "file src/a.go mode", "COPY --exclude=*.md src"},
		{"mode_of_directory", func(c *whyContext) { c.check(os.Chmod(c.path("src/sub"), 0o700)) }, "file src/sub mode", "COPY --exclude=*.md src"},
		{"mode_of_mounted_file", func(c *whyContext) { c.check(os.Chmod(c.path("scripts/build.sh"), 0o755)) }, "file scripts/build.sh mode", "--mount=type=cache"},
		{"chmod", edit("--chmod=644", "--chmod=600"), "option --chmod changed", "COPY --chown=0:0 --chmod"},
		{"chown", edit("--chown=0:0", "--chown=1000:0"), "option --chown changed", "COPY --chown=1000:0"},
		// Base images.
		{"base_tag", edit("ARG TAG=1", "ARG TAG=2"), "base " + image("base:2") + " changed", "[deps"},
		{"base_arg", arg("--build-arg", "TAG=3"), "base " + image("base:3") + " changed", "[deps"},
		{"base_moved", func(c *whyContext) { pushWhyBase(c.t, registry, "1", "moved") }, "base " + image("base:1") + " changed", "[deps"},
		{"base_stage", edit("FROM base\nUSER", "FROM deps\nUSER"), "base  changed", "COPY --from="},
		// Variables.
		{"env", edit("MODE=debug", "MODE=release"), "env MODE changed", "--mount=type=cache"},
		{"env_added", edit("ENV MODE", "ENV EXTRA=1\nENV MODE"), "env EXTRA added", "--mount=type=cache"},
		{"env_removed", edit("ENV LEVEL=low\n", ""), "env LEVEL removed", "--mount=type=cache"},
		{"env_order", edit("ENV LEVEL=low\nENV MODE=debug", "ENV MODE=debug\nENV LEVEL=low"), "option order of variables changed", "--mount=type=cache"},
		// Mounts.
		{"cache_id", edit("id=gocache", "id=other"), "mount cache mount /cache changed", "--mount=type=cache"},
		{"cache_target", edit("target=/cache", "target=/cache2"), "mount cache mount changed", "--mount=type=cache"},
		{"cache_sharing", edit("target=/cache", "target=/cache,sharing=locked"), "mount cache mount /cache changed", "--mount=type=cache"},
		{"tmpfs_size", edit("target=/scratch", "target=/scratch,size=1048576"), "mount tmpfs mount /scratch changed", "--mount=type=cache"},
		{"bind_writable", edit("target=/scripts", "target=/scripts,rw"), "mount bind mount /scripts changed", "--mount=type=cache"},
		{"mount_added", edit("--mount=type=tmpfs", "--mount=type=cache,target=/more --mount=type=tmpfs"), "mount cache mount /more added", "--mount=type=cache"},
		// Secrets.
		{"secret_id", edit("type=secret,id=token", "type=secret,id=token2"), "secret id changed", "--mount=type=cache"},
		{"secret_target", edit("type=secret,id=token", "type=secret,id=token,target=/token"), "secret token changed", "--mount=type=cache"},
		{"secret_required", edit("type=secret,id=token", "type=secret,id=token,required=true"), "secret token changed", "--mount=type=cache"},
		{"secret_env", edit("type=secret,id=token", "type=secret,id=token,env=TOKEN"), "secret token changed", "--mount=type=cache"},
		// Platforms.
		{"platform", arg("--platform", "linux/arm64"), "platform linux/arm64 added", "[deps"},
		{"platform_of_stage", edit("FROM "+registry+"/base:$TAG", "FROM --platform=linux/arm/v7 "+registry+"/base:$TAG"), "platform linux/arm/v7 added", "[deps"},
		// What is run, and how.
		{"command", edit("cat go.mod go.sum > list", "cat go.sum go.mod > list"), "command  changed", "RUN cat go.sum"},
		{"command_shell", edit("WORKDIR /deps", "SHELL [\"/bin/ash\", \"-c\"]\nWORKDIR /deps"), "command shell changed", "RUN cat go.mod"},
		{"user", edit("USER user", "USER 0"), "option user changed", "RUN cat /out"},
		{"directory", edit("WORKDIR /src\n", "WORKDIR /src\nWORKDIR /src\n"), "new  added", "WORKDIR /src"},
		{"network", edit("RUN --network=none", "RUN"), "option network removed", "echo test"},
		{"heredoc", edit("\nhello\n", "\ngood bye\n"), "option text of inline file changed", "inline document"},
		{"step_added", edit("RUN cat go.mod", "RUN echo new\nRUN cat go.mod"), "new  added", "RUN echo new"},
		{"destination", edit("/etc/app/", "/etc/app2/"), "option destination changed", "/etc/app2/"},
		{"hosts", arg("--add-host", "db:10.0.0.1"), "option host added", "RUN cat go.mod"},
		{"no_cache", arg("--no-cache"), "no-cache  ", ""},
		{"no_cache_filter", arg("--no-cache-filter", "deps"), "no-cache  ", "[deps"},
	}
}

// TestWhyNamesTheCause plants causes, one after the other, and asks why.
func TestWhyNamesTheCause(t *testing.T) {
	testbed.NeedRoot(t)
	registry := testbed.NewRegistry(t)
	s := testbed.NewStore(t)
	pushWhyBase(t, registry, "1", "one")
	pushWhyBase(t, registry, "2", "two")
	pushWhyBase(t, registry, "3", "three")
	for _, tag := range []string{"1", "2"} {
		testbed.PushImage(t, registry+"/tools:"+tag, func(tw *tar.Writer) error {
			return testbed.TarFile(tw, "opt/tool", 0o755, []byte("tool "+tag))
		})
	}
	files := map[string]string{
		"go.mod": "module", "go.sum": "sum", "src/a.go": "a", "src/b.go": "b", "src/sub/c.go": "c", "src/x.md": "left out",
		"conf/app.conf": "conf", "scripts/build.sh": "echo $VERSION $MODE\n", "secret.txt": "s3cret", ".dockerignore": "secret.txt\n",
	}
	// The context is the same directory in all cases, as it is for users.
	dir := testbed.Write(t, nil)
	whole := strings.ReplaceAll(whyFile, "$REG", registry)
	reset := func(c *whyContext) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		c.check(err)
		for _, e := range entries {
			c.check(os.RemoveAll(filepath.Join(dir, e.Name())))
		}
		for name, text := range files {
			c.check(os.MkdirAll(filepath.Dir(c.path(name)), 0o755))
			c.write(name, text)
		}
		c.check(os.Symlink("a.go", c.path("src/link")))
		pushWhyBase(c.t, registry, "1", "one")
		c.file = whole
	}
	build := func(c *whyContext) {
		c.t.Helper()
		c.write("Dockerfile", c.file)
		args := append([]string{"build", "--progress=plain", "--insecure-registry", registry, "--pull",
			"--secret", "id=token,src=" + c.path("secret.txt"), "--secret", "id=token2,src=" + c.path("secret.txt")}, c.args...)
		if _, stderr, err := s.Try(append(args, c.dir)...); err != nil {
			c.t.Fatalf("build: %v\n%s", err, stderr)
		}
	}
	first := &whyContext{t: t, dir: dir}
	reset(first)
	build(first)
	base := lastBuild(s)

	planted := 0
	for _, c := range whyCases(registry) {
		planted++
		t.Run(c.name, func(t *testing.T) {
			ctx := &whyContext{t: t, dir: dir}
			reset(ctx)
			c.edit(ctx)
			build(ctx)
			began := time.Now()
			out, _ := s.Run("why", "--format=json", "--against", base)
			took := time.Since(began)
			var got struct {
				Findings []struct {
					Step   string
					Causes []struct{ Kind, Subject, Change string }
				}
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Findings) == 0 {
				t.Fatalf("nothing is explained:\n%s", out)
			}
			f := got.Findings[0]
			if cause := fmt.Sprint(f.Causes[0].Kind, " ", f.Causes[0].Subject, " ", f.Causes[0].Change); cause != c.want || !strings.Contains(f.Step, c.step) {
				t.Errorf("cause is %q of %q, want %q of %q:\n%s", cause, f.Step, c.want, c.step, out)
			}
			if strings.Contains(out, "very-secret") || strings.Contains(out, "s3cret") {
				t.Errorf("a secret is in\n%s", out)
			}
			t.Logf("%s: %v", c.want, took)
		})
	}
	if planted < 40 {
		t.Errorf("%d causes are planted, want 40 at least", planted)
	}

	// What is no cause: the value of a secret, and a file that is left out.
	ctx := &whyContext{t: t, dir: dir}
	reset(ctx)
	ctx.write("secret.txt", "other")
	ctx.write("src/x.md", "other")
	build(ctx)
	if out, _ := s.Run("why"); !strings.HasPrefix(out, "Nothing was run") {
		t.Errorf("why says of a build that ran nothing:\n%s", out)
	}
}

func lastBuild(s *testbed.Store) string {
	s.T.Helper()
	out, _ := s.Run("why", "--format=json")
	var got struct{ Build string }
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		s.T.Fatal(err)
	}
	return got.Build
}

// pushWhyBase pushes a base image that differs by text.
func pushWhyBase(t *testing.T, registry, tag, text string) {
	t.Helper()
	data, err := os.ReadFile(testbed.NeedTool(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	testbed.PushImage(t, registry+"/base:"+tag, func(tw *tar.Writer) error {
		for _, d := range []string{"bin/", "etc/", "tmp/"} {
			if err := tw.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o1777}); err != nil {
				return err
			}
		}
		for _, applet := range []string{"sh", "ash", "cat", "echo"} {
			if err := tw.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
				return err
			}
		}
		for _, f := range [][2]string{{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"}, {"etc/release", text}} {
			if err := testbed.TarFile(tw, f[0], 0o644, []byte(f[1])); err != nil {
				return err
			}
		}
		return testbed.TarFile(tw, "bin/busybox", 0o755, data)
	})
}
