package hostile

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// languageAttacks are build files.
func languageAttacks() []attack {
	doubling := func(instruction, ref string) string {
		var df strings.Builder
		fmt.Fprintf(&df, "FROM scratch\n%s V0=%s\n", instruction, strings.Repeat("x", 100))
		for i := range 40 {
			fmt.Fprintf(&df, "%s V%d="+ref+"\n", instruction, i+1, i, i)
		}
		return df.String() + "LABEL bomb=$V40\nCOPY Dockerfile /\n"
	}
	return []attack{
		{name: "language/forty lines of ARG that double", after: "CVE-2021-21284", outcome: "refused, in bounded memory", run: func(b *bed) {
			b.buildRefused("Dockerfile:", doubling("ARG", "$V%d$V%d"))
		}},
		{name: "language/forty lines of ENV that double", outcome: "refused, in bounded memory", run: func(b *bed) {
			b.buildRefused("Dockerfile:", doubling("ENV", "${V%d}${V%d}"))
		}},
		{name: "language/doubling by defaults and replacements", outcome: "refused, in bounded memory", run: func(b *bed) {
			b.buildRefused("Dockerfile:", doubling("ARG", "${NONE:-$V%d$V%d}"))
			b.buildRefused("Dockerfile:", "FROM scratch\nARG A="+strings.Repeat("a", 100000)+"\nARG B=${A//a/"+strings.Repeat("b", 100000)+"}\nLABEL x=$B\nCOPY Dockerfile /\n")
		}},
		{name: "language/braces nested a hundred thousand deep", after: "CVE-2022-24921", outcome: "refused, in bounded memory", run: func(b *bed) {
			b.buildRefused("", "FROM scratch\nARG A="+strings.Repeat("${A:-", 100000)+strings.Repeat("}", 100000)+"\n")
			b.buildRefused("", "FROM scratch\nCMD "+strings.Repeat("[", 200000)+"\n")
		}},
		{name: "language/a file of 64 MiB", outcome: "refused, in bounded memory", run: func(b *bed) {
			b.buildRefused("", "FROM scratch\n"+strings.Repeat("# comment comment comment comment comment comment comment comment\n", 1<<20))
		}},
		{name: "language/stages and steps without number", outcome: "refused, in bounded memory", run: func(b *bed) {
			b.buildRefused("", strings.Repeat("FROM scratch\n", 20000)+"COPY Dockerfile /\n")
			b.buildRefused("", "FROM scratch\n"+strings.Repeat("COPY Dockerfile /\n", 50000))
		}},
		{name: "language/stages in a circle", outcome: "refused", run: func(b *bed) {
			b.buildRefused("", "FROM b AS a\nFROM a AS b\nRUN true\n")
			b.buildRefused("", "FROM scratch AS a\nCOPY --from=a /x /\n")
			b.buildRefused("", "FROM scratch AS a\nCOPY --from=b /x /\nFROM scratch AS b\nCOPY --from=a /x /\n")
		}},
		{name: "language/a heredoc that never ends", outcome: "refused", run: func(b *bed) {
			b.buildRefused("", "FROM scratch\nCOPY <<EOF <<EOG /\nx\n")
			b.buildRefused("", "FROM scratch\nRUN "+strings.Repeat("<<A ", 10000)+"\nx\n")
		}},
		{name: "language/a heredoc whose name leads outside", outcome: "it stays inside", run: func(b *bed) {
			b.contained("FROM scratch\nCOPY <<" + "\"../../../../../../" + b.token + "\" /\nx\n" + "../../../../../../" + b.token + "\n")
		}},
		{name: "language/terminal escapes in a build file", outcome: "shown harmlessly", run: func(b *bed) {
			b.contained("FROM " + b.base + "\nRUN echo \x1b]0;pwned\x07 \x1b[2J \u202e\n")
			b.contained("FROM \x1b[31mevil\nRUN \r\x1b[Kx\n")
			b.contained("\x1b[31mBOGUS \u009b x\n")
			b.contained("FROM scratch AS \x1b[31m\nCOPY \x1b[2J /\n")
		}},
		{name: "language/syntax lines that name a program", after: "CVE-2026-33747", outcome: "no program or image is run for it", run: func(b *bed) {
			b.contained("# syntax=" + b.registry + "/evil/frontend:1\nFROM scratch\nCOPY Dockerfile /\n")
			b.contained("# syntax=../../../" + b.host + "/secret\nFROM scratch\nCOPY Dockerfile /\n")
		}},
		{name: "language/ONBUILD in a base image", after: "CVE-2024-24557", outcome: "no FROM and no nonsense by a base", run: func(b *bed) {
			for _, trigger := range []string{"FROM scratch", "BOGUS", "COPY --from=nothing /x /y"} {
				ref := b.imageOf(onBuild(trigger))
				b.buildRefused("", "FROM "+ref+"\nRUN true\n")
			}
		}},
		{name: "language/sources that lead out of the context or a stage", after: "CVE-2018-15664 CVE-2024-23651", outcome: "they stay inside", run: func(b *bed) {
			for _, src := range []string{up + b.host[1:] + "/secret", b.host + "/secret", "a/../" + up + b.host[1:] + "/secret"} {
				b.buildRefused("", "FROM "+b.base+"\nCOPY "+src+" /leak\nRUN cat /leak\n")
				b.buildRefused("", "FROM "+b.base+"\nADD "+src+" /leak\nRUN cat /leak\n")
				b.buildRefused("", "FROM "+b.base+"\nCOPY --from="+b.base+" "+src+" /leak\nRUN cat /leak\n")
			}
			b.build("FROM " + b.base + "\nCOPY Dockerfile " + up + b.token + "/x\nWORKDIR " + up + b.host[1:] + "/made\nRUN pwd\n")
		}},
		{name: "language/ADD of other schemes", outcome: "refused", run: func(b *bed) {
			for _, src := range []string{"file://" + b.host + "/secret", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "ext::sh -c touch% " + b.host + "/pwned", "http:///etc/passwd", "http://[::1", "https://"} {
				b.buildRefused("", "FROM "+b.base+"\nADD [\""+src+"\", \"/leak\"]\nRUN cat /leak\n")
			}
		}},
	}
}

