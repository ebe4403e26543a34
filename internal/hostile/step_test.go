package hostile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// withGroups runs a process as root with supplementary groups.
func withGroups(groups ...uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: groups}}
}

// stepAttacks are what a step does.
func stepAttacks() []attack {
	return []attack{
		{name: "step/descriptors of the caller", after: "CVE-2024-21626 CVE-2016-9962", outcome: "a step has none but its own three", run: func(b *bed) {
			c := b.context("FROM " + b.base + "\nRUN for f in 3 4 5 6 7 8 9 10 11 12; do [ -e /proc/self/fd/$f ] && readlink /proc/self/fd/$f | grep -v /proc/ && echo le''aked $f; done; cat /proc/self/fd/5/secret; cat <&5; true\n")
			cmd := b.s.Command("build", "--progress", "plain", c)
			d, err := os.Open(b.host)
			b.must(err)
			defer d.Close()
			f, err := os.Open(filepath.Join(b.host, "secret"))
			b.must(err)
			defer f.Close()
			cmd.ExtraFiles = []*os.File{d, d, d, f, f}
			b.hasNot(b.run2(cmd), "leaked")
		}},
		{name: "step/environment of the caller", after: "CVE-2021-3602 CVE-2020-15157", outcome: "nothing of it can be read", run: func(b *bed) {
			b.build("FROM " + b.base + "\nRUN env; for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ; done; cat /proc/1/cmdline | tr '\\0' '\\n'; true\n")
		}},
		{name: "step/files of the host through init's root", after: "CVE-2019-5736 CVE-2016-9962", outcome: "nothing is there", run: func(b *bed) {
			b.build("FROM " + b.base + "\nRUN cat /proc/1/root" + b.host + "/secret /proc/1/cwd" + b.host + "/secret /proc/self/root/" + up + b.host[1:] + "/secret; ls /proc/1/fd; true\n")
		}},
		{name: "step/mount, pivot_root and chroot out", after: "CVE-2015-3630 CVE-2022-0492", outcome: "mounting is refused, and chroot leads nowhere", run: func(b *bed) {
			r := b.build("FROM " + b.base + "\nRUN mkdir -p /m /c; mount -t tmpfs x /m && echo moun''ted; mount -t proc x /m && echo moun''ted; mount --bind / /m && echo moun''ted; umount /proc && echo moun''ted; " +
				"mount -t cgroup x /m && echo moun''ted; mount -o remount,rw /sys && echo moun''ted; unshare -Urm true && echo moun''ted; chroot /proc/1/root cat " + b.host + "/secret; true\n")
			b.hasNot(r, "mounted")
		}},
		{name: "step/cgroup's release agent", after: "CVE-2022-0492 CVE-2023-25809", outcome: "cgroup files can't be written", run: func(b *bed) {
			r := b.build("FROM " + b.base + "\nRUN for f in $(find /sys/fs/cgroup -type f 2>/dev/null); do (echo 1 > $f) 2>/dev/null && echo writ''ten $f; done; mkdir /sys/fs/cgroup/evil 2>/dev/null && echo writ''ten; true\n")
			b.hasNot(r, "written")
		}},
		{name: "step/core patterns, module loading, uevent helpers", after: "CVE-2015-3630", outcome: "kernel settings can't be written", run: func(b *bed) {
			r := b.build("FROM " + b.base + "\nRUN for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /sys/kernel/uevent_helper /proc/sys/vm/panic_on_oom /proc/sys/fs/binfmt_misc/register /proc/bus/x /sys/power/state; do (echo x > $f) 2>/dev/null && echo writ''ten $f; done; true\n")
			b.hasNot(r, "written")
		}},
		{name: "step/device nodes made by a step", after: "CVE-2023-27561", outcome: "they can't be opened", run: func(b *bed) {
			r := b.build("FROM " + b.base + "\nRUN mknod /m c 1 1; mknod /k c 1 11; mknod /d b 254 0; mknod /dev/d b 8 0; for d in /m /k /d /dev/d; do head -c 1 $d > /dev/null 2>&1 && echo open''ed $d; done; true\n")
			b.hasNot(r, "opened")
		}},
		{name: "step/services of the host on loopback and abstract sockets", after: "CVE-2020-15257", outcome: "not reachable", run: func(b *bed) {
			l := listen(b)
			defer l.Close()
			reached := make(chan bool, 10)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					reached <- true
					c.Close()
				}
			}()
			b.build("FROM " + b.base + "\nRUN nc -w 1 " + strings.Replace(l.Addr().String(), ":", " ", 1) + " </dev/null; cat /proc/net/unix | grep @ && echo abs''tract; true\n")
			if len(reached) > 0 {
				b.Error("a step reached a service on the host's loopback")
			}
		}},
		{name: "step/privileges that were not allowed", after: "CVE-2024-23653", outcome: "refused", run: func(b *bed) {
			b.buildRefused("security.insecure", "# syntax=docker/dockerfile:1-labs\nFROM "+b.base+"\nRUN --security=insecure true\n")
			b.buildRefused("network.host", "FROM "+b.base+"\nRUN --network=host true\n")
			b.buildRefused("", "FROM "+b.base+"\nRUN --device=vendor.com/x=y,required true\n")
		}},
		{name: "step/no network", outcome: "there is none but loopback", run: func(b *bed) {
			b.has(b.build("FROM "+b.base+"\nRUN --network=none echo =$(ls /sys/class/net)=\n"), "=lo=")
		}},
		{name: "step/a step that leaves processes and locks behind", after: "CVE-2024-24557", outcome: "they end with the step", run: func(b *bed) {
			b.build("FROM " + b.base + "\nRUN (setsid sh -c 'sleep 1000 & sleep 1000' &) ; (trap '' HUP TERM INT; sleep 1000 &) ; true\n")
			b.s.NoLeaks()
		}},
		{name: "step/programs named by the image in exec form", after: "CVE-2024-9341", outcome: "PATH and interpreters are those of the image", run: func(b *bed) {
			ref := b.imageOf(func(c *v1.ConfigFile) { c.Config.Env = []string{"PATH=" + b.host + "/bin:.:"} })
			b.write(b.dir, "bin/tool", "#!/bin/sh\ntouch "+b.host+"/pwned\n")
			b.contained("FROM " + ref + "\nRUN [\"tool\"]\n")
			b.contained("FROM " + ref + "\nSHELL [\"" + b.host + "/secret\"]\nRUN x\n")
		}},
		{name: "step/arguments and environment beyond the kernel's limit", outcome: "refused in words", run: func(b *bed) {
			b.buildRefused("", "FROM "+b.base+"\nRUN echo "+strings.Repeat("x", 3<<20)+"\n")
		}},
	}
}

