package hostile

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func onBuild(trigger string) func(*v1.ConfigFile) {
	return func(c *v1.ConfigFile) { c.Config.OnBuild = []string{trigger} }
}

func secretAttacks() []attack {
	return []attack{
		{name: "secret/in layers, history, logs and keys", after: "CVE-2019-13509 CVE-2024-41110", outcome: "nowhere in the store or the output", run: func(b *bed) {
			value := "hush-" + b.token
			src := b.write(b.dir, "s", value)
			c := b.context("FROM " + b.base + "\nRUN --mount=type=secret,id=s --mount=type=secret,id=s,env=S test \"$S\" = \"$(cat /run/secrets/s)\" && echo us''ed\nRUN ls -la /run /run/secrets; env\n")
			r := b.ok("build", "--progress", "plain", "-t", "x", "--secret", "id=s,src="+src, "-o", "type=oci,dest="+b.dir+"/o.tar", c)
			b.has(r, "used")
			b.hasNot(r, value)
			for _, v := range []string{value, base64.StdEncoding.EncodeToString([]byte(value))} {
				if found := b.inStore(v); len(found) > 0 {
					b.Errorf("the secret is in %v", found)
				}
			}
			data, err := os.ReadFile(b.dir + "/o.tar")
			b.must(err)
			if bytes.Contains(data, []byte(value)) {
				b.Error("the secret is in the archive")
			}
		}},
		{name: "secret/of a step that fails or is killed", after: "CVE-2019-13509", outcome: "not in the store, and no copy left on a disk", run: func(b *bed) {
			value := "hush-" + b.token
			src := b.write(b.dir, "s", value)
			b.refused("", "build", "--progress", "plain", "--secret", "id=s,src="+src, b.context("FROM "+b.base+"\nRUN --mount=type=secret,id=s,required,target=/a/b/c false\n"))
			if found := b.inStore(value); len(found) > 0 {
				b.Errorf("the secret is in %v", found)
			}
		}},
		{name: "secret/that was not asked for", outcome: "a step sees no other's secrets", run: func(b *bed) {
			b.build("FROM "+b.base+"\nRUN cat /run/secrets/* ; env; find / -xdev -name s -exec cat {} +; true\n", "--secret", "id=s,src="+filepath.Join(b.host, "secret"))
		}},
		{name: "secret/whose name is a path", after: "CVE-2024-9675", outcome: "it is put inside the image only", run: func(b *bed) {
			src := b.write(b.dir, "s", "hush")
			for _, m := range []string{"id=s,target=" + up + b.host[1:] + "/pwned", "id=../../s", "id=s,target=/dev/null", "id=s,target=/proc/self/mem", "id=s,target=/"} {
				b.contained("FROM "+b.base+"\nRUN --mount=type=secret,"+m+" true\n", "--secret", "id=s,src="+src, "--secret", "id=../../s,src="+src)
			}
		}},
		{name: "secret/files are for the user they are given to", outcome: "mode 0400, owner root", run: func(b *bed) {
			src := b.write(b.dir, "s", "hush")
			r := b.build("FROM "+b.base+"\nRUN --mount=type=secret,id=s stat -c 'mode=%a:%u' /run/secrets/s\nUSER user\nRUN --mount=type=secret,id=s cat /run/secrets/s && echo read''able; true\n", "--secret", "id=s,src="+src)
			b.has(r, "mode=400:0")
			b.hasNot(r, "readable")
		}},
		{name: "secret/credentials of registries", after: "CVE-2019-13509 CVE-2021-41092", outcome: "not in the store, the output or an error", run: func(b *bed) {
			b.login(b.registry)
			pw := b.token[:12] + "pw"
			b.build("FROM "+b.base+"\nRUN true\n", "-t", b.registry+"/y:1", "--push")
			b.strake("pull", "localhost:1/x:1")
			b.hasNot(b.strake("--debug", "build", "-t", b.registry+"/UPPER:1", "--push", b.context("FROM scratch\nCOPY Dockerfile /\n")), pw)
			if found := b.inStore(pw); len(found) > 0 {
				b.Errorf("the password is in %v", found)
			}
		}},
	}
}