// contextAttacks are directories and archives to build from.
func contextAttacks() []attack {
	return []attack{
		{name: "context/links that lead out", after: "CVE-2018-15664 CVE-2026-28406", outcome: "copied as links, never followed out", run: func(b *bed) {
			c := b.context("FROM " + b.base + "\nCOPY . /c/\nRUN cat /c/l /c/d/secret; ls -l /c; true\n")
			b.must(os.Symlink(filepath.Join(b.host, "secret"), c+"/l"))
			b.must(os.Symlink(b.host, c+"/d"))
			b.must(os.Symlink(up[:len(up)-1]+b.host, c+"/r"))
			b.ok("build", "--progress", "plain", c)
			for _, src := range []string{"l", "d/secret", "r/secret", "r/", "d/*"} {
				b.write(c, "Dockerfile", "FROM "+b.base+"\nCOPY "+src+" /leak\nRUN cat /leak /leak/*; true\n")
				b.strake("build", "--progress", "plain", c)
				b.write(c, "Dockerfile", "FROM "+b.base+"\nADD "+src+" /leak/\nRUN cat /leak/*; true\n")
				b.strake("build", "--progress", "plain", c)
			}
		}},
		{name: "context/pipes, sockets and devices", after: "CVE-2024-9676", outcome: "no hang, no device is read", run: func(b *bed) {
			c := b.context("FROM " + b.base + "\nCOPY . /c/\nRUN ls -l /c; true\n")
			b.must(unix.Mkfifo(c+"/pipe", 0o644))
			b.must(unix.Mknod(c+"/zero", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))))
			l, err := net.Listen("unix", c+"/sock")
			b.must(err)
			defer l.Close()
			b.strake("build", "--progress", "plain", c)
			for _, name := range []string{"pipe", "zero", "sock"} {
				b.write(c, "Dockerfile", "FROM "+b.base+"\nCOPY "+name+" /x\nADD "+name+" /y/\n")
				b.strake("build", "--progress", "plain", c)
			}
		}},
		{name: "context/ignore file is a pipe, a link or endless", after: "CVE-2024-9676", outcome: "refused, no hang, bounded memory", run: func(b *bed) {
			c := b.context("FROM scratch\nCOPY . /c/\n")
			b.must(unix.Mkfifo(c+"/.dockerignore", 0o644))
			b.strake("build", c)
			b.must(os.Remove(c + "/.dockerignore"))
			b.must(os.Symlink("/dev/zero", c+"/.dockerignore"))
			b.strake("build", c)
			b.must(os.Remove(c + "/.dockerignore"))
			f, err := os.Create(c + "/.dockerignore")
			b.must(err)
			b.must(f.Truncate(1 << 33))
			b.must(f.Close())
			b.refused("", "build", c)
		}},
		{name: "context/ignore patterns that take for ever", after: "CVE-2022-24921", outcome: "bounded time", run: func(b *bed) {
			long := strings.Repeat("a", 200)
			c := b.context("FROM scratch\nCOPY . /c/\n", long+"/"+long+"/"+long, "x")
			b.write(c, ".dockerignore", strings.Repeat("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b\n", 200)+strings.Repeat("**/a*/**/a*/**/a*/**/b\n", 200))
			b.ok("build", c)
			b.write(c, ".dockerignore", strings.Repeat("x\n", 2_000_000))
			b.strake("build", c)
		}},
		{name: "context/build file is a pipe nobody writes or a directory", outcome: "refused, no hang", run: func(b *bed) {
			c := b.context("")
			b.must(os.Remove(c + "/Dockerfile"))
			b.must(os.Mkdir(c+"/Dockerfile", 0o755))
			b.refused("", "build", c)
			b.refused("", "build", "-f", b.host, c)
		}},
		{name: "context/an archive on stdin that leads out", after: "CVE-2026-28406", outcome: "nothing is written outside", run: func(b *bed) {
			data := b.archive(file("Dockerfile", "FROM "+b.base+"\nCOPY . /c/\nRUN cat /c/x/secret /c/leak; true\n"), symlink("x", b.host), file("x/pwned", "x"), file(up+b.token, "x"), hardlink("leak", b.host+"/secret"),
				special("dev", tar.TypeChar, 1, 1))
			cmd := b.s.Command("build", "--progress", "plain", "-")
			cmd.Stdin = bytes.NewReader(data)
			b.run2(cmd)
			link := b.archive(symlink("Dockerfile", b.host+"/secret"))
			cmd = b.s.Command("build", "--progress", "plain", "-")
			cmd.Stdin = bytes.NewReader(link)
			if r := b.run2(cmd); r.code == 0 {
				b.Error("built from a file of the host")
			}
		}},
		{name: "context/an archive on stdin without end", outcome: "bounded memory; ends when the input does", run: func(b *bed) {
			cmd := b.s.Command("build", "--progress", "plain", "-")
			cmd.Stdin = io.LimitReader(zeros{}, 300<<20)
			if r := b.run2(cmd); r.code == 0 {
				b.Error("built")
			}
		}},
		{name: "context/a repository that names programs to run", after: "CVE-2022-24765 CVE-2024-32002", outcome: "git is not run by them", run: func(b *bed) {
			evil := "touch " + b.host + "/pwned"
			c := b.context("FROM scratch\nCOPY Dockerfile /\n",
				".git/HEAD", "ref: refs/heads/main\n", ".git/objects/x", "", ".git/refs/heads/x", "",
				".git/config", "[core]\n\trepositoryformatversion = 0\n\tfsmonitor = "+evil+"\n\tsshCommand = "+evil+"\n\tpager = "+evil+"\n[diff]\n\texternal = "+evil+"\n[filter \"x\"]\n\tclean = "+evil+"\n\tprocess = "+evil+"\n[alias]\n\tstatus = !"+evil+"\n",
				".git/hooks/post-index-change", "#!/bin/sh\n"+evil+"\n", ".gitattributes", "* filter=x diff=x\n")
			b.must(os.Chmod(c+"/.git/hooks/post-index-change", 0o755))
			b.ok("build", "-t", "x", "--metadata-file", b.dir+"/md.json", c)
			b.strake("build", "--provenance=true", "--sbom=false", "-o", "type=oci,dest="+b.dir+"/o.tar", c)
		}},
		{name: "context/names that terminals act on", outcome: "shown harmlessly", run: func(b *bed) {
			c := b.context("FROM "+b.base+"\nCOPY . /c/\nRUN ls /c; ls /nothing*\nCOPY *.evil /\n", "\x1b]0;x\x07.evil", "x", "\u202etxt.evil", "x", "\r\n#1 DONE", "x")
			b.strake("build", "--progress", "plain", c)
			b.must(os.Chmod(c+"/\x1b]0;x\x07.evil", 0))
			b.must(os.Symlink("loop\x1b[31m", c+"/loop\x1b[31m"))
			b.strake("build", "--progress", "plain", "-o", b.dir+"/out", c)
		}},
		{name: "context/a hundred thousand directories deep", outcome: "refused or built, in bounded time", run: func(b *bed) {
			c := b.context("FROM scratch\nCOPY . /c/\n")
			fd, err := unix.Open(c, unix.O_DIRECTORY, 0)
			b.must(err)
			for range 3000 {
				b.must(unix.Mkdirat(fd, "d", 0o755))
				next, err := unix.Openat(fd, "d", unix.O_DIRECTORY, 0)
				b.must(err)
				unix.Close(fd)
				fd = next
			}
			unix.Close(fd)
			b.strake("build", c)
		}},
	}
}