// mountAttacks are RUN --mount.
func mountAttacks() []attack {
	link := func(b *bed) string { return b.image(b.archive(symlink("x", b.host), symlink("d", "/"+up+b.host[1:]))) }
	return []attack{
		{name: "mount/targets through links", after: "CVE-2021-30465 CVE-2023-0778 CVE-2024-23652", outcome: "nothing is made or mounted on the host", run: func(b *bed) {
			base := link(b)
			for _, m := range []string{"type=tmpfs,target=/x/new", "type=tmpfs,target=/d/dir", "type=cache,target=/x/cache/deep", "type=bind,from=" + b.base + ",target=/x/dir", "type=secret,id=s,target=/x/made", "type=bind,source=Dockerfile,target=/d/file"} {
				b.contained("FROM "+base+"\nRUN --mount="+m+" echo x > /x/pwned; ls -lR /x/; true\n", "--secret", "id=s,src="+b.write(b.dir, "s", "hush"))
			}
		}},
		{name: "mount/the target's directory is moved and replaced by a link", after: "CVE-2024-23652", outcome: "nothing of the host is removed", run: func(b *bed) {
			b.contained("FROM " + b.base + "\nRUN --mount=type=tmpfs,target=/t/empty --mount=type=bind,source=Dockerfile,target=/t/ptmx mv /t /u; ln -s " + b.host + "/dir /t; true\n")
			b.contained("FROM " + b.base + "\nRUN --mount=type=bind,source=Dockerfile,target=/t/ptmx --mount=type=bind,source=Dockerfile,target=/t/made mv /t /u; ln -s " + b.host + " /t; true\n")
		}},
		{name: "mount/sources that are links in another stage", after: "CVE-2024-1753 CVE-2024-11218", outcome: "they stay inside of that stage", run: func(b *bed) {
			base := link(b)
			for _, src := range []string{"/x", "/x/dir", "/d", "/../../.." + b.host, up + b.host[1:]} {
				b.contained("FROM " + base + " AS evil\nFROM " + b.base + "\nRUN --mount=type=bind,from=evil,source=" + src + ",target=/m,rw cat /m/secret; touch /m/pwned; ls -lR /m; true\n")
			}
		}},
		{name: "mount/sources that change while it is mounted", after: "CVE-2024-23651 CVE-2024-11218 CVE-2021-30465", outcome: "no race leads to the host", run: func(b *bed) {
			b.contained("FROM " + b.base + " AS a\nRUN --mount=type=cache,target=/c,id=race for i in $(seq 300); do rm -rf /c/s; ln -s " + b.host + " /c/s; rm -f /c/s; mkdir /c/s; done; true\n" +
				"FROM " + b.base + " AS b\nRUN --mount=type=cache,target=/c,id=race --mount=type=tmpfs,target=/c/s for i in $(seq 50); do cat /c/s/secret; touch /c/s/pwned; done 2>/dev/null; true\n" +
				"FROM " + b.base + "\nCOPY --from=a /bin/sh /1\nCOPY --from=b /bin/sh /2\n")
		}},
		{name: "mount/cache IDs that are paths", after: "CVE-2024-9675", outcome: "they name nothing outside of the store", run: func(b *bed) {
			for _, id := range []string{up + b.host[1:], "../../" + b.token, b.host, ".", "..", strings.Repeat("a", 5000)} {
				b.contained("FROM " + b.base + "\nRUN --mount=type=cache,id=" + id + ",target=/c cat /c/secret; touch /c/pwned; true\n")
			}
		}},
		{name: "mount/a link left in a cache mount", after: "CVE-2024-23651 CVE-2024-9675", outcome: "it is not followed by strake", run: func(b *bed) {
			b.contained("FROM " + b.base + "\nRUN --mount=type=cache,target=/c ln -s " + b.host + " /c/l\nRUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/c/l/t touch /c/l/pwned; true\n")
			b.ok("du")
			b.ok("prune", "--all", "--force")
		}},
		{name: "mount/options of mount(8)", after: "CVE-2024-9407", outcome: "refused", run: func(b *bed) {
			for _, o := range []string{"bind-propagation=shared", "bind-propagation=O,upperdir=" + b.host, "relabel=shared", "Z", "upperdir=" + b.host, "exec,suid,dev", "bogus=1"} {
				b.buildRefused("", "FROM "+b.base+"\nRUN --mount=type=bind,source=.,target=/m,"+o+" true\n")
			}
			b.buildRefused("", "FROM "+b.base+"\nRUN --mount=type=tmpfs,target=/m,size=-1 true\n")
			b.buildRefused("", "FROM "+b.base+"\nRUN --mount=type=host,target=/m true\n")
			b.buildRefused("", "FROM "+b.base+"\nRUN --mount=type=devpts,target=/m true\n")
		}},
		{name: "mount/over proc, sys, dev and the root", after: "CVE-2019-16884 CVE-2015-3631 CVE-2025-52881", outcome: "refused, or no protection is lost", run: func(b *bed) {
			for _, target := range []string{"/proc", "/proc/self/attr", "/proc/sys", "/sys", "/dev", "/", "/.."} {
				r := b.contained("FROM " + b.base + " AS x\nRUN mkdir -p /self/attr /sys /1\nFROM " + b.base + "\nRUN --mount=type=bind,from=x,target=" + target + ",rw (echo x > /proc/sysrq-trigger) 2>/dev/null && [ ! -f /proc/sysrq-trigger ] && echo writ''ten; mount -t proc x /tmp 2>/dev/null && echo moun''ted; true\n")
				b.hasNot(r, "written")
				b.hasNot(r, "mounted")
			}
		}},
		{name: "mount/a tmpfs larger than allowed", outcome: "its size is kept", run: func(b *bed) {
			r := b.build("FROM " + b.base + "\nRUN --mount=type=tmpfs,target=/m,size=1m dd if=/dev/zero of=/m/f bs=1M count=8 2>&1; ls -l /m/f; true\n")
			b.has(r, "No space left")
		}},
		{name: "mount/the context is read-only to the host", after: "CVE-2024-9407", outcome: "what a step writes there is gone", run: func(b *bed) {
			c := b.context("FROM "+b.base+"\nRUN --mount=type=bind,target=/c,rw echo changed > /c/f; rm -f /c/g; touch /c/pwned; chmod 777 /c; true\n", "f", "f", "g", "g")
			before := b.listing(c)
			b.ok("build", "--progress", "plain", c)
			if after := b.listing(c); after != before {
				b.Errorf("the context has changed:\n%s\n%s", before, after)
			}
		}},
		{name: "mount/many mounts", outcome: "made or refused, in bounded time", run: func(b *bed) {
			var m strings.Builder
			for i := range 300 {
				fmt.Fprintf(&m, "--mount=type=tmpfs,target=/m%d ", i)
			}
			b.contained("FROM " + b.base + "\nRUN " + m.String() + " true\n")
		}},
	}
}