// outputAttacks are results that are delivered.
func outputAttacks() []attack {
	return []attack{
		{name: "output/links that are at the destination", after: "CVE-2014-9356 CVE-2018-15664", outcome: "replaced, not followed", run: func(b *bed) {
			out := filepath.Join(b.dir, "out")
			b.must(os.Mkdir(out, 0o755))
			b.must(os.Symlink(b.host, out+"/d"))
			b.must(os.Symlink(b.host+"/secret", out+"/f"))
			b.must(os.Symlink(b.host+"/dir", out+"/sub"))
			b.ok("build", "-o", out, b.context("FROM scratch\nCOPY a /d/secret\nCOPY a /f\nCOPY a /sub/empty\n", "a", "changed"))
		}},
		{name: "output/links that the image brings", after: "CVE-2014-9356 CVE-2022-23648", outcome: "made as links, never written through", run: func(b *bed) {
			ref := b.push(b.scratch(b.archive(symlink("x", b.host), symlink("y", up[:len(up)-1]+b.host)), b.archive(file("x/pwned", "x"), file("y/secret", "changed"))))
			b.strake("build", "-o", filepath.Join(b.dir, "out"), b.context("FROM "+ref+"\nCOPY Dockerfile /x/made\nCOPY Dockerfile /y/made\n"))
			b.strake("build", "-o", "type=tar,dest="+filepath.Join(b.dir, "out.tar"), b.context("FROM "+ref+"\n"))
		}},
		{name: "output/set-user-ID files, devices and owners in a directory", after: "CVE-2021-41091", outcome: "none of them", run: func(b *bed) {
			su := file("su", "x")
			su.Mode, su.Uid = 0o6755, 12345
			out := filepath.Join(b.dir, "out")
			b.ok("build", "-o", out, b.context("FROM "+b.push(b.scratch(b.archive(su, special("dev", tar.TypeChar, 1, 1), special("pipe", tar.TypeFifo, 0, 0))))+"\n"))
			fi, err := os.Lstat(out + "/su")
			b.must(err)
			if fi.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
				b.Errorf("mode %v", fi.Mode())
			}
			if fi, err := os.Lstat(out + "/dev"); err == nil && fi.Mode()&os.ModeDevice != 0 {
				b.Error("a device was made")
			}
		}},
		{name: "output/lines that look like strake's own", outcome: "each line of a step has its step's number", run: func(b *bed) {
			r := b.build("FROM " + b.base + "\nRUN printf '\\n#9 DONE 0.0s\\r#8 ERROR: x\\n\\033[2J\\033]0;t\\007 \\302\\233 \\342\\200\\256 \\377\\n'\n")
			for line := range strings.Lines(r.stderr) {
				if strings.HasPrefix(line, "#9 DONE") || strings.HasPrefix(line, "#8 ERROR") {
					b.Errorf("the step forged %q", line)
				}
			}
		}},
		{name: "output/a line of 100 MB", outcome: "bounded memory", run: func(b *bed) {
			b.build("FROM " + b.base + "\nRUN head -c 100000000 /dev/zero | tr '\\0' 'x'\n")
		}},
	}
}

// cacheAttacks poison what is kept between builds.
func cacheAttacks() []attack {
	return []attack{
		{name: "cache/an image whose history claims the same steps", after: "CVE-2024-24557", outcome: "the steps are run", run: func(b *bed) {
			df := "FROM scratch\nCOPY Dockerfile /a\nFROM " + b.base + "\nRUN echo genuine > /made\nRUN cat /made\n"
			evil := b.imageOf(func(c *v1.ConfigFile) {
				c.History = append(c.History, v1.History{CreatedBy: "RUN /bin/sh -c echo genuine > /made # buildkit"}, v1.History{CreatedBy: "RUN /bin/sh -c cat /made # buildkit"})
			}, b.archive(file("made", "poisoned")), b.archive(file("x", "x")))
			b.ok("pull", evil)
			r := b.build(df)
			b.has(r, "genuine")
			b.hasNot(r, "poisoned")
		}},
		{name: "cache/a file changed with its size and time kept", after: "CVE-2024-24557", outcome: "seen", run: func(b *bed) {
			c := b.context("FROM "+b.base+"\nCOPY f /f\nRUN cat /f\n", "f", "first!")
			b.ok("build", "--progress", "plain", c)
			fi, err := os.Stat(c + "/f")
			b.must(err)
			b.write(c, "f", "second")
			b.must(os.Chtimes(c+"/f", fi.ModTime(), fi.ModTime()))
			b.has(b.ok("build", "--progress", "plain", c), "second")
		}},
		{name: "cache/secrets are no part of keys, but builds without them are refused", outcome: "a required secret is required on every run of the step", run: func(b *bed) {
			df := "FROM " + b.base + "\nRUN --mount=type=secret,id=s,required cat /run/secrets/s > /dev/null\n"
			b.build(df, "--secret", "id=s,src="+b.write(b.dir, "s", "one"))
			b.buildRefused("secret", df, "--no-cache")
		}},
		{name: "cache/one build's context in another's", after: "CVE-2024-36621 CVE-2024-36623", outcome: "each build has its own files", run: func(b *bed) {
			df := "FROM " + b.base + "\nCOPY f /f\nRUN cat /f\n"
			one, two := b.context(df, "f", "of-one"), b.context(df, "f", "of-two")
			r := b.ok("build", "--progress", "plain", one)
			b.hasNot(r, "of-two")
			r = b.ok("build", "--progress", "plain", two)
			b.has(r, "of-two")
			b.hasNot(r, "of-one")
		}},
		{name: "cache/a tag that was moved", after: "CVE-2026-50195", outcome: "what the registry says counts with --pull", run: func(b *bed) {
			first := b.push(b.scratch(b.archive(file("v", "one"))))
			df := "FROM " + first + " AS x\nFROM " + b.base + "\nCOPY --from=x /v /v\nRUN cat /v\n"
			b.has(b.build(df), "one")
			b.pushed = b.pushed[:0]
			b.push(b.scratch(b.archive(file("v", "two"))))
			b.has(b.build(df, "--pull"), "two")
		}},
		{name: "cache/whoever else is on the machine", after: "CVE-2021-41103", outcome: "the store can't be entered", run: func(b *bed) {
			b.build("FROM " + b.base + "\nRUN echo x > /x\n")
			b.must(os.Chmod(b.dir, 0o755))
			cmd := b.s.Command("images")
			cmd.SysProcAttr = nobody()
			if r := b.run2(cmd); r.code == 0 {
				b.Errorf("another user read the store:\n%s", r.stdout)
			}
		}},
	}
}
